"""What the tests of the pages share: a packet of our own."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Callable

import pytest


@pytest.fixture
def loopback() -> Callable[[], None]:
    """Send one UDP packet of 127.0.0.1 to itself, over IPv4; nothing answers it."""
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)

    def send() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as ours:
            ours.bind(("127.0.0.1", 0))
            ours.sendto(b"x", ours.getsockname())

    return send
