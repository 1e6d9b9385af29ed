"""Kernel tests, seen from the host: hand them to labs, bring their reports back.

The tests of a file form a group, which one guest runs; a guest takes the next group
when it has done one, so with several guests the files are shared among them. Where a
guest dies or hangs, the test that ran fails with the console in its report, and the
rest of its group goes to a new guest. A guest that is not needed any more is asked what
memory its kernel has lost, which takes too long to be done for each group; the last
test that ran there fails for it.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict, deque
from collections.abc import Callable, Generator, Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from time import monotonic
from typing import Any, Literal

import pytest

from bridge import module
from bridge.errors import BridgeError, GuestCrashed, LabError, LabTimeout, UsageError
from bridge.lab import Lab, Options
from bridge.lab.kernels import DEFAULT_KERNEL, SANITIZER, options_for
from bridge.testing import artefacts
from bridge.testing.leftout import LeftOut
from bridge.testing.plugin import fail_on_skip
from bridge.testing.repository import Repository
from bridge.testing.setting import Setting

Event = dict[str, Any]
# Seconds that one guest is listened to while others may have something to say.
_TURN_S = 0.1


@dataclass(slots=True)
class Group:
    """Tests that one guest runs in this order.

    ``alone`` needs a guest of its own, ``upset`` whose kernel it upsets on purpose.
    ``obstacle`` is why the guest's pytest cannot run them, which it says before the first.
    """

    nodeids: list[str]
    alone: bool = False
    upset: bool = False
    finished: int = 0
    collected: bool = False
    obstacle: str = ""


@dataclass(frozen=True, slots=True)
class Trouble:
    """A failure that the guest's pytest cannot have reported, in that phase of a test."""

    text: str
    when: Literal["call", "teardown"] = "call"


@dataclass(slots=True)
class Outcome:
    """What is known of a test: reports that wait to be shown, and whether it is over."""

    reports: deque[Event | Trouble] = field(default_factory=deque)
    over: bool = False


@dataclass(frozen=True, slots=True)
class Materials:
    """What a guest gets besides the bridge: files of a repository, and how to run them."""

    repository: Repository
    files: list[str]
    setting: dict[str, Any]


class Guest:
    """A lab of its own, whose pytest runs one group after another."""

    def __init__(self, options: Options, timeout_s: float, materials: Materials) -> None:
        self.group: Group | None = None
        self._timeout_s = timeout_s
        self._setting = materials.setting
        self._heard = monotonic()
        self._lines: deque[bytes] = deque()
        self._rest = b""
        repository = materials.repository
        with ExitStack() as stack:
            self.lab = stack.enter_context(Lab.boot(options))
            module.install(self.lab)
            if repository.is_mirrored:
                self.lab.synchronise(repository.root, repository.guest_root, materials.files)
            self._session = stack.enter_context(
                self.lab.popen(["python3", "-m", "bridge.testing.guest"])
            )
            self._session.on_stdout = self._receive
            self._stack = stack.pop_all()

    def start(self, group: Group) -> None:
        """Have a group run."""
        self.group = group
        self._heard = monotonic()
        self._ask(request="tests", nodeids=group.nodeids, setting=self._setting)

    def look_for_leaks(self) -> None:
        """Have the guest say what memory its kernel has lost, as an event."""
        self._ask(request="leaks")

    def events(self, wait_s: float) -> list[Event]:
        """Return what happened, having waited for it up to ``wait_s`` seconds.

        Raises LabTimeout once the guest has said nothing for too long, GuestCrashed.
        """
        if not self._lines:
            self._session.pump(wait_s)
        if self._lines:
            self._heard = monotonic()
        elif self._session.returncode is not None:
            raise LabError(f"pytest ended in the guest, status {self._session.returncode}")
        elif monotonic() - self._heard > self._timeout_s:
            raise LabTimeout(f"the guest said nothing for {self._timeout_s:g} s")
        found = [json.loads(line) for line in self._lines]
        self._lines.clear()
        return found

    def printed(self) -> str:
        """What the guest's pytest printed."""
        return self._session.stderr.decode(errors="replace")

    def explain(self) -> str:
        """What the guest's pytest printed, and the end of the console."""
        return f"{self.printed()}\n--- console ---\n{self.lab.console_tail()}"

    def close(self) -> None:
        """End pytest and the lab."""
        self._stack.close()

    def _ask(self, **request: Any) -> None:
        self._session.write(json.dumps(request).encode() + b"\n")

    def _receive(self, data: bytes) -> None:
        *lines, self._rest = (self._rest + data).split(b"\n")
        self._lines.extend(lines)


