"""The process that keeps a lab up after `lunabridge lab up` has returned.

It is detached (double fork, own session), holds the machine as its child, which
the kernel kills with it, and removes the run directory when the machine ends.
Until the lab answers, `lab up` and the supervisor hold the two ends of a socket;
when `lab up` dies first, the supervisor gives up.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
from collections.abc import Callable
from dataclasses import asdict
from typing import NoReturn

from bridge.errors import GuestCrashed, LabError, LabTimeout
from bridge.lab import machine
from bridge.lab.acceleration import choose
from bridge.lab.channel import Channel
from bridge.lab.console import Console
from bridge.lab.machine import Boot, Options
from bridge.lab.progress import Progress, silent, to_stderr
from bridge.lab.rundir import RunDir, remove_stale
from bridge.lab.running import Facts, Running, prepare
from bridge.lab.saved import Starter, restore_or_boot, store_for

_DOWN_S = 10.0
_TRIM_MS = 5000


class _EndedError(Exception):
    """The supervisor was told to end."""


def up(name: str, options: Options, progress: Progress = to_stderr) -> Facts:
    """Boot a lab that stays up; return its facts once it answers.

    Raises LabError where one of that name is up already, and what a boot raises.
    """
    remove_stale()
    boot = prepare(options, progress)
    acceleration = choose(options, boot, progress)
    directory = RunDir(name)
    lock = directory.claim()
    near, far = socket.socketpair()
    child = os.fork()
    if child == 0:
        near.close()
        _detach(lambda: _supervise(directory, options, boot, acceleration, far))
    far.close()
    os.close(lock)
    os.waitpid(child, 0)
    with near:
        return _await_ready(near)


def down(name: str) -> None:
    """End a lab; raises LabError where none of that name is up."""
    directory = RunDir(name)
    if not directory.is_alive():
        raise LabError(f"no lab {name!r} is up", cure="lunabridge lab status lists what is")
    try:
        with directory.connect("control") as control:
            control.sendall(b"down\n")
    except OSError:
        pass  # it is just coming up or going down
    if not directory.wait_gone(_DOWN_S):
        raise LabTimeout(f"the lab {name!r} did not end within {_DOWN_S:g} s")


def _await_ready(near: socket.socket) -> Facts:
    message = b""
    while data := near.recv(65536):
        message += data
    if not message:
        raise LabError("the lab's supervisor died")
    report = json.loads(message)
    match report.pop("kind"):
        case "ready":
            return Facts(**report)
        case "GuestCrashed":
            raise GuestCrashed(**report)
        case "LabTimeout":
            raise LabTimeout(report["message"], cure=report["cure"])
        case _:
            raise LabError(report["message"], cure=report["cure"])


def _detach(work: Callable[[], None]) -> NoReturn:
    """Run ``work`` in a grandchild without terminal, standard streams or parent."""
    try:
        os.setsid()
        if os.fork() == 0:
            null = os.open(os.devnull, os.O_RDWR)
            for fd in (0, 1, 2):
                os.dup2(null, fd)
            os.chdir("/")
            work()
    finally:
        os._exit(0)


def _supervise(
    directory: RunDir, options: Options, boot: Boot, acceleration: str, parent: socket.socket
) -> None:
    """Keep the lab up, and leave nothing when it ends."""
    wake, wake_write = os.pipe()
    os.set_blocking(wake_write, False)
    signal.set_wakeup_fd(wake_write)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: None)
    running: Running | None = None

    def alive() -> None:
        _end_with(parent, wake)

    try:
        console = _open_console(directory)
        control = directory.listen("control")
        ports = [directory.listen(f"port{number}") for number in range(machine.PORTS)]

        facts: list[Facts] = []

        def start(saved: int | None) -> Running:
            started = Running(
                options, boot, acceleration, ports, console, listening=True, saved=saved
            )
            facts.append(_greet(directory, started, alive))
            return started

        starter = Starter(start, lambda: directory.connect("port0"), alive, silent)
        running = restore_or_boot(store_for(options, boot, acceleration), starter)
        for port in ports:
            port.close()
        _say_ready(directory, facts[-1], parent)
        _serve(running, control, wake)
    except _EndedError:
        pass
    except LabError as error:
        _report(parent, error)
    finally:
        if running:
            running.end()
        directory.remove()


def _open_console(directory: RunDir) -> Console:
    flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
    return Console(os.open(directory.path / "console.log", flags, 0o600))


def _end_with(parent: socket.socket, wake: int) -> None:
    """Give up where `lab up` died or a signal came; nothing else makes these readable."""
    ready, _, _ = select.select([parent.fileno(), wake], [], [], 0)
    if ready:
        raise _EndedError


def _greet(directory: RunDir, running: Running, alive: Callable[[], None]) -> Facts:
    """Wait for the agent; a machine that does not come so far is ended."""
    try:
        with directory.connect("port0") as sock:
            facts = running.greet(Channel(sock), alive)
    except BaseException:
        running.end()
        raise
    return facts


def _say_ready(directory: RunDir, facts: Facts, parent: socket.socket) -> None:
    directory.write_facts(facts)
    with parent:
        parent.sendall(json.dumps({"kind": "ready", **asdict(facts)}).encode())


def _report(parent: socket.socket, error: LabError) -> None:
    report = {"kind": type(error).__name__, "message": error.message, "cure": error.cure}
    if isinstance(error, GuestCrashed):
        report["console"] = error.console
    try:
        with parent:
            parent.sendall(json.dumps(report).encode())
    except OSError:
        pass  # nobody is there to be told


def _serve(running: Running, control: socket.socket, wake: int) -> None:
    """Wait for the machine's end or a request to end it."""
    poller = select.poll()
    pidfd = os.pidfd_open(running.process.pid)
    for fd in (pidfd, control.fileno(), wake):
        poller.register(fd, select.POLLIN)
    while True:
        ready = {fd for fd, _ in poller.poll(_TRIM_MS)}
        running.console.trim()
        if pidfd in ready or wake in ready:
            return
        if control.fileno() in ready and _wants_down(control):
            return


def _wants_down(control: socket.socket) -> bool:
    client, _ = control.accept()
    with client:
        client.settimeout(1.0)
        try:
            return client.recv(16) == b"down\n"
        except OSError:
            return False
