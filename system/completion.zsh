#compdef mailproxy

if (( CURRENT > 2 )) && [[ $words[2] == demo ]]; then
    shift words
    (( CURRENT-- ))
    _arguments \
        '--check[log in through every port, say what failed, and end]' \
        '--directory[where nginx.conf and the certificates are written]:directory:_directories' \
        '--help[show the options]'
    return
fi

if (( CURRENT > 2 )) && [[ $words[2] == certificates ]]; then
    shift words
    (( CURRENT-- ))
    _arguments \
        '-p[set the prefix]:prefix:_directories' \
        '-c[set the configuration file]:file:_files' \
        '-g[add directives of the main context]:directives:' \
        '--json[show them as JSON]' \
        '--warn[exit with 1 if one has less than this left]:days:' \
        '--name[show what a client gets that asks for this host]:host:_hosts' \
        '--help[show the options]'
    return
fi

_arguments -s \
    '(- :)'{-\?,-h}'[show the options]' \
    '-v[show the version]' \
    '-V[show the version and how it was configured]' \
    '-t[test the configuration]' \
    '-T[test the configuration and show it]' \
    '-q[only errors and warnings while testing]' \
    '-s[send a signal to the master]:signal:(stop quit reload reopen)' \
    '-p[set the prefix]:prefix:_directories' \
    '-e[set the error log of the start]:file:_files' \
    '-c[set the configuration file]:file:_files' \
    '-g[add directives of the main context]:directives:' \
    '--dump-json[show the values in effect as JSON]' \
    '--list-directives[show all directives]' \
    '(- :)--help[show the options, on standard output]' \
    '(- :)--version[show the version, on standard output]' \
    '1:command:((certificates\:"show certificates, when they end, and who gets which" demo\:"run a whole mail site on this machine" help\:"show the options, or those of a command" version\:"show the version"))'
