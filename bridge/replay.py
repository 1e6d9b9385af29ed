"""`lunabridge replay`: what would have happened to each packet of a capture file."""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import click
from rich.console import Console
from rich.text import Text

from bridge import options, policyfile, report, words
from bridge.check import located
from bridge.errors import BridgeError
from bridge.events import End, Judged
from bridge.lab.progress import Progress, silent, to_stderr
from bridge.pcap import Record, read
from bridge.place import INTERRUPTED, Place, open_place
from bridge.policyfile import PolicyFile

SKIPPED = "skipped"
_NOTHING_SENT = 4
# What one packet may take at most, on average, for the deadline of very many.
_PACKET_S = 0.5
_PROGRESS_EVERY_S = 2.0
_STYLES = {"dropped": "red", "answered": "red", "changed": "yellow", "accepted": "green"}


@dataclass(frozen=True, slots=True)
class Row:
    """What became of a packet: its verdict, and more about it.

    ``error`` is that of a callback which failed for it, ``line`` the policy's line of that.
    """

    number: int
    time_s: float | None
    summary: str
    verdict: str
    seen_by_policy: bool
    detail: str
    error: str | None = None
    line: int | None = None


@click.command()
@click.argument("pcap", type=click.Path(dir_okay=False))
@options.policy_option
@options.resumes
@options.native
@options.lab
@options.json_output
@options.quiet
@click.option(
    "--timeout",
    "timeout_s",
    type=click.FloatRange(0, min_open=True),
    metavar="SECONDS",
    help=f"End the work after this long, with status 124 ({options.TIMEOUT_S:g}, or"
    f" {_PACKET_S:g} for each packet).",
)
def replay(
    pcap: str,
    *,
    policy: str,
    resumes: tuple[str, ...],
    native: bool,
    lab_name: str,
    as_json: bool,
    quiet: bool,
    timeout_s: float | None,
) -> int:
    r"""Tell what a policy would have done with each packet of a capture file.

    PCAP is a pcap or pcapng file of Ethernet, Linux cooked or raw IP packets, as tcpdump
    and Wireshark write. Its IP packets are sent as they are, one after another, through a
    router on which the policy is in force; all arrive at its eth0 and leave by its eth1,
    whichever direction they once had, without the pauses between them.

    A row tells a packet's number, the time since the first, its verdict, and what it is:
    accepted, changed, dropped, answered (the policy rejected it), queued; not forwarded,
    where not the policy but Linux did not let it pass; or skipped, where it cannot be sent.
    FILE:LINE is where a callback failed.

    Exits with 1 where a callback failed, with 4 where no packet could be sent.

    \b
    Examples:
      lunabridge replay capture.pcap --policy drop_port
      lunabridge replay capture.pcapng --policy dns_block --resume 'block bad.example'
    """
    file = policyfile.load(policy)
    arguments = [words.split(text) for text in resumes]
    for one in arguments:
        words.values(one)  # so that what cannot be passed is refused here
    records = read(pcap)
    job = {
        "name": file.name,
        "source": file.source,
        "resumes": arguments,
        "packets": [(one.number, one.packet.hex()) for one in records if one.packet],
    }
    limit_s = timeout_s or max(options.TIMEOUT_S, _PACKET_S * len(records))
    shown = None if as_json else Table(report.console(quiet=quiet), file)
    progress = silent if quiet else to_stderr
    rows: list[Row] = []

    def take(row: Row) -> None:
        rows.append(row)
        if shown:
            shown.show(row)

    if job["packets"]:
        with open_place(native=native, lab_name=lab_name, progress=progress) as place:
            progress(f"sending {len(job['packets']):,} packets through {file.name} ...")
            counted = _Progress(len(records), progress if as_json or not _is_seen() else silent)
            for row in _rows(records, _judged(place, job, limit_s), file):
                take(row)
                counted.step()
            interrupted = place.interrupted
    else:
        interrupted = False
        for record in records:
            take(_skipped(record))
    _conclude(rows, file, pcap, as_json=as_json)
    if interrupted:
        click.echo("lunabridge: interrupted; everything is taken down", err=True)
        return INTERRUPTED
    return _status(rows)


def _is_seen() -> bool:
    """Whether somebody watches the rows come."""
    return sys.stdout.isatty()


