"""The guest's first process: runs commands and keeps files for the host.

It uses the standard library only, and of that only modules that cost nothing to
import, because every import is paid for at each boot under emulation. The host
side imports the frame format from here, so that there is one definition of it.

Each port `lab.N` serves one host session at a time. Process 1 waits on all ports
and forks a worker for the one on which a host speaks; the worker ends when that
host hangs up. Process 1 itself only reaps, and powers the machine off when the
port `lab.life` hangs up, which is how a guest never outlives its tool.

Frames are lines: a verb, then fields in base64, separated by one space.

    host to guest                           guest to host
    HELLO nonce                             HELLO nonce release uptime_s key
    EXEC argv env cwd terminal              STDOUT data | STDERR data
    STDIN data | EOF                        TAKEN size_bytes
    SIGNAL number | WINCH rows cols         EXIT status     (negative: a signal)
    PUT path mode, DATA..., END             OK | FAIL message
    GET path                                DATA..., OK | FAIL message
    TREE directory                          HAVE manifest | FAIL message
      then FILE path meta | LINK path target meta, DATA..., GONE path, END
    HALT

A HELLO ends whatever the port did before; the host opens with an empty line and
drops what it reads until its nonce comes back, so a client killed in the middle
of a frame harms nobody.
"""

import binascii
import errno
import fcntl
import os
import select
import signal
import sys
import time

CHUNK = 32768  # bytes of payload in one frame
WINDOW = 262144  # bytes of standard input under way to a command at most
LINE_LIMIT = 1 << 20  # a longer line is no frame
OUT_LIMIT = 1 << 19  # bytes queued for the host before the command has to wait
GRACE_S = 0.1  # how long output of a command that ended is waited for
GRACE_MAX_S = 1.0

RUN = "/run/lab"
ENVIRONMENT = {
    "HOME": "/root",
    "LANG": "C.UTF-8",
    "LUNABRIDGE_IN_LAB": "1",
    "PATH": RUN + "/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "PYTHONPATH": "/project",
    "PYTHONPYCACHEPREFIX": RUN + "/pycache",
    "USER": "root",
}


def encode(verb: str, *fields: bytes) -> bytes:
    """Return one frame."""
    parts = [verb.encode(), *(binascii.b2a_base64(field, newline=False) for field in fields)]
    return b" ".join(parts) + b"\n"


def decode(line: bytes) -> tuple[str, list[bytes]]:
    """Return verb and fields of one frame without its newline; raises ValueError."""
    verb, *fields = line.split(b" ")
    return verb.decode("ascii"), [binascii.a2b_base64(field) for field in fields]


def pack(items: list[str]) -> bytes:
    """Return strings as one field."""
    return b"".join(os.fsencode(item) + b"\0" for item in items)


def unpack(field: bytes) -> list[str]:
    """Return the strings that ``pack`` made a field of."""
    return [os.fsdecode(item) for item in field.split(b"\0")[:-1]]


class Lines:
    """Cuts a byte stream into lines; overlong ones are dropped."""

    def __init__(self) -> None:
        self._rest = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """Return the lines that ``data`` completes."""
        self._rest += data
        if b"\n" not in data:
            if len(self._rest) > LINE_LIMIT:
                self._rest = bytearray()
            return []
        *lines, rest = bytes(self._rest).split(b"\n")
        self._rest = bytearray(rest)
        return lines


class HungUp(Exception):
    """The host closed its end of the port."""


