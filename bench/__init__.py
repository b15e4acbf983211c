"""What mailproxy costs.

python -m bench         CPU time and memory beside nginx: `make bench`
python bench/soak.py    memory after many sessions and reloads: `make soak`
python bench/dns.py     how long one message of a name server can keep a worker busy

The files of the first:

__main__        the command line
cases           what is measured
measuring       how
proxies         the programs that are measured; configuration: what they are told
processes       CPU time and memory of a tree of processes
site            what all measurements share: ports, certificates, fake servers
helpers         the benchmark's own processes, and orders to them
load            one of them: the clients; dialogues: what these say
fake_servers    the other one: mail servers and the auth server
loop            the sockets of both
progress        what is said while it runs
results         all measurements, and the JSON file
report          the table
"""
