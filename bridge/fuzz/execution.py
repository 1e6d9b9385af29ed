"""Running programs of bridge.fuzz.programs, with packets for those that have hooks.

python3 -m bridge.fuzz.execution --seed 7 --first 0 --count 100 [--print]
"""

from __future__ import annotations

import argparse
import json
import random
import re
import socket
import struct
import subprocess
import sys
from collections import Counter
from contextlib import ExitStack, suppress

from bridge.errors import LuaError, ModuleError
from bridge.fuzz.journal import FaultFound, Journal
from bridge.fuzz.programs import Programs
from bridge.fuzz.sending import PARAMETERS, stop_all
from bridge.fuzz.vocabulary import Vocabulary
from bridge.lunatik import Lunatik, Runtime
from bridge.netlink import Value

BATCH = 50
DRIVER = """
local text, value = coroutine.yield()
while true do
  local program, why = load(text, "=fuzz", "t", setmetatable({}, {__index = _G}))
  local well = program and pcall(program, value)
  text, value = coroutine.yield(well and "succeeded" or program and "failed" or why)
end
"""
_REASONS = ("instruction budget", "not enough memory", "stack overflow", "attempt to",
            "bad argument", "expected", "unexpected", "syntax error", "not found",
            "cross runtimes", "netfilter.register")  # fmt: skip
_PACKETS = 12


class Packets:
    """Sends packets of many kinds over the loopback interface, which it sets up."""

    def __init__(self) -> None:
        subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
        with ExitStack() as stack:

            def open_socket(family: int, kind: int, protocol: int = 0) -> socket.socket:
                opened = stack.enter_context(socket.socket(family, kind, protocol))
                opened.setblocking(False)
                return opened

            self._udp4 = open_socket(socket.AF_INET, socket.SOCK_DGRAM)
            self._udp6 = open_socket(socket.AF_INET6, socket.SOCK_DGRAM)
            self._raw4 = open_socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
            self._echo = open_socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
            self._frame = open_socket(socket.AF_PACKET, socket.SOCK_RAW)
            self._frame.bind(("lo", 0))
            self._stack = stack.pop_all()

    def send(self, rng: random.Random) -> None:
        """Send one packet; that a hook drops it is fine."""
        noise = rng.randbytes(rng.choice((0, 1, 8, 40, 600, 9000)))
        question = b"\0\1\1\0\0\1\0\0\0\0\0\0\3bad\7example\0\0\1\0\1"
        payload = rng.choice((noise, question, question[: rng.randrange(40)]))
        with suppress(OSError):
            match rng.randrange(6):
                case 0:
                    self._udp4.sendto(payload, ("127.0.0.1", rng.choice((9, 53))))
                case 1:
                    self._udp6.sendto(payload, ("::1", rng.choice((9, 53))))
                case 2:
                    self._raw4.sendto(_ipv4(rng, payload), ("127.0.0.1", 0))
                case 3:
                    head = struct.pack("!BBHHH", 8, 0, 0, 1, rng.randrange(100))
                    self._echo.sendto(head + payload, ("127.0.0.1", 0))
                case 4:
                    kind = rng.choice((0x0800, 0x86DD, 0x0806, 0x8100))
                    self._frame.send(b"\0" * 12 + struct.pack("!H", kind) + payload)
                case _:
                    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as tcp:
                        tcp.setblocking(False)
                        tcp.connect(("127.0.0.1", 9))

    def close(self) -> None:
        """Close the sockets."""
        self._stack.close()


def _ipv4(rng: random.Random, payload: bytes) -> bytes:
    """Return a packet whose header the kernel completes, which may lie all the same."""
    first, protocol = rng.choice((0x45, 0x45, 0x46, 0x4F)), rng.choice((1, 2, 6, 17, 47, 255))
    middle = (rng.randrange(256), 0, 0, rng.randrange(65536), 64, protocol, 0)
    head = struct.pack("!BBHHHBBH", first, *middle) + 2 * bytes([127, 0, 0, 1])
    return head + b"\1" * (4 * (first & 15) - 20) + payload


