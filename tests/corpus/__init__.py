"""Small configurations and what a configuration test has to say about each.

The cases are in the `*.txt` files, one file per part of the language; `cases` reads them,
`run` runs them, `python -m tests.corpus.regenerate` writes nginx's answers into them.

A case looks like this (everything but the first line and `--- exit` may be missing)::

    === its name, a sentence
    why: mailproxy differs from nginx 1.22 on purpose; this sentence says for what reason
    each: 1 | 2 | 3           one case per value; the value replaces @@ everywhere,
                              its first word @1@
    run: -t                   the arguments, in addition to -p, -c, -e and -g
    g: pid mail.pid;          the text of -g
    with: good.crt            files made at test time, see `fixtures`
    setup: mkdir sub          a shell command, run in the directory of the case
    leaves: mail.pid a.log    the files that must be there afterwards, in addition
    needs: root               skip the case where that is missing, see `run.lacks`
    also: process             run it as a process of its own, too
    config: b"events {}"      the main file as a Python expression, if text cannot show it
    events {}
    mail {}
    --- file sub/other.conf
    the text of one more file
    --- exit 0
    mailproxy: the configuration file P/nginx.conf syntax is ok
    mailproxy: configuration file P/nginx.conf test is successful
    --- stdout
    what appears there
    --- end

`@P@` in arguments and files is the directory of the case, which answers show as `P`. Answers
hold the lines of nginx's shape alone, up to the first fatal one; see `run.Answer`.
"""
