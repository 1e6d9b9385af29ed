"""Input that nobody meant: messages and scripts made at random, to be met by errors only.

``messages`` makes requests of the netlink family and ``sending`` sends them,
``programs`` makes Lua and ``execution`` runs it. Each piece is determined by a seed and
its number, so that what a crash leaves on the console is enough to have it again:

    lunabridge lab run -- python3 -m bridge.fuzz.sending --seed 7 --first 4096 --count 1
"""
