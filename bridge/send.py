"""`lunabridge send`: one packet through a policy, and what became of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict

import click
from rich.text import Text

from bridge import expression, options, policyfile, report, words
from bridge.check import Finding, located
from bridge.errors import BridgeError
from bridge.events import End, Judged
from bridge.lab.progress import silent, to_stderr
from bridge.place import INTERRUPTED, Place, open_place

_VERDICTS = ("accepted", "changed", "dropped", "answered", "queued", "not forwarded")
_STYLES = {"accepted": "bold green", "changed": "bold yellow"}


@click.command()
@click.argument("packet")
@options.policy_option
@options.resumes
@click.option(
    "--expect", type=click.Choice(_VERDICTS), help="Exit with 1 where the verdict is another."
)
@options.native
@options.lab
@options.json_output
@options.quiet
@options.timeout
def send(
    packet: str,
    *,
    policy: str,
    resumes: tuple[str, ...],
    expect: str | None,
    native: bool,
    lab_name: str,
    as_json: bool,
    quiet: bool,
    timeout_s: float,
) -> int:
    r"""Send one packet through a policy, and tell what became of it.

    PACKET is written as in scapy, from IP or IPv6 on; addresses that are left out are
    those of client and server. It goes from the client through a router, on which the
    policy is in force, to the server, where nobody answers.

    The first line has the verdict: accepted, changed (then each field that differs
    follows, as sent and as it arrived), dropped, answered (the policy rejected it),
    queued, or not forwarded, where not the policy but Linux did not let it pass.

    Exits with 1 where a callback failed, or where the verdict is not what --expect says.

    \b
    Examples:
      lunabridge send 'IP()/UDP(dport=53)' --policy drop_port
      lunabridge send 'IPv6()/TCP(dport=80, flags="S")' --policy accept --expect accepted
      lunabridge send 'dns_question("a.bad.example")' --policy dns_block \
        --resume 'block bad.example'
    """
    file = policyfile.load(policy)
    expression.parse(packet)  # so that what is none is refused here
    arguments = [words.split(text) for text in resumes]
    for one in arguments:
        words.values(one)
    job = {"name": file.name, "source": file.source, "resumes": arguments, "packet": packet}
    progress = silent if quiet else to_stderr
    with open_place(native=native, lab_name=lab_name, progress=progress) as place:
        progress(f"sending a packet through {file.name} ...")
        judged = _judged(place, job, timeout_s)
    if judged is None:
        click.echo("lunabridge: interrupted; everything is taken down", err=True)
        return INTERRUPTED
    failure = (
        located(judged.error, None, file.name, str(file.path))
        if judged.error is not None
        else None
    )
    if as_json:
        click.echo(json.dumps(_object(judged, failure)))
    else:
        _show(judged, failure, quiet=quiet)
    if expect and judged.verdict != expect:
        click.echo(f"lunabridge: {expect} was expected, {judged.verdict} it was", err=True)
        return 1
    return int(failure is not None)


def _judged(place: Place, job: Mapping[str, object], timeout_s: float) -> Judged | None:
    """Have the packet sent; return what became of it, None where Ctrl-C came first."""
    judged, ended = None, False
    for event in place.work("bridge.sending", job, timeout_s):
        if isinstance(event, Judged):
            judged = event
        ended = ended or isinstance(event, End)
    if place.interrupted:
        return None
    if judged is None or not ended:
        raise BridgeError("sending the packet did not reach its end")
    return judged


def _object(judged: Judged, failure: Finding | None) -> dict[str, object]:
    fields = asdict(judged)
    del fields["number"]
    fields["error"] = failure.message if failure else None
    return {**fields, "line": failure.line if failure else None}


def _show(judged: Judged, failure: Finding | None, *, quiet: bool) -> None:
    out = report.console(quiet=quiet)

    def line(*parts: tuple[str, str]) -> None:
        out.print(Text.assemble(*parts), soft_wrap=True)

    line((judged.verdict, _STYLES.get(judged.verdict, "bold red")), (f": {judged.sent}", ""))
    for one in judged.diff:
        line((f"  {one}", ""))
    if judged.diff:
        line((f"  arrived as {judged.arrived}", ""))
    for answer in judged.answers:
        line((f"  answer: {answer}", ""))
    if judged.arrived is None:
        line((f"  last seen at {judged.last_seen}", ""))
    if not judged.seen_by_policy:
        line(("  no hook of the policy saw it", ""))
    if failure:
        line((f"  {failure}", "bold red"))