class Remote:
    """The plugin that runs kernel tests in labs."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._timeout_s = float(config.getini("lunabridge_timeout_s"))
        self._kernel: str = (
            config.getoption("--kernel") or config.getini("lunabridge_kernel") or DEFAULT_KERNEL
        )
        try:
            self._options = options_for(self._kernel)
        except UsageError as error:
            raise pytest.UsageError(f"--kernel: {error}") from None
        self._repository = Repository.at(config.rootpath)
        self._materials = Materials(self._repository, [], {})
        if (guests := config.getoption("--guests")) < 1:
            raise pytest.UsageError("--guests: at least 1")
        self._guests: list[Guest | None] = [None] * guests
        self._queue: deque[Group] = deque()
        self._outcomes: defaultdict[str, Outcome] = defaultdict(Outcome)
        self._lossy: dict[str, str] = {}
        release = DEFAULT_KERNEL if self._kernel == SANITIZER else self._kernel
        left_out = LeftOut(release, sanitizer=self._kernel == SANITIZER)
        config.pluginmanager.register(left_out, "lunabridge-left-out")

    def pytest_report_header(self) -> str:
        """Say where kernel tests will run."""
        guests = len(self._guests)
        shared = f", in {guests} guests" if guests > 1 else ""
        return f"lunabridge: kernel tests run in the lab, kernel {self._kernel}{shared}"

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Note what the guests are to run, and what they need for it."""
        items = [item for item in session.items if _is_kernel(item)]
        if items and not session.config.getoption("collectonly"):
            self._materials = _materials(session.config, self._repository, items)
        self._queue.extend(_groups(items))
        self._lossy = {
            item.nodeid: mark.args[0]
            for item in items
            for mark in item.iter_markers("expects_leak")
        }

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> bool | None:
        """Run a kernel test in a guest; others run here."""
        if not _is_kernel(item):
            return None
        item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
        for report in self._reports(item):
            item.ihook.pytest_runtest_logreport(report=report)
        item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
        return True

    def pytest_sessionfinish(self) -> None:
        """End the labs."""
        for slot in range(len(self._guests)):
            self._drop(slot)

    def _reports(self, item: pytest.Item) -> Generator[pytest.TestReport, None, None]:
        outcome = self._outcomes[item.nodeid]
        while outcome.reports or not outcome.over:
            while outcome.reports:
                report = outcome.reports.popleft()
                if isinstance(report, Trouble):
                    yield _failure(item, report)
                else:
                    yield _heard(item.config, _deserialised(item.config, report))
            if not outcome.over:
                self._take_turns()

    def _take_turns(self) -> None:
        """Give every idle guest a group, and hear what the busy ones say."""
        for slot in range(len(self._guests)):
            if self._is_idle(slot) and self._queue:
                self._assign(slot, self._queue.popleft())
        for slot, guest in enumerate(self._guests):
            if guest and guest.group:
                self._listen(slot, guest, guest.group)

    def _is_idle(self, slot: int) -> bool:
        guest = self._guests[slot]
        return guest is None or guest.group is None

    def _assign(self, slot: int, group: Group) -> None:
        if group.alone:
            self._drop(slot)
        try:
            guest = self._guests[slot] or Guest(self._options, self._timeout_s, self._materials)
            self._guests[slot] = guest
            guest.start(group)
        except BridgeError as error:
            self._give_up(slot, group, error)

    def _listen(self, slot: int, guest: Guest, group: Group) -> None:
        try:
            for event in guest.events(_TURN_S):
                self._take(slot, guest, group, event)
        except BridgeError as error:
            self._give_up(slot, group, error)

    def _take(self, slot: int, guest: Guest, group: Group, event: Event) -> None:
        match event["event"]:
            case "collected":
                group.collected = True
            case "uncollected":
                group.obstacle = _obstacle(event["nodeid"], event["text"])
            case "report":
                artefacts.fetch(event["report"], guest.lab.get, self._new_directory)
                self._outcomes[event["nodeid"]].reports.append(event["report"])
            case "finish":
                self._finish(group, event["nodeid"])
            case "end":
                self._end(slot, guest, group, spent=event["spent"])
            case "leaks":
                self._judge_leaks(slot, group, event["reports"])

    def _new_directory(self, name: str) -> Path:
        """Return a new directory where pytest keeps those of its last few runs."""
        made: Path = self._config._tmp_path_factory.mktemp(name)  # type: ignore[attr-defined]
        return made

    def _finish(self, group: Group, nodeid: str) -> None:
        """Note that a test has run; the last is over when the guest's session is."""
        group.finished += 1
        self._outcomes[nodeid].over = nodeid != group.nodeids[-1]

    def _end(self, slot: int, guest: Guest, group: Group, *, spent: bool) -> None:
        """Note that the group has run; a test it did not finish has failed."""
        if not group.collected:
            self._fail_all(slot, guest, group)
        elif group.finished < len(group.nodeids):
            self._give_up(slot, group, LabError("the guest's pytest ended early"))
        elif group.upset:  # what such a kernel has lost says nothing
            self._outcomes[group.nodeids[-1]].over = True
            self._drop(slot)
        elif group.alone or spent or not self._queue or self._queue[0].alone:
            guest.look_for_leaks()
        else:
            guest.group = None
            self._outcomes[group.nodeids[-1]].over = True

    def _fail_all(self, slot: int, guest: Guest, group: Group) -> None:
        """Fail tests that the guest's pytest cannot run, nor could another's."""
        obstacle = group.obstacle or _refusal(guest.printed())
        for nodeid in group.nodeids:
            self._outcomes[nodeid].reports.append(Trouble(obstacle))
            self._outcomes[nodeid].over = True
        self._drop(slot)

    def _judge_leaks(self, slot: int, group: Group, reports: list[str]) -> None:
        """End the last group of a guest, whose last test fails for what the guest lost."""
        last = group.nodeids[-1]
        outcome, expected = self._outcomes[last], self._lossy.get(last)
        if expected and not any(expected in report for report in reports):
            outcome.reports.append(Trouble(f"no lost memory names {expected}", "teardown"))
        elif reports and not expected:
            outcome.reports.append(
                Trouble("\n".join(["lost since the guest began:", *reports]), "teardown")
            )
        outcome.over = True
        self._drop(slot)

    def _give_up(self, slot: int, group: Group, error: BridgeError) -> None:
        """Fail the test that ran; what comes after it goes to another guest."""
        victim, *rest = [name for name in group.nodeids if not self._outcomes[name].over]
        trouble = Trouble(_explanation(error, self._guests[slot]))
        self._outcomes[victim].reports.append(trouble)
        self._outcomes[victim].over = True
        if rest:
            self._queue.appendleft(Group(rest, group.alone, group.upset))
        self._drop(slot)

    def _drop(self, slot: int) -> None:
        guest, self._guests[slot] = self._guests[slot], None
        if guest is not None:
            guest.close()


