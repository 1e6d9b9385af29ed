"""What is expected of packets that were sent, and a failure that says what came instead.

    expect(send(packets)).dropped()
    expect(send(packets)).counts(accepted=2, dropped=1)

A failure's first line is its cause. Then come the packets, each with what was expected
beside what was seen, and what the kernel says of the policies.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NoReturn

from bridge.errors import UsageError

if TYPE_CHECKING:
    from bridge.exchange import Exchange, Ping
    from bridge.traffic import Outcome

_ROWS = 12
_VERDICTS = ("accepted", "changed", "dropped", "answered")


@dataclass(frozen=True, slots=True)
class Findings:
    """What is known of the policies: a likely cause of any surprise, and facts, by line."""

    cause: str = ""
    facts: list[str] = field(default_factory=list)


Look = Callable[[], Findings]


class Expectation:
    """Claims about packets, in the order they were sent; each raises AssertionError."""

    def __init__(self, outcomes: Outcome | Sequence[Outcome], look: Look) -> None:
        self._outcomes = list(outcomes) if isinstance(outcomes, Sequence) else [outcomes]
        self._look = look
        if not self._outcomes:
            raise UsageError("no packet was sent, so nothing can be expected of it")

    def accepted(self, *, within: int = 0) -> None:
        """All arrived as sent; the first ``within`` of them may have had another fate."""
        __tracebackhide__ = True
        self._all("accepted", within)

    def dropped(self, *, within: int = 0) -> None:
        """None arrived or was answered, but perhaps of the first ``within``."""
        __tracebackhide__ = True
        self._all("dropped", within)

    def answered(self, *, within: int = 0) -> None:
        """None arrived, and each was answered on the way, as a reject rule does."""
        __tracebackhide__ = True
        self._all("answered", within)

    def changed(self, *fields: str, within: int = 0) -> None:
        """All arrived, but not as sent; if fields are named (``"IP.tos"``), in just those."""
        __tracebackhide__ = True
        self._all("changed", within)
        for number, outcome in enumerate(self._outcomes[within:], start=within + 1):
            found = {difference.path for difference in outcome.diff}
            if fields and found != set(fields):
                changes = "; ".join(str(difference) for difference in outcome.diff)
                claim = f"packet {number} to differ in {', '.join(fields)}"
                self._fail(claim, f"it differs in {changes}", ["changed"] * number)

    def verdicts(self, *verdicts: str) -> None:
        """One verdict for each packet, in this order."""
        __tracebackhide__ = True
        _known(verdicts)
        if len(verdicts) != len(self._outcomes):
            raise UsageError(
                f"{len(verdicts)} verdicts are expected of {len(self._outcomes)} packets"
            )
        self._compare(list(verdicts))

    def counts(self, **counts: int) -> None:
        """So many packets of each verdict, in any order; of those not named, none."""
        __tracebackhide__ = True
        _known(counts)
        seen = Counter(str(outcome.verdict) for outcome in self._outcomes)
        if seen != Counter(counts):
            self._fail(_counted(counts), _counted(seen), [])

    def _all(self, verdict: str, within: int) -> None:
        __tracebackhide__ = True
        if within >= len(self._outcomes):
            raise UsageError(
                f"within={within} leaves none of the {len(self._outcomes)} packets",
                cure="send more of them",
            )
        self._compare([None] * within + [verdict] * (len(self._outcomes) - within))

    def _compare(self, expected: list[str | None] | list[str]) -> None:
        __tracebackhide__ = True
        for number, (outcome, verdict) in enumerate(
            zip(self._outcomes, expected, strict=True), start=1
        ):
            if verdict is not None and outcome.verdict != verdict:
                of = f"packet {number} of {len(expected)} " if len(expected) > 1 else ""
                self._fail(f"{of}{verdict}", _brief(outcome), expected)

    def _fail(self, expected: str, seen: str, verdicts: Sequence[str | None]) -> NoReturn:
        __tracebackhide__ = True
        _fail(expected, seen, self._rows(verdicts), self._look())

    def _rows(self, expected: Sequence[str | None]) -> list[str]:
        """Return the packets, one a line, those that are wrong marked; not too many."""
        rows = []
        for number, outcome in enumerate(self._outcomes):
            verdict = expected[number] if number < len(expected) else None
            mark = ">" if verdict not in {None, outcome.verdict} else " "
            rows.append(f"{mark} {number + 1:3}  {verdict or 'any':9} {_brief(outcome)}")
        wrong = [number for number, row in enumerate(rows) if row[0] == ">"]
        first = max(0, (wrong[0] if wrong else 0) - _ROWS // 2)
        shown = rows[first : first + _ROWS]
        if len(shown) < len(rows):
            shown.append(f"       ... of {len(rows)} packets")
        return [f"  {'':3}  {'expected':9} seen", *shown]


class ExchangeExpectation:
    """Claims about a conversation of real sockets, or about echo requests."""

    def __init__(self, seen: Exchange | Ping, look: Look) -> None:
        self._seen = seen
        self._look = look

    def completed(self) -> None:
        """All data came back; every echo request was answered."""
        __tracebackhide__ = True
        self.ended("completed")

    def ended(self, ending: str) -> None:
        """It ended like this, see bridge.exchange.Ending; echo requests can be unanswered."""
        __tracebackhide__ = True
        seen = _ending(self._seen)
        if seen != ending:
            _fail(ending, seen, [f"  {self._seen}"], self._look())


def _brief(outcome: Outcome) -> str:
    """Return the outcome without the answers that an accepted packet may have had."""
    if outcome.verdict == "accepted":
        return f"{outcome.verdict}: {outcome.packet.summary()}"
    return str(outcome)


def _ending(seen: Exchange | Ping) -> str:
    from bridge.exchange import Ping  # noqa: PLC0415 - not on the host

    if not isinstance(seen, Ping):
        return str(seen.ending)
    if seen.received in {0, seen.sent}:
        return "completed" if seen.received else "unanswered"
    return f"{seen.received} of {seen.sent} answered"


def _known(verdicts: Sequence[str] | dict[str, int]) -> None:
    for verdict in verdicts:
        if verdict not in _VERDICTS:
            raise UsageError(
                f"no packet has the verdict {verdict!r}", cure=f"one of: {', '.join(_VERDICTS)}"
            )


def _counted(counts: dict[str, int]) -> str:
    return (
        ", ".join(f"{counts[name]} {name}" for name in _VERDICTS if counts.get(name)) or "none"
    )


def _fail(expected: str, seen: str, rows: list[str], findings: Findings) -> NoReturn:
    __tracebackhide__ = True
    claim = f"expected {expected}, but saw {seen}"
    first = f"{findings.cause}: {claim}" if findings.cause else claim
    raise AssertionError("\n".join([first, *rows, *findings.facts]))
