"""An expectation holds or fails as the packets' fates were, its first line the cause."""

from __future__ import annotations

import pytest

from bridge.errors import UsageError
from bridge.exchange import Ending, Exchange, Ping
from bridge.packetdiff import FieldDiff
from bridge.testing.expectation import ExchangeExpectation, Expectation, Findings
from bridge.traffic import Outcome, Verdict, dns_question

TOS = FieldDiff("IP.tos", 0, 8)


def _outcome(verdict: str, *differences: FieldDiff) -> Outcome:
    packet = dns_question(f"{verdict}.example")
    seen = packet if verdict in {"accepted", "changed"} else None
    return Outcome(packet, Verdict(verdict), seen, differences, (), 1, "server eth0")


def _expect(*verdicts: str, findings: Findings | None = None) -> Expectation:
    outcomes = [
        _outcome(verdict, *([TOS] if verdict == "changed" else [])) for verdict in verdicts
    ]
    return Expectation(outcomes, lambda: findings or Findings())


def _message(claim) -> list[str]:
    with pytest.raises(AssertionError) as caught:
        claim()
    return str(caught.value).splitlines()


@pytest.mark.parametrize("verdict", list(Verdict))
def test_each_verdict_is_claimed_by_its_name(verdict):
    getattr(_expect(verdict, verdict), verdict)()
    other = "dropped" if verdict != "dropped" else "accepted"
    assert _message(getattr(_expect(verdict, other), verdict))


def test_one_outcome_need_not_be_a_list():
    Expectation(_outcome("dropped"), Findings).dropped()


def test_the_first_packets_may_still_see_what_was_before():
    seen = _expect("accepted", "dropped", "dropped")
    seen.dropped(within=1)
    assert "packet 1 of 3 dropped" in _message(seen.dropped)[0]
    with pytest.raises(UsageError, match="within=3 leaves none of the 3 packets"):
        seen.dropped(within=3)


def test_verdicts_are_claimed_in_order_and_counts_in_any():
    seen = _expect("dropped", "accepted", "dropped")
    seen.verdicts("dropped", "accepted", "dropped")
    seen.counts(accepted=1, dropped=2)
    assert (
        "packet 2 of 3 dropped, but saw accepted"
        in _message(lambda: seen.verdicts("dropped", "dropped", "accepted"))[0]
    )
    assert _message(lambda: seen.counts(dropped=2))[0] == (
        "expected 2 dropped, but saw 1 accepted, 2 dropped"
    )


def test_changed_fields_are_claimed_by_name():
    _expect("changed").changed()
    _expect("changed").changed("IP.tos")
    found = _message(lambda: _expect("changed").changed("IP.tos", "IP.ttl"))
    assert found[0] == (
        "expected packet 1 to differ in IP.tos, IP.ttl, but saw it differs in IP.tos: 0 -> 8"
    )
    assert _message(lambda: _expect("accepted").changed("IP.tos"))


def test_a_failure_shows_expected_beside_seen_and_what_the_kernel_says():
    findings = Findings("p:1: no such field (onerror: drop)", ["  p at FORWARD", "  log: hi"])
    lines = _message(_expect("dropped", "accepted", findings=findings).dropped)
    assert lines[0].startswith(
        "p:1: no such field (onerror: drop): expected packet 2 of 2 dropped, but saw accepted: "
    )
    assert lines[1].split() == ["expected", "seen"]
    assert lines[2].startswith("    1  dropped   dropped ")
    assert lines[3].startswith(">   2  dropped   accepted: ")
    assert lines[4:] == ["  p at FORWARD", "  log: hi"]


def test_of_many_packets_those_around_the_first_wrong_one_are_shown():
    lines = _message(_expect(*["dropped"] * 50, "accepted", *["dropped"] * 50).dropped)
    assert len([line for line in lines if line.startswith(">")]) == 1
    assert len(lines) < 20
    assert lines[-1].strip() == "... of 101 packets"


@pytest.mark.parametrize(
    ("claim", "cause"),
    [
        (lambda: Expectation([], Findings), "no packet was sent"),
        (lambda: _expect("dropped").verdicts("lost"), "no packet has the verdict 'lost'"),
        (lambda: _expect("dropped").counts(lost=1), "no packet has the verdict 'lost'"),
        (lambda: _expect("dropped").verdicts(), "0 verdicts are expected of 1 packets"),
    ],
)
def test_claims_that_make_no_sense_are_refused(claim, cause):
    with pytest.raises(UsageError, match=cause):
        claim()


@pytest.mark.parametrize(
    ("seen", "ending"),
    [
        (Exchange(Ending.COMPLETED, True, b"x", b"x", 0.1), "completed"),
        (Exchange(Ending.REFUSED, False, b"", b"", 0.1), "refused"),
        (Ping(2, 2, (0.1, 0.1)), "completed"),
        (Ping(2, 0, ()), "unanswered"),
        (Ping(2, 1, (0.1,)), "1 of 2 answered"),
    ],
)
def test_an_exchange_ended_as_it_did_and_not_otherwise(seen, ending):
    expected = ExchangeExpectation(seen, Findings)
    expected.ended(ending)
    assert _message(lambda: expected.ended("reset"))[0] == (f"expected reset, but saw {ending}")
    if ending != "completed":
        assert _message(expected.completed)