class Command:
    """A process the host started, with its pipes or its terminal."""

    def __init__(self, argv: list[str], env: dict[str, str], cwd: str, terminal: bytes) -> None:
        self.inbox = bytearray()
        self.eof = False
        self.status: int | None = None
        self.ended_s = 0.0
        self.quiet_s = 0.0
        self.terminal = -1
        if terminal:
            self._start_on_terminal(argv, env, cwd, terminal)
        else:
            self._start_on_pipes(argv, env, cwd)
        self.pidfd = os.pidfd_open(self.pid)
        for fd in {self.stdin, *self.outputs}:
            os.set_blocking(fd, False)

    def _start_on_pipes(self, argv: list[str], env: dict[str, str], cwd: str) -> None:
        stdin, stdout, stderr = os.pipe(), os.pipe(), os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            become(argv, env, cwd, lambda: redirect(stdin[0], stdout[1], stderr[1]))
        for fd in (stdin[0], stdout[1], stderr[1]):
            os.close(fd)
        self.stdin = stdin[1]
        self.outputs = {stdout[0]: "STDOUT", stderr[0]: "STDERR"}

    def _start_on_terminal(
        self, argv: list[str], env: dict[str, str], cwd: str, terminal: bytes
    ) -> None:
        master, slave = os.openpty()
        self.terminal = master
        self.resize(*map(int, terminal.split()))
        self.pid = os.fork()
        if self.pid == 0:
            become(argv, env, cwd, lambda: os.login_tty(slave))
        os.close(slave)
        self.stdin = master
        self.outputs = {master: "STDOUT"}

    def resize(self, rows: int, cols: int) -> None:
        """Tell the terminal its size in characters."""
        if self.terminal >= 0:
            size = b"".join(n.to_bytes(2, "little") for n in (rows, cols, 0, 0))
            fcntl.ioctl(self.terminal, 0x5414, size)  # TIOCSWINSZ

    def take_input(self) -> int:
        """Write what is queued for standard input; return the bytes written."""
        try:
            size = os.write(self.stdin, self.inbox[:65536])
        except BlockingIOError:
            return 0
        except OSError:  # nobody reads it any more: swallow the rest
            size = len(self.inbox)
        del self.inbox[:size]
        return size

    def close_input(self) -> None:
        """Let the command see the end of its standard input."""
        if self.stdin < 0:
            return
        if self.terminal >= 0:
            self.inbox += b"\x04"
        else:
            os.close(self.stdin)
            self.stdin = -1

    def read_output(self, fd: int) -> bytes | None:
        """Return what the command wrote to ``fd``; b"" at its end, None if nothing."""
        try:
            data = os.read(fd, CHUNK)
        except BlockingIOError:
            return None
        except OSError:  # a terminal without a process left
            data = b""
        if not data:
            del self.outputs[fd]
            if fd != self.terminal:
                os.close(fd)
        return data

    def reap(self) -> None:
        """Take the status of the process, which has ended."""
        _, status = os.waitpid(self.pid, 0)
        self.status = os.waitstatus_to_exitcode(status)
        self.ended_s = self.quiet_s = time.monotonic()

    def drained(self) -> bool:
        """Return whether an ended command's output is all there.

        A background child may hold the pipes open for ever, so their end is not
        waited for beyond a grace.
        """
        now = time.monotonic()
        return (
            not self.outputs
            or now - self.quiet_s > GRACE_S
            or now - self.ended_s > GRACE_MAX_S
        )

    def signal(self, number: int) -> None:
        """Send a signal to the command's process group."""
        if self.status is None:
            try:
                os.killpg(self.pid, number)
            except OSError:
                pass

    def close(self) -> None:
        """Close every descriptor; the process is left alone."""
        fds = {self.stdin, self.terminal, self.pidfd, *self.outputs} - {-1}
        for fd in fds:
            os.close(fd)

    def kill(self) -> None:
        """Kill every process of the command's session, and close."""
        for pid in session_members(self.pid):
            try:
                os.kill(pid, signal.SIGKILL)
            except OSError:
                pass
        if self.status is None:
            os.waitpid(self.pid, 0)
        self.close()


