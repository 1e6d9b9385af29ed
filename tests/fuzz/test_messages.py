"""Malformed and random netlink messages are answered with errors, and nothing else."""

from __future__ import annotations

import errno
import struct
from pathlib import Path

import pytest

from bridge.errors import BridgeError
from bridge.fuzz import sending
from bridge.fuzz.messages import Attribute, Family, Messages
from bridge.lunatik import Lunatik
from bridge.netlink import Command

SHORT, LONG = 1500, 15_000
PARTS = range(4)
"""Seeds; each is a test, so that none is silent for long."""

FAMILY = Family(33, {2: {2: Attribute(12, longest=63), 3: Attribute(10)}, 4: {1: Attribute(4)}})


@pytest.fixture
def fuzzed():
    with Lunatik.load(**sending.PARAMETERS) as lunatik:
        yield lunatik


@pytest.mark.kernel
@pytest.mark.parametrize("seed", PARTS)
def test_a_privileged_sender_gets_errors_and_replies(fuzzed, long_run, seed, tally):
    outcome = sending.run(seed, 0, LONG if long_run else SHORT)
    tally(f"{outcome.sent} messages, replies {outcome.replies}, errors {outcome.errors}")
    never = set(Family.ask().commands) - set(outcome.replies)
    assert len(never) <= (0 if long_run else 1), "a command has never succeeded"
    for code in (0, errno.EINVAL, errno.ERANGE, errno.ESRCH, errno.ENOEXEC, errno.EOPNOTSUPP):
        assert outcome.errors[code], errno.errorcode.get(code)
    assert fuzzed.info().runtimes == 0
    assert int(Path("/sys/module/lunatik/refcnt").read_text()) == 0


@pytest.mark.kernel
@pytest.mark.parametrize("whom", ["user", "container"])
@pytest.mark.parametrize("seed", PARTS)
def test_without_privilege_nothing_but_info_succeeds(fuzzed, long_run, seed, whom, tally):
    outcome = sending.run(seed, 0, LONG if long_run else SHORT, batch=2048, whom=whom)
    tally(f"{outcome.sent} messages, replies {outcome.replies}, errors {outcome.errors}")
    assert set(outcome.replies) == {Command.INFO_GET}
    assert outcome.errors[errno.EPERM]


@pytest.mark.kernel
@pytest.mark.expects_splat("planted")
def test_a_splat_is_reported_with_the_command_that_makes_it_again(fuzzed, monkeypatch):
    real = sending.send

    def send(made, first, count):
        if first == 512:
            Path("/dev/kmsg").write_text("BUG: planted\n")
        return real(made, first, count)

    monkeypatch.setattr(sending, "send", send)
    with pytest.raises(BridgeError, match="BUG: planted") as caught:
        sending.run(7, 0, 1024)
    assert "sending --seed 7 --first 512 --count 256" in str(caught.value)
    sending.stop_all(fuzzed)


@pytest.mark.kernel
def test_a_change_without_privilege_is_reported(fuzzed, monkeypatch):
    monkeypatch.setattr(sending, "become", lambda whom: None)
    with pytest.raises(BridgeError, match="without privilege a runtime was changed"):
        sending.run(1, 0, 500, batch=500, whom="user")
    sending.stop_all(fuzzed)


@pytest.mark.kernel
def test_the_kernel_names_every_command_of_the_client(lunatik):
    family = Family.ask()
    assert {*family.commands} == {*Command} - {Command.EVENT}
    name = family.commands[Command.CREATE][2]
    assert name.longest == 63
    assert family.commands[Command.CREATE][4].high == 1


def test_a_seed_and_a_number_determine_a_message():
    first, again = (Messages(FAMILY, 5, [10, 11]) for _ in range(2))
    made = [first[index] for index in range(300)]
    assert made == [again[index] for index in range(300)]
    assert made != [Messages(FAMILY, 6, [10, 11])[index] for index in range(300)]
    assert len(set(made)) > 250


def test_some_messages_are_well_formed_and_some_are_not():
    made = [Messages(FAMILY, 5)[index] for index in range(500)]
    true_length = [one for one in made if struct.unpack_from("=I", one)[0] == len(one)]
    assert 300 < len(true_length) < 500
    assert {one[16] for one in made} > {2, 4}
