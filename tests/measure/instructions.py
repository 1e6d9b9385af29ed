"""Instructions that a policy adds to a packet, counted in a lab under icount.

    lunabridge lab run --icount -- python3 tests/measure/instructions.py

Under icount the guest's clock counts executed instructions, one nanosecond each, so
the difference between sending with and without a policy is its cost, on any host.
One UDP packet of 64 bytes at a time leaves by a dummy interface; the hook is at
LOCAL_OUT. The socket and the loop cost the same in every row.
"""

from __future__ import annotations

import ctypes
import json
import socket
import statistics
import subprocess
import sys
import time

from bridge.lunatik import LUA_ROOT, Lunatik

NETNS, PACKETS, ROUNDS = "lb-measure", 2000, 5
PORT, PAYLOAD = 9, b"x" * 64


def main() -> int:
    """Measure, print a JSON object of instructions per packet, return 0."""
    subprocess.run(["ip", "netns", "add", NETNS], check=True)
    try:
        sender = _sender()
        with Lunatik.load() as lunatik, sender:
            sys.stdout.write(json.dumps(_measure(lunatik, sender), indent=2) + "\n")
    finally:
        subprocess.run(["ip", "netns", "del", NETNS], check=True)
    return 0


def _sender() -> socket.socket:
    """A connected UDP socket in the namespace, whose packets go nowhere."""
    setup = (
        "link add sink type dummy",
        "link set sink up arp off",
        "addr add 192.0.2.1/24 dev sink",
    )
    for words in setup:
        subprocess.run(["ip", "-n", NETNS, *words.split()], check=True)
    with open(f"/run/netns/{NETNS}") as target, open("/proc/self/ns/net") as home:  # noqa: PTH123
        setns = ctypes.CDLL(None, use_errno=True).setns
        assert setns(target.fileno(), 0) == 0
        sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        assert setns(home.fileno(), 0) == 0
    sender.connect(("192.0.2.2", PORT))
    return sender


def _measure(lunatik: Lunatik, sender: socket.socket) -> dict[str, float]:
    bare = _cost(sender)
    figures = {"send, no hook, with the loop": bare}
    for name, text in _policies().items():
        with lunatik.runtime(name, source=text, sleep=False, netns=NETNS) as runtime:
            figures[name] = _cost(sender) - bare
            info = runtime.info()
            assert info.errors == 0
            assert info.calls == PACKETS * ROUNDS + 100
    return {name: round(value) for name, value in figures.items()}


def _policies() -> dict[str, str]:
    """The tree's policies, at LOCAL_OUT."""
    return {
        name: (LUA_ROOT / f"{name}.lua").read_text().replace(".FORWARD", ".LOCAL_OUT")
        for name in ("accept", "drop_port")
    }


def _cost(sender: socket.socket) -> float:
    for _ in range(100):
        sender.send(PAYLOAD)
    rounds = []
    for _ in range(ROUNDS):
        start = time.monotonic_ns()
        for _ in range(PACKETS):
            sender.send(PAYLOAD)
        rounds.append((time.monotonic_ns() - start) / PACKETS)
    return statistics.median(rounds)


if __name__ == "__main__":
    sys.exit(main())