def session_members(sid: int) -> list[int]:
    """Return the processes of session ``sid``."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                if os.getsid(int(name)) == sid:
                    found.append(int(name))
            except OSError:
                pass
    return found


def redirect(stdin: int, stdout: int, stderr: int) -> None:
    """Make the descriptors the standard ones, in a session of its own."""
    os.setsid()
    os.dup2(stdin, 0)
    os.dup2(stdout, 1)
    os.dup2(stderr, 2)


def become(argv: list[str], env: dict[str, str], cwd: str, attach) -> None:  # type: ignore[no-untyped-def]
    """Turn this forked process into the command; never returns."""
    try:
        attach()
        os.closerange(3, 256)
        for number in (signal.SIGPIPE, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        os.chdir(cwd)
        os.execvpe(argv[0], argv, env)
    except OSError as error:
        what = error.filename or argv[0]
        os.write(2, f"lab: {os.fsdecode(what)}: {error.strerror}\n".encode())
        os._exit(127 if error.errno == errno.ENOENT else 126)
    finally:
        os._exit(126)


class Worker:
    """Serves one host on one port until it hangs up."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.lines = Lines()
        self.out = bytearray()
        self.command: Command | None = None
        self.task: Task | None = None

    def run(self) -> None:
        """Serve; returns when the host is gone."""
        try:
            while True:
                self.turn()
        except HungUp:
            pass
        finally:
            self.drop()

    def turn(self) -> None:
        """Wait for whatever comes next, and handle it."""
        ready = self.wait()
        if self.port in ready:
            self.handle_port(ready[self.port])
        command = self.command
        if command is None:
            return
        if command.stdin in ready and command.inbox:
            self.feed_input(command)
        for fd in [fd for fd in command.outputs if fd in ready]:
            self.forward(command, fd)
        if command.status is None and command.pidfd in ready:
            command.reap()
        if command.status is not None and command.drained():
            self.finish(command)

    def wait(self) -> dict[int, int]:
        """Poll everything that matters now; return the events of each descriptor."""
        poller = select.poll()
        poller.register(self.port, select.POLLIN | (select.POLLOUT if self.out else 0))
        timeout_ms = None
        if command := self.command:
            interest: dict[int, int] = {}
            if len(self.out) < OUT_LIMIT:
                interest = dict.fromkeys(command.outputs, select.POLLIN)
            if command.inbox and command.stdin >= 0:
                interest[command.stdin] = interest.get(command.stdin, 0) | select.POLLOUT
            if command.status is None:
                interest[command.pidfd] = select.POLLIN
            else:
                timeout_ms = int(GRACE_S * 1000) + 1
            for fd, events in interest.items():
                poller.register(fd, events)
        return dict(poller.poll(timeout_ms))

    def handle_port(self, events: int) -> None:
        if events & select.POLLHUP:
            raise HungUp
        if events & select.POLLOUT:
            self.flush()
        if events & select.POLLIN:
            try:
                data = os.read(self.port, 65536)
            except BlockingIOError:
                return
            if not data:
                raise HungUp
            for line in self.lines.feed(data):
                self.handle_line(line)

    def flush(self) -> None:
        try:
            size = os.write(self.port, self.out[:CHUNK])
        except BlockingIOError:
            return
        except OSError as error:
            raise HungUp from error
        del self.out[:size]

    def send(self, verb: str, *fields: bytes) -> None:
        self.out += encode(verb, *fields)

    def drop(self) -> None:
        """Forget whatever the session was doing."""
        if self.task:
            self.task.close()
            self.task = None
        if self.command:
            self.command.kill()
            self.command = None

    def handle_line(self, line: bytes) -> None:
        try:
            verb, fields = decode(line)
        except ValueError:
            return  # the torn frame of a client that died
        if verb == "HELLO" and len(fields) == 1:
            self.drop()
            self.out = bytearray(b"\n")  # ends the line an earlier session left torn
            facts = [os.uname().release, str(time.monotonic()), KEY]
            self.send("HELLO", fields[0], *(fact.encode() for fact in facts))
        elif self.task:
            self.work(verb, fields)
        elif handler := HANDLERS.get(verb):
            handler(self, *fields)

    def work(self, verb: str, fields: list[bytes]) -> None:
        """Go on with the transfer under way; a failure is said once, at its end."""
        task = self.task
        if task and task.step(verb, *fields):
            self.task = None
            task.close()
            if task.failure:
                self.send("FAIL", task.failure.encode())
            else:
                self.send("OK")

    def execute(self, argv: bytes, env: bytes, cwd: bytes, terminal: bytes) -> None:
        if self.command:
            self.command.kill()
        changes = dict(item.split("=", 1) for item in unpack(env))
        command_env = {**ENVIRONMENT, **changes}
        self.command = Command(unpack(argv), command_env, os.fsdecode(cwd), terminal)

    def take_stdin(self, data: bytes) -> None:
        if self.command and self.command.stdin >= 0 and self.command.status is None:
            self.command.inbox += data
        else:
            self.send("TAKEN", b"%d" % len(data))

    def take_eof(self) -> None:
        if self.command:
            self.command.eof = True
            if not self.command.inbox:
                self.command.close_input()

    def take_signal(self, number: bytes) -> None:
        if self.command:
            self.command.signal(int(number))

    def take_winch(self, rows: bytes, cols: bytes) -> None:
        if self.command:
            self.command.resize(int(rows), int(cols))

    def feed_input(self, command: Command) -> None:
        size = command.take_input()
        if size:
            self.send("TAKEN", b"%d" % size)
        if command.eof and not command.inbox:
            command.close_input()

    def forward(self, command: Command, fd: int) -> None:
        verb = command.outputs[fd]
        data = command.read_output(fd)
        if data:
            command.quiet_s = time.monotonic()
            self.send(verb, data)

    def finish(self, command: Command) -> None:
        self.send("EXIT", b"%d" % (command.status or 0))
        self.command = None
        command.close()

    def get(self, path: bytes) -> None:
        try:
            with open(path, "rb", buffering=0) as file:
                while data := file.read(CHUNK):
                    self.send("DATA", data)
        except OSError as error:
            self.send("FAIL", f"{os.fsdecode(path)}: {error.strerror}".encode())
        else:
            self.send("OK")

    def put(self, path: bytes, mode: bytes) -> None:
        self.task = Put(os.fsdecode(path), int(mode, 8))

    def tree(self, directory: bytes) -> None:
        tree = Tree(os.fsdecode(directory))
        if tree.failure:
            self.send("FAIL", tree.failure.encode())
            tree.close()
        else:
            self.task = tree
            self.send("HAVE", tree.manifest())