def _is_kernel(item: pytest.Item) -> bool:
    return item.get_closest_marker("kernel") is not None


def _groups(items: Iterable[pytest.Item]) -> list[Group]:
    """Return the tests by file, and those that need a guest of their own one by one."""

    def key(item: pytest.Item) -> tuple[str, str, bool]:
        marker = item.get_closest_marker("kernel")
        alone = marker is not None and marker.kwargs.get("alone", False)
        upset = alone and item.get_closest_marker("expects_splat") is not None
        return item.nodeid.partition("::")[0], item.nodeid if alone else "", upset

    return [
        Group([item.nodeid for item in members], bool(lone), upset)
        for (_, lone, upset), members in groupby(items, key)
    ]


def _materials(
    config: pytest.Config, repository: Repository, items: list[pytest.Item]
) -> Materials:
    """Return what the guests need; raises pytest.UsageError where they cannot have it."""
    tests = {item.path for item in items}
    for path in tests:
        if repository.in_guest(path) is None:
            raise pytest.UsageError(
                f"{path} is not below the rootdir {repository.root}, so the lab does not have"
                " it: leave out --rootdir, or run pytest where the tests are"
            )
    others = _conftests(config) | ({config.inipath} if config.inipath else set())
    needed = tests | {path for path in others if repository.in_guest(path)}
    try:
        files = repository.files(needed) if repository.is_mirrored else []
    except UsageError as error:
        raise pytest.UsageError(str(error)) from None
    return Materials(repository, files, Setting.of(config, repository).as_json())