class Bench:
    """Runs programs one after the other and counts what becomes of them."""

    def __init__(self, lunatik: Lunatik, programs: Programs, packets: Packets) -> None:
        self._lunatik, self._programs, self._packets = lunatik, programs, packets
        self._driver: Runtime | None = None
        self._sleep = True
        self.outcome: Counter[str] = Counter()

    def start(self, *, sleep: bool) -> None:
        """Begin anew; chunks are loaded by a runtime that sleeps, or one that does not."""
        stop_all(self._lunatik)
        self._driver, self._sleep = None, sleep

    def run(self, index: int) -> None:
        """Run one program to its end."""
        kind = self._programs.kind(index)
        self.outcome["programs"] += 1
        try:
            if kind == "chunk":
                self._load(index)
            else:
                self._live(index, hooks=kind != "body")
        except LuaError as error:
            self.outcome[f"{kind} raised: {_reason(error.message)}"] += 1
        except ModuleError as error:
            self.outcome[f"{kind} refused: errno {error.errno}"] += 1
            self._driver = None

    def _load(self, index: int) -> None:
        if self._driver is None:
            self._driver = self._lunatik.runtime("driver", source=DRIVER, sleep=self._sleep)
        rng = self._programs.rng(index, "values")
        driver, self._driver = self._driver, None
        told = driver.resume(self._programs[index], _value(rng))
        self._driver = driver
        well = told.decode(errors="replace") if isinstance(told, bytes) else "odd"
        self.outcome[f"chunk {well if well in ('succeeded', 'failed') else _reason(well)}"] += 1

    def _live(self, index: int, *, hooks: bool) -> None:
        rng = self._programs.rng(index, "values")
        sleep = not hooks and rng.random() < 0.5
        text = self._programs[index]
        with self._lunatik.runtime("fuzz", source=text, sleep=sleep) as runtime:
            self.outcome[f"{self._programs.kind(index)} created"] += 1
            for _ in range(_PACKETS if hooks else 0):
                self._packets.send(rng)
            for _ in range(rng.randrange(4)):
                runtime.resume(*(_value(rng) for _ in range(rng.randrange(4))))
            if hooks:
                self._packets.send(rng)
                info = runtime.info()
                self.outcome["callbacks"] += info.calls
                self.outcome["callbacks failed"] += info.errors


def _value(rng: random.Random) -> Value:
    return rng.choice((None, True, False, 0, -1, 2**63 - 1, rng.randbytes(rng.randrange(40)),
                       "block", "bad.example", "fail"))  # fmt: skip


def _reason(message: str) -> str:
    found = re.search("|".join(_REASONS), message)
    return found[0] if found else re.sub(r"\d+", "N", message[-60:])


def run(seed: int, first: int, count: int, *, batch: int = BATCH) -> Counter[str]:
    """Run programs in batches; return what became of them.

    The module is loaded already. Raises FaultFound, with the program where it can be
    told which one it was, when the kernel complains.
    """
    programs = Programs(Vocabulary.read(), seed)
    with ExitStack() as stack:
        journal, packets = Journal(), Packets()
        stack.callback(journal.close)
        stack.callback(packets.close)
        bench = Bench(stack.enter_context(Lunatik.connect()), programs, packets)
        for start in range(first, first + count, batch):
            size = min(batch, first + count - start)
            try:
                _run_batch(bench, journal, seed, range(start, start + size))
            except FaultFound:
                _narrow(bench, journal, programs, range(start, start + size))
                raise
        bench.start(sleep=True)
        return bench.outcome


def _run_batch(bench: Bench, journal: Journal, seed: int, numbers: range) -> None:
    arguments = f"--seed {seed} --first {numbers.start} --count {len(numbers)}"
    journal.begin(f"lunabridge lab run -- python3 -m bridge.fuzz.execution {arguments}")
    bench.start(sleep=numbers.start // BATCH % 2 == 0)
    for index in numbers:
        bench.run(index)
    journal.end()


def _narrow(bench: Bench, journal: Journal, programs: Programs, numbers: range) -> None:
    """Run a batch again one by one, and raise FaultFound with the program if one is it."""
    for index in numbers:
        journal.begin(f"program {index} alone")
        bench.run(index)
        journal.end(content=f"--- program {index}\n{programs[index]}")


def main() -> int:
    """Run programs and print what came of them as JSON, or print the programs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first program")
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--batch", type=int, default=BATCH, help="1 finds the fatal one")
    parser.add_argument("--print", action="store_true", help="show the programs, run none")
    args = parser.parse_args()
    if args.print:
        programs = Programs(Vocabulary.read(), args.seed)
        for index in range(args.first, args.first + args.count):
            sys.stdout.write(f"-- {index}: {programs.kind(index)}\n{programs[index]}\n")
        return 0
    with Lunatik.load(None, root=None, **PARAMETERS):
        json.dump(
            run(args.seed, args.first, args.count, batch=args.batch), sys.stdout, indent=1
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
