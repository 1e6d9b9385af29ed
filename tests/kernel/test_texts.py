"""Names and messages are read whole while they change.

The replies are taken as bytes, because whoever decodes them reads too seldom to come
between.
"""

from __future__ import annotations

import re
import socket
import struct
import sys
import threading
from collections.abc import Callable
from contextlib import suppress

import pytest

from bridge.netlink import Command
from bridge.testing import sanitizers

pytestmark = pytest.mark.kernel

NETLINK_GENERIC = 16
NLM_F_REQUEST, NLM_F_DUMP = 0x1, 0x300
NLMSG_DONE = 3
LUNATIK_A_ID = 1
TEXT = re.compile(rb"[ab]{5,}.", re.DOTALL)
LONG, SHORT = "a" * 63, "b" * 5
PACKETS = sanitizers.fewer(20_000, by=40)
REPLACEMENTS = sanitizers.fewer(200, by=8)
MANY = """
local nf = require "netfilter"
for priority = 1, 100 do
  nf.register{pf = nf.family.IPV4, hooknum = nf.inet_hooks.FORWARD, priority = priority,
              hook = function() return nf.action.ACCEPT end}
end
"""
FAILING = f"""
local nf, turn = require "netfilter", 1
local texts = {{"{LONG}", "{SHORT}"}}
nf.register{{pf = nf.family.INET, hooknum = nf.inet_hooks.LOCAL_OUT, priority = 0,
            hook = function() turn = 3 - turn error(texts[turn], 0) end}}
"""
SENDER = """
import os, socket, sys
os.sched_setaffinity(0, {1})
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
    for _ in range(int(sys.argv[2])):
        sender.sendto(b"x", (sys.argv[1], 9))
"""


class Reader(threading.Thread):
    """Asks again and again, and keeps each text of a reply with the byte that ends it."""

    def __init__(self, family: int, command: Command, runtime_id: int) -> None:
        super().__init__()
        body = struct.pack("=BBHHHI", command, 1, 0, 8, LUNATIK_A_ID, runtime_id)
        dump = NLM_F_DUMP if command is Command.HOOK_GET else 0
        header = struct.pack("=IHHII", 16 + len(body), family, NLM_F_REQUEST | dump, 1, 0)
        self._request = header + body
        self._is_dump = bool(dump)
        self._done = threading.Event()
        self.seen: set[bytes] = set()

    def run(self) -> None:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_GENERIC) as link:
            link.settimeout(10)
            while not self._done.is_set():
                link.send(self._request)
                self._receive(link)

    def _receive(self, link: socket.socket) -> None:
        while True:
            reply = link.recv(1 << 16)
            self.seen.update(TEXT.findall(reply))
            (kind,) = struct.unpack_from("=H", reply, 4)
            if not self._is_dump or kind == NLMSG_DONE:
                return

    def stop(self) -> set[str]:
        self._done.set()
        self.join()
        return {text.decode() for text in self.seen}


@pytest.fixture
def reader(lunatik) -> Callable[[Command, int], Reader]:
    family = lunatik._connection._socket.prid

    def start(command: Command, runtime_id: int) -> Reader:
        thread = Reader(family, command, runtime_id)
        thread.start()
        return thread

    return start


def test_a_name_is_read_whole_while_scripts_replace_each_other(script, reader):
    runtime = script(MANY, name=LONG, sleep=False)
    reading = reader(Command.HOOK_GET, runtime.id)
    try:
        for turn in range(REPLACEMENTS):
            runtime.replace((SHORT, LONG)[turn % 2], source=MANY)
    finally:
        seen = reading.stop()
    assert seen == {LONG + "\0", SHORT + "\0"}


def test_a_message_is_read_whole_while_others_follow(script, reader, router):
    client, server = router["client"], router["server"]
    runtime = script(FAILING, sleep=False, netns=client.netns)
    reading = reader(Command.RUNTIME_GET, runtime.id)
    flood = client.popen([sys.executable, "-c", SENDER, server.address(), str(PACKETS)])
    try:
        assert flood.wait(60) == 0
    finally:
        with suppress(ProcessLookupError):
            flood.kill()
        seen = reading.stop()
    assert seen == {LONG + "\0", SHORT + "\0"}
    assert runtime.info().errors == PACKETS