def _conftests(config: pytest.Config) -> set[Path]:
    files = (getattr(plugin, "__file__", None) for plugin in config.pluginmanager.get_plugins())
    return {Path(file) for file in files if file and Path(file).name == "conftest.py"}


def _obstacle(nodeid: str, text: str) -> str:
    """Return why a file cannot be collected in the guest, the cause first."""
    causes = [line.removeprefix("E").strip() for line in text.splitlines() if line[:1] == "E"]
    cause = causes[-1] if causes else text.partition("\n")[0]
    return (
        f"{nodeid or 'a conftest.py'} cannot be loaded in the lab: {cause}\n"
        "The lab has Python's standard library, pytest, scapy, pyroute2, bcc and the files of"
        f" this repository that git does not ignore.\n\n{text}"
    )


def _refusal(printed: str) -> str:
    """Return why the guest's pytest did not begin, the cause first."""
    lines = [line for line in printed.splitlines() if line.strip()] or ["it says nothing"]
    errors = [line for line in lines if line.startswith("ERROR: ")]
    return f"pytest in the lab ran no test: {(errors or lines)[-1]}\n{printed}"


def _heard(config: pytest.Config, report: pytest.TestReport) -> pytest.TestReport:
    """Return the report; where nothing is captured (-s), what the test printed is printed."""
    if config.getoption("capture") != "no":
        return report
    printed = {f"Captured {stream} {report.when}" for stream in ("stdout", "stderr")}
    for title, text in report.sections:
        if title in printed:
            sys.stdout.write(text)
    report.sections = [one for one in report.sections if not one[0].startswith("Captured std")]
    return report


def _deserialised(config: pytest.Config, data: Event) -> pytest.TestReport:
    restore: Callable[..., Any] = config.hook.pytest_report_from_serializable
    report: pytest.TestReport = restore(config=config, data=data)
    if isinstance(report.longrepr, list):  # a skip's, which JSON made of a tuple
        report.longrepr = tuple(report.longrepr)
    return fail_on_skip(config, report)


def _explanation(error: BridgeError, guest: Guest | None) -> str:
    if isinstance(error, GuestCrashed):
        return f"the guest crashed: {error}\n--- console ---\n{error.console}"
    return f"{error}\n{guest.explain()}" if guest else str(error)


def _failure(item: pytest.Item, trouble: Trouble) -> pytest.TestReport:
    return pytest.TestReport(
        nodeid=item.nodeid,
        location=item.location,
        keywords={},
        outcome="failed",
        longrepr=_shown(trouble.text),
        when=trouble.when,
    )


def _shown(text: str) -> Any:
    """Return what pytest shows of a failure with this text; its summary has the first line."""
    try:
        pytest.fail(text, pytrace=False)
    except pytest.fail.Exception:
        return pytest.ExceptionInfo.from_current().getrepr(style="value")
