"""Packets that come while their CPU is in the Lua state that should see them.

A callback sends nothing, but a line that it logs may be a packet: a network console
whose device is a tunnel sends each line at once, from the CPU that printed it, and the
tunnel's packet meets the hooks at LOCAL_OUT.
"""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.stock_kernel("it has no network console"),
]

LOGGED = "a line of the callback"
PORT = 9
PACKETS = 3
CONSOLE = "6665@192.0.2.1/tunnel,6666@192.0.2.2/02:00:00:00:00:02"
LOGGING = f"""
local nf, linux = require "netfilter", require "linux"
nf.register{{pf = nf.family.IPV4, hooknum = nf.inet_hooks.LOCAL_OUT, priority = 0,
            onerror = "RULE", hook = function(skb)
  if skb:dport() == {PORT} then linux.log("notice", "{LOGGED}") end
  return nf.action.ACCEPT
end}}
"""
SENDER = f"""
import os, socket, sys
os.sched_setaffinity(0, {{int(sys.argv[1])}})
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
    for _ in range(int(sys.argv[2])):
        sender.sendto(b"x", ("127.0.0.1", {PORT}))
"""


@pytest.fixture(scope="module")
def tunnelled() -> Iterator[Callable[[], list[bytes]]]:
    """A network console at a tunnel to nowhere; what has left the tunnel since last asked."""

    def run(*argv: str) -> None:
        subprocess.run(argv, check=True)

    run("ip", "link", "set", "lo", "up")
    run("modprobe", "ip_gre")
    try:
        run(
            *("ip", "link", "add", "tunnel", "type", "gretap"),
            *("local", "127.0.0.1", "remote", "127.0.0.2"),
        )
        run("ip", "link", "set", "tunnel", "up")
        with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_GRE) as taker:
            taker.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
            taker.setblocking(False)
            run("modprobe", "netconsole", f"netconsole={CONSOLE}")
            try:
                yield lambda: list(_received(taker))
            finally:
                run("modprobe", "-r", "netconsole")
    finally:
        subprocess.run(["ip", "link", "del", "tunnel"], check=False)
        run("modprobe", "-r", "ip_gre")


def _logging(rule: str) -> str:
    return LOGGING.replace("RULE", rule)


def _received(taker: socket.socket) -> Iterator[bytes]:
    while True:
        try:
            yield taker.recv(4096)
        except BlockingIOError:
            return


def _send(packets: int, cpu: int = 0) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", SENDER, str(cpu), str(packets)])


@pytest.mark.parametrize("percpu", [False, True], ids=["one state", "a state per CPU"])
@pytest.mark.parametrize("rule", ["accept", "drop"])
def test_the_failure_rule_decides_about_what_a_callback_logs(script, tunnelled, rule, percpu):
    runtime = script(_logging(rule), sleep=False, percpu=percpu)
    tunnelled()
    assert _send(PACKETS).wait(30) == 0
    (hook,) = runtime.hooks()
    assert (hook.reentered, hook.errors) == (PACKETS, 0)
    assert hook.dropped == (PACKETS if rule == "drop" else 0)
    assert runtime.info().calls == hook.packets - PACKETS
    sent = [one for one in tunnelled() if LOGGED.encode() in one]
    assert len(sent) == (PACKETS if rule == "accept" else 0)


def test_a_line_printed_elsewhere_runs_the_callback(script, tunnelled):
    runtime = script(_logging("drop"), sleep=False)
    Path("/dev/kmsg").write_text("a line of nobody's\n")
    (hook,) = runtime.hooks()
    assert hook.packets > 0
    assert (hook.reentered, hook.dropped) == (0, 0)
    assert any(b"a line of nobody's" in one for one in tunnelled())
