"""The guest's side of the lab: process 1 and what it runs.

It uses the standard library only, and of that only modules that cost nothing to
import, because every import is paid for at each boot under emulation; hence `os`
where `pathlib` would read better. The host imports the frame format from here, so
that there is one definition of it.

Each port `lab.N` serves one host session at a time. Process 1 (init.py) waits on
all ports and forks a worker (worker.py) for the one on which a host speaks; the
worker ends when that host hangs up. Process 1 itself only reaps, and powers the
machine off when the port `lab.life` hangs up, which is how a guest never outlives
its tool.
"""
