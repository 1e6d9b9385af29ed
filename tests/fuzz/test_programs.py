"""Generated Lua programs and policies with mistakes in them raise errors, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from bridge.errors import BridgeError
from bridge.fuzz import execution, sending
from bridge.fuzz.programs import Programs
from bridge.fuzz.vocabulary import Vocabulary
from bridge.lunatik import Lunatik
from bridge.testing import sanitizers

SHORT, LONG = sanitizers.fewer(150, by=10), 2500
PARTS = range(8)
"""Seeds; each is a test, so that none is silent for long."""


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    return Vocabulary.read()


@pytest.mark.kernel
@pytest.mark.parametrize("seed", PARTS)
def test_programs_end_and_leave_nothing(long_run, seed, tally):
    count = LONG if long_run else SHORT
    with Lunatik.load(**sending.PARAMETERS) as lunatik:
        outcome = execution.run(seed, 0, count)
        tally("\n".join(f"{number:6} {what}" for what, number in sorted(outcome.items())))
        assert lunatik.info().runtimes == 0
        assert int(Path("/sys/module/lunatik/refcnt").read_text()) == 0
    assert outcome["programs"] == count
    often = ("chunk succeeded", "chunk failed", "body created", "callbacks")
    seldom = ("callback created", "mutant created", "callbacks failed")
    for what in (*(often if count >= 150 else ()), *(seldom if long_run else ())):
        assert outcome[what], what


@pytest.mark.kernel
@pytest.mark.expects_splat("planted")
def test_a_program_that_upsets_the_kernel_is_named_and_shown(monkeypatch):
    run = execution.Bench.run

    def run_and_plant(bench, index):
        run(bench, index)
        if index == 13:
            Path("/dev/kmsg").write_text("BUG: planted\n")

    monkeypatch.setattr(execution.Bench, "run", run_and_plant)
    with Lunatik.load(**sending.PARAMETERS) as lunatik:
        with pytest.raises(BridgeError, match="BUG: planted") as caught:
            execution.run(3, 0, 20, batch=10)
        sending.stop_all(lunatik)
    text = str(caught.value)
    assert "--- program 13\n" in text
    assert Programs(Vocabulary.read(), 3)[13] in text


def test_the_vocabulary_is_that_of_the_module(vocabulary):
    assert {
        "string.rep",
        "netfilter.register",
        "lunatik.runtime",
        "linux.log",
        "dns.question",
    } <= {*vocabulary.functions}
    assert {"u16", "resume", "gsub"} <= {*vocabulary.methods}
    assert {"lunatik", "netfilter", "linux", "dns", "tls"} <= {*vocabulary.libraries}
    assert {"netfilter.family.IPV4", "netfilter.action.DROP"} <= {*vocabulary.constants}
    assert "echo" in vocabulary.scripts


def test_a_seed_and_a_number_determine_a_program(vocabulary):
    first, again = Programs(vocabulary, 5), Programs(vocabulary, 5)
    assert [first[index] for index in range(60)] == [again[index] for index in range(60)]
    assert len({first[index] for index in range(60)}) == 60
    assert first[0] != Programs(vocabulary, 6)[0]