HANDLERS = {
    "EXEC": Worker.execute,
    "STDIN": Worker.take_stdin,
    "EOF": Worker.take_eof,
    "SIGNAL": Worker.take_signal,
    "WINCH": Worker.take_winch,
    "GET": Worker.get,
    "PUT": Worker.put,
    "TREE": Worker.tree,
    "HALT": lambda worker: power_off(),
}


class Incoming:
    """A file on its way in; it takes its place only when it is whole."""

    def __init__(self, path: str, mode: int) -> None:
        self.path = path
        self.scratch = f"{path}.lab-incoming"
        os.makedirs(os.path.dirname(path), exist_ok=True)
        self.fd = os.open(self.scratch, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
        os.fchmod(self.fd, mode)

    def write(self, data: bytes) -> None:
        while data:
            data = data[os.write(self.fd, data) :]

    def commit(self, mtime_ns: int | None = None) -> None:
        os.close(self.fd)
        if mtime_ns is not None:
            os.utime(self.scratch, ns=(mtime_ns, mtime_ns))
        os.replace(self.scratch, self.path)

    def abort(self) -> None:
        os.close(self.fd)
        os.unlink(self.scratch)


class Task:
    """A transfer from the host that takes several frames."""

    def __init__(self) -> None:
        self.failure = ""
        self.file: Incoming | None = None

    def step(self, verb: str, *fields: bytes) -> bool:
        """Handle one frame; return whether the transfer is complete."""
        if verb == "END":
            self.attempt(self.end)
            return True
        if not self.failure:
            self.attempt(self.frame, verb, *fields)
        return False

    def attempt(self, action, *fields) -> None:  # type: ignore[no-untyped-def]
        try:
            action(*fields)
        except OSError as error:
            where = f"{os.fsdecode(error.filename)}: " if error.filename else ""
            self.failure = f"{where}{error.strerror}"

    def frame(self, verb: str, *fields: bytes) -> None:
        """Handle a frame that is not the last one."""
        if verb == "DATA" and self.file:
            self.file.write(fields[0])

    def end(self) -> None:
        """Complete the transfer."""

    def close(self) -> None:
        """Give up what was not completed."""
        if self.file:
            self.file.abort()
            self.file = None


class Put(Task):
    """One file."""

    def __init__(self, path: str, mode: int) -> None:
        super().__init__()
        self.attempt(self.begin, path, mode)

    def begin(self, path: str, mode: int) -> None:
        self.file = Incoming(path, mode)

    def end(self) -> None:
        if self.file:
            file, self.file = self.file, None
            file.commit()


class Tree(Task):
    """A directory that mirrors one of the host, read-only for everyone else."""

    def __init__(self, directory: str) -> None:
        super().__init__()
        self.directory = directory
        slug = directory.strip("/").replace("/", "-")
        self.state = f"{RUN}/tree-{slug}"
        self.lock = os.open(f"{self.state}.lock", os.O_RDWR | os.O_CREAT)
        fcntl.flock(self.lock, fcntl.LOCK_EX)
        self.have = self.read_state()
        self.meta = ""
        self.writable = False
        if not self.have and not os.path.exists(self.state):
            os.makedirs(directory, exist_ok=True)
            self.mount("-t", "tmpfs", "-o", "ro,mode=0755", "tree")

    def read_state(self) -> dict[str, str]:
        try:
            with open(self.state, "rb") as file:
                items = unpack(file.read())
        except OSError:
            return {}
        return dict(zip(items[::2], items[1::2], strict=True))

    def manifest(self) -> bytes:
        """Return path and meta of every file there is, one after the other."""
        return pack([item for pair in self.have.items() for item in pair])

    def mount(self, *args: str) -> None:
        argv = ["busybox", "mount", *args, self.directory]
        if os.spawnv(os.P_WAIT, "/usr/bin/busybox", argv) != 0:
            self.failure = f"cannot mount {self.directory}"

    def unlock_tree(self) -> None:
        if not self.writable:
            self.mount("-o", "remount,rw")
            self.writable = True

    def frame(self, verb: str, *fields: bytes) -> None:
        self.unlock_tree()
        if verb == "DATA":
            super().frame(verb, *fields)
            return
        self.finish_file()
        name = os.fsdecode(fields[0])
        path = f"{self.directory}/{name}"
        if verb == "FILE":
            self.meta = fields[1].decode()
            self.file = Incoming(path, int(self.meta.split()[0], 8))
            self.have[name] = self.meta
        elif verb == "LINK":
            self.link(path, fields[1])
            self.have[name] = fields[2].decode()
        elif verb == "GONE":
            self.have.pop(name, None)
            self.remove(path)

    def link(self, path: str, target: bytes) -> None:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        if os.path.lexists(path):
            os.unlink(path)
        os.symlink(target, path)

    def remove(self, path: str) -> None:
        try:
            os.unlink(path)
        except FileNotFoundError:
            pass
        parent = os.path.dirname(path)
        while parent != self.directory and not os.listdir(parent):
            os.rmdir(parent)
            parent = os.path.dirname(parent)

    def finish_file(self) -> None:
        if self.file:
            file, self.file = self.file, None
            file.commit(int(self.meta.split()[2]))

    def end(self) -> None:
        if not self.failure:
            self.finish_file()
            scratch = f"{self.state}.new"
            with open(scratch, "wb") as file:
                file.write(self.manifest())
            os.replace(scratch, self.state)

    def close(self) -> None:
        super().close()
        if self.writable:
            self.mount("-o", "remount,ro")
            self.writable = False
        os.close(self.lock)


def power_off() -> None:
    """End the machine at once."""
    with open("/proc/sysrq-trigger", "w", encoding="ascii") as trigger:
        trigger.write("o")


def find_ports() -> dict[str, str]:
    """Return the device of each virtio-serial port, by the port's name."""
    found = {}
    base = "/sys/class/virtio-ports"
    for device in os.listdir(base):
        with open(f"{base}/{device}/name", encoding="ascii") as file:
            found[file.read().strip()] = f"/dev/{device}"
    return found


class Init:
    """Process 1: starts workers, reaps, and ends the machine with its tool."""

    LIFE_GRACE_S = 10.0

    def __init__(self) -> None:
        self.workers: dict[int, int] = {}  # process to port
        self.epoll = select.epoll()
        self.ports: list[int] = []
        self.life = -1
        self.alive = False
        for name, device in find_ports().items():
            fd = os.open(device, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
            if name == "lab.life":
                self.life = fd
            else:
                self.ports.append(fd)
            # Edge-triggered: a port without a host reports its hang-up for ever.
            self.epoll.register(fd, select.EPOLLIN | select.EPOLLET)
        self.wake, wake_write = os.pipe()
        os.set_blocking(wake_write, False)
        os.set_blocking(self.wake, False)
        signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        self.epoll.register(self.wake, select.EPOLLIN)

    def run(self) -> None:
        """Serve for as long as the machine lives."""
        deadline_s = time.monotonic() + self.LIFE_GRACE_S
        while True:
            for fd, events in self.epoll.poll(None if self.alive else 0.5):
                if fd == self.wake:
                    self.reap()
                elif events & select.EPOLLIN and fd not in self.workers.values():
                    self.start_worker(fd)
            if self.life >= 0:
                self.watch_life(deadline_s)

    def watch_life(self, deadline_s: float) -> None:
        """End the machine when its tool is gone, or never was there."""
        poller = select.poll()
        poller.register(self.life, 0)
        gone = any(events & select.POLLHUP for _, events in poller.poll(0))
        if gone and (self.alive or time.monotonic() > deadline_s):
            power_off()
        self.alive = not gone

    def start_worker(self, port: int) -> None:
        pid = os.fork()
        if pid:
            self.workers[pid] = port
            return
        status = 1
        try:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            self.epoll.close()
            Worker(port).run()
            status = 0
        except BaseException as error:  # noqa: BLE001 - it must not become process 1
            complain(error)
        finally:
            os._exit(status)

    def reap(self) -> None:
        try:
            while os.read(self.wake, 512):
                pass
        except BlockingIOError:
            pass
        while True:
            try:
                pid, _ = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if pid in self.workers:
                port = self.workers.pop(pid)
                # Registering anew reports what arrived in the meantime.
                self.epoll.unregister(port)
                self.epoll.register(port, select.EPOLLIN | select.EPOLLET)


def complain(error: BaseException) -> None:
    """Put an internal error on the console, where the host looks for it."""
    import traceback

    text = "".join(traceback.format_exception(error))
    with open("/dev/console", "w", encoding="utf-8") as console:
        console.write(f"lab: agent: {text}")


KEY = ""


def main() -> None:
    """Run as process 1."""
    global KEY
    KEY = os.environ.get("lab_key", "")
    init = Init()
    sys.stdout.write("lab: agent\n")
    sys.stdout.flush()
    init.run()


if __name__ == "__main__":
    try:
        main()
    except BaseException as error:  # noqa: BLE001 - its death would be a panic without a word
        complain(error)
        raise
