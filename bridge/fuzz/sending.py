"""Sending the messages of bridge.fuzz.messages, with privilege and without.

python3 -m bridge.fuzz.sending --seed 7 --first 0 --count 1000 [--become user]
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import pickle
import socket
import struct
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from bridge.errors import LabError
from bridge.fuzz.journal import Journal
from bridge.fuzz.messages import ERROR, HOOK, REQUEST, Family, Messages, generic_socket, split
from bridge.lunatik import Lunatik
from bridge.testing import sanitizers

BATCH = 256
PARAMETERS: dict[str, int] = {
    "body_budget": 20_000,
    "body_time": 1000 if sanitizers.present() else 200,
    "body_wait": 20,
    "budget": 5_000,
}
"""Limits of the module under which an endless script costs little time."""

_CLONE_NEWUSER, _CLONE_NEWNET = 0x10000000, 0x40000000
_NOBODY = 65534
_FIRST_FAMILY = 16  # below are netlink's own messages


@dataclass(slots=True)
class Outcome:
    """What came of a run: messages sent, replies by command, errors by errno."""

    sent: int = 0
    replies: Counter[int] = field(default_factory=Counter)
    errors: Counter[int] = field(default_factory=Counter)

    def add(self, other: Outcome) -> None:
        """Count another run in."""
        self.sent += other.sent
        self.replies += other.replies
        self.errors += other.errors


def send(messages: Messages, first: int, count: int) -> Outcome:
    """Send ``count`` messages from number ``first`` on; return what came back."""
    outcome = Outcome()
    with generic_socket() as sock:
        for index in range(first, first + count):
            message = messages[index]
            try:
                sock.send(message)
            except OSError as error:  # a message the socket itself will not have
                outcome.errors[error.errno or 0] += 1
            outcome.sent += 1
            _receive(sock, message, outcome)
    return outcome


def _receive(sock: socket.socket, message: bytes, outcome: Outcome) -> None:
    while True:
        try:
            data = sock.recv(1 << 17, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        for kind, _, _, part in split(data):
            if kind == ERROR:
                code = -struct.unpack_from("=i", part, 16)[0]
                outcome.errors[code] += 1
                # the rest of what was sent may be a message of its own
                if code == 0 and _is_request(message) and part[20:36] == message[:16]:
                    outcome.replies[message[16]] += 1
            elif kind >= _FIRST_FAMILY:
                outcome.replies[part[16]] += 1


def _is_request(message: bytes) -> bool:
    """Whether the family was asked at all; netlink acknowledges everything else itself."""
    kind, flags = struct.unpack_from("=HH", message, 4)
    return bool(kind >= _FIRST_FAMILY and flags & REQUEST)


def run(
    seed: int, first: int, count: int, *, batch: int = BATCH, whom: str | None = None
) -> Outcome:
    """Send messages in batches that each start with the same three runtimes.

    The module is loaded already. Messages come from root, or from ``whom``: a "user",
    or root of a "container". Raises FaultFound where the kernel complained, or where
    somebody without privilege changed a runtime.
    """
    family, total, journal = Family.ask(), Outcome(), Journal()
    try:
        with Lunatik.connect() as lunatik:
            for start in range(first, first + count, batch):
                size = min(batch, first + count - start)
                live = residents(lunatik)
                messages, before = Messages(family, seed, live), lunatik.runtimes()
                journal.begin(_again(seed, start, size, whom))
                if whom:
                    total.add(_in_child(whom, lambda: send(messages, start, size)))  # noqa: B023
                else:
                    total.add(send(messages, start, size))
                changed = whom is not None and lunatik.runtimes() != before
                journal.end("without privilege a runtime was changed" if changed else None)
            stop_all(lunatik)
    finally:
        journal.close()
    return total


def _in_child(whom: str, work: Callable[[], Outcome]) -> Outcome:
    """Do the work in a process without privilege; return what it returned."""
    ours, theirs = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            become(whom)
            os.write(theirs, pickle.dumps(work()))
        finally:
            os._exit(0)
    os.close(theirs)
    with os.fdopen(ours, "rb") as answer:
        data = answer.read()
    os.waitpid(child, 0)
    if not data:
        raise LabError("the process without privilege ended without saying what it did")
    outcome: Outcome = pickle.loads(data)  # noqa: S301 - from our own child
    return outcome


def residents(lunatik: Lunatik) -> list[int]:
    """Stop all runtimes and create the three that messages are about."""
    stop_all(lunatik)
    made = [
        lunatik.runtime("echo"),
        lunatik.runtime("echo", sleep=False),
        lunatik.runtime("hook", source=HOOK, sleep=False),
    ]
    return [runtime.id for runtime in made]


def stop_all(lunatik: Lunatik) -> None:
    """Stop every runtime there is."""
    for runtime in lunatik.runtimes():
        lunatik.stop(runtime.id, missing_ok=True)


def become(whom: str) -> None:
    """Give up the privilege: be another user, or root of a container's namespace."""
    if whom == "user":
        os.setgroups([])
        os.setgid(_NOBODY)
        os.setuid(_NOBODY)
    elif ctypes.CDLL(None).unshare(_CLONE_NEWUSER | _CLONE_NEWNET):
        raise OSError("cannot unshare the user namespace")


def _again(seed: int, first: int, count: int, whom: str | None) -> str:
    become = f" --become {whom}" if whom else ""
    command = f"python3 -m bridge.fuzz.sending --seed {seed} --first {first} --count {count}"
    return f"lunabridge lab run -- {command}{become}"


def main() -> int:
    """Send messages and print what came of them as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first message")
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--batch", type=int, default=BATCH, help="1 finds the fatal one")
    parser.add_argument("--become", choices=("user", "container"), help="without privilege")
    args = parser.parse_args()
    with Lunatik.load(None, root=None, **PARAMETERS):
        outcome = run(args.seed, args.first, args.count, batch=args.batch, whom=args.become)
    replies = {str(number): count for number, count in outcome.replies.items()}
    errors = {str(number): count for number, count in outcome.errors.items()}
    json.dump({"sent": outcome.sent, "replies": replies, "errors": errors}, sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main())
