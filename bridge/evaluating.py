"""The guest half of `lunabridge repl`: a runtime that evaluates what it is given.

The first line of input is the job, {"module": PATH or null}; each other one is a request,
{"chunk": TEXT}, or {} to ask what is loaded. The answer to a chunk is {"status", "output",
"message"}, where the status is ok, more (the chunk is not complete), error, or lost: the
chunk exceeded a limit of the kernel's, and took its runtime along.

The runtime lives in a network namespace that is gone as soon as this process is, however
it ends, and the runtime with it.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bridge.errors import BridgeError, LuaError
from bridge.events import failure, to_json

if TYPE_CHECKING:
    from bridge.lunatik import Lunatik, Runtime

_SCRIPT = Path(__file__).with_name("repl.lua")


class Evaluator:
    """Evaluates chunks in a runtime, and in a new one where that is lost."""

    def __init__(self, lunatik: Lunatik, netns: str) -> None:
        self._lunatik = lunatik
        self._netns = netns
        self._runtime = self._new()

    def evaluate(self, chunk: str) -> dict[str, str]:
        """Run a chunk, unless it is incomplete or wrong; return what came of it."""
        try:
            answer = self._runtime.resume(os.fsencode(chunk))
        except LuaError as error:
            self._runtime.stop()
            self._runtime = self._new()
            return {"status": "lost", "output": "", "message": str(error)}
        assert isinstance(answer, tuple)
        texts = [one.decode(errors="replace") for one in answer if isinstance(one, bytes)]
        return dict(zip(("status", "output", "message"), texts, strict=True))

    def close(self) -> None:
        """Stop the runtime."""
        self._runtime.stop()

    def _new(self) -> Runtime:
        return self._lunatik.runtime("repl", source=_SCRIPT.read_bytes(), netns=self._netns)


@contextmanager
def passing_namespace() -> Iterator[str]:
    """Yield the path of a network namespace that does not outlive this process."""
    pipe = subprocess.PIPE
    # It ends when its input does, which is when this process ends.
    argv = ["unshare", "--net", "--", "sh", "-c", "echo made; exec cat >/dev/null"]
    with subprocess.Popen(argv, stdin=pipe, stdout=pipe, start_new_session=True) as holder:
        assert holder.stdout is not None
        if not holder.stdout.readline():
            raise BridgeError("no network namespace could be made")
        yield f"/proc/{holder.pid}/ns/net"


def _answer(values: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(values) + "\n")
    sys.stdout.flush()


def main() -> int:
    """Answer requests until the input ends; return the exit status."""
    # A signal ends what a chunk waits for, not this process.
    signal.signal(signal.SIGINT, lambda *_: None)
    job = json.loads(sys.stdin.readline())
    try:
        _serve(Path(job["module"]) if job.get("module") else None)
    except BridgeError as error:
        _answer(to_json(failure(error)))
        return error.exit_status
    return 0


def _serve(module: Path | None) -> None:
    from bridge.lunatik import Lunatik  # noqa: PLC0415 (slow to import)

    with Lunatik.load(module) as lunatik, passing_namespace() as netns:
        evaluator = Evaluator(lunatik, netns)
        try:
            for line in sys.stdin:
                request = json.loads(line)
                chunk = request.get("chunk")
                _answer(_loaded(lunatik) if chunk is None else evaluator.evaluate(chunk))
        finally:
            evaluator.close()


def _loaded(lunatik: Lunatik) -> dict[str, str]:
    return {"lua": lunatik.info().lua_version, "linux": os.uname().release}


if __name__ == "__main__":
    sys.exit(main())