def _judged(place: Place, job: dict[str, Any], limit_s: float) -> Iterator[Judged]:
    ended = False
    for event in place.work("bridge.replaying", job, limit_s):
        if isinstance(event, Judged):
            yield event
        ended = ended or isinstance(event, End)
    if not ended and not place.interrupted:
        raise BridgeError("the replay did not reach its end")


def _rows(
    records: Sequence[Record], judged: Iterator[Judged], file: PolicyFile
) -> Iterator[Row]:
    """Yield a row for each record, in their order, up to where the work was interrupted."""
    for record in records:
        if record.packet is None:
            yield _skipped(record)
            continue
        event = next(judged, None)
        if event is None:
            return
        yield _row(record, event, file)
    for _ in judged:
        pass  # what follows the last packet: an error, or the end


def _skipped(record: Record) -> Row:
    return Row(
        record.number, record.time_s, record.summary, SKIPPED, False, record.reason or ""
    )


def _row(record: Record, event: Judged, file: PolicyFile) -> Row:
    details = [*event.diff, *(f"answer: {answer}" for answer in event.answers)]
    error, line = event.error, None
    if event.verdict == SKIPPED:
        details, error = [error or ""], None
    elif not event.seen_by_policy:
        details.append("no hook of the policy saw it")
    if error is not None:
        finding = located(error, None, file.name, str(file.path))
        error, line = finding.message, finding.line
    return Row(
        number=record.number,
        time_s=record.time_s,
        summary=record.summary,
        verdict=event.verdict,
        seen_by_policy=event.seen_by_policy,
        detail="; ".join(details),
        error=error,
        line=line,
    )


class _Progress:
    """Says every few seconds how far the work is."""

    def __init__(self, total: int, progress: Progress) -> None:
        self._total = total
        self._progress = progress
        self._done = 0
        self._told = time.monotonic()

    def step(self) -> None:
        """Count one packet."""
        self._done += 1
        if time.monotonic() - self._told >= _PROGRESS_EVERY_S:
            self._told = time.monotonic()
            self._progress(f"packet {self._done:,} of {self._total:,}")


class Table:
    """Shows rows as they come."""

    def __init__(self, out: Console, file: PolicyFile) -> None:
        self._out = out
        self._file = file
        self._start: float | None = None
        self._line(("number        time  verdict        packet", "bold"))

    def show(self, row: Row) -> None:
        """Show a row; details stand behind the packet, and so does where a callback failed."""
        if self._start is None:
            self._start = row.time_s
        passed = "-" if row.time_s is None else f"{row.time_s - (self._start or 0):.6f}"
        detail = f"  ({row.detail})" if row.detail else ""
        self._line(
            (f"{row.number:6} {passed:>11}  ", ""),
            (f"{row.verdict:<13}", _STYLES.get(row.verdict, "")),
            (f"  {row.summary}{detail}", ""),
        )
        if row.error is not None:
            where = self._file.path if row.line is None else f"{self._file.path}:{row.line}"
            self._line((f"{'':21}{where}: {row.error}", "bold red"))

    def _line(self, *parts: tuple[str, str]) -> None:
        self._out.print(Text.assemble(*parts), soft_wrap=True)


def _conclude(rows: Sequence[Row], file: PolicyFile, pcap: str, *, as_json: bool) -> None:
    counts = Counter(row.verdict for row in rows)
    failed = sum(row.error is not None for row in rows)
    if as_json:
        whole = {
            "capture": pcap,
            "policy": str(file.path),
            "counts": dict(counts),
            "failed_callbacks": failed,
            "packets": [asdict(row) for row in rows],
        }
        click.echo(json.dumps(whole))
        return
    told = ", ".join(f"{count:,} {verdict}" for verdict, count in counts.most_common())
    some = f"{len(rows):,} packet{'' if len(rows) == 1 else 's'}"
    click.echo(f"{some}: {told or 'an empty capture'}")
    if failed:
        click.echo(f"for {failed:,} of them a callback failed")


def _status(rows: Sequence[Row]) -> int:
    if any(row.error is not None for row in rows):
        return 1
    return _NOTHING_SENT if all(row.verdict == SKIPPED for row in rows) else 0
