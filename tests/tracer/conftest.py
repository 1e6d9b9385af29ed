from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from bridge.lunatik import GUEST_MODULE, Lunatik, Runtime

SABOTAGE = Path(__file__).parents[1] / "sabotage"
PARAMETERS = Path("/sys/module/lunatik_sabotage/parameters")
SENDER = """
import socket, sys
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
    for _ in range(int(sys.argv[2])):
        sender.sendto(b"x" * 64, ("127.0.0.1", int(sys.argv[1])))
"""


class Sabotage:
    """The module, the library that breaks its promises, and packets to try both on."""

    def __init__(self, lunatik: Lunatik) -> None:
        self.lunatik = lunatik
        self._receiver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._receiver.bind(("127.0.0.1", 0))
        self._sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)

    def policy(self, name: str) -> Runtime:
        return self.lunatik.runtime(SABOTAGE / f"{name}.lua", sleep=False)

    def send(self, packets: int) -> None:
        for _ in range(packets):
            self._sender.sendto(b"x" * 64, self._receiver.getsockname())

    def start_sender(self, packets: int) -> subprocess.Popen[bytes]:
        _, port = self._receiver.getsockname()
        return subprocess.Popen([sys.executable, "-c", SENDER, str(port), str(packets)])

    def call_late(self, runtime: Runtime, packets: int) -> None:
        """Have packets seen in the name of a runtime that is stopped."""
        parameter = PARAMETERS / "late_id"
        parameter.write_text(str(runtime.id))
        try:
            self.send(packets)
        finally:
            parameter.write_text("0")

    def close(self) -> None:
        self._sender.close()
        self._receiver.close()


@pytest.fixture
def sabotage() -> Iterator[Sabotage]:
    module = GUEST_MODULE.with_name("lunatik_sabotage.ko")
    if os.geteuid() or not module.exists():
        pytest.skip("needs the lab, where the sabotage module is")
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    with Lunatik.load() as lunatik:
        subprocess.run(["insmod", module], check=True)
        sabotage = Sabotage(lunatik)
        yield sabotage
        sabotage.close()
        for runtime in lunatik.runtimes():
            lunatik.stop(runtime.id, missing_ok=True)
        subprocess.run(["rmmod", "lunatik_sabotage"], check=True)
