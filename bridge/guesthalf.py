"""The frame of a verb's guest half: a job comes in, events go out.

``python3 -m bridge.demo`` and its like read one JSON object from standard input and
write one JSON object per event to standard output.
"""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable, Mapping
from typing import Any

from bridge.errors import BridgeError
from bridge.events import Emitter, failure

_INTERRUPTED = 130


def main(work: Callable[[Emitter, Mapping[str, Any]], None]) -> int:
    """Do the work of the job on standard input; return the exit status.

    Errors of the bridge become an event, others a traceback on standard error.
    """
    # A shell starts background jobs with SIGINT ignored; here it is how we are ended.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    emit = Emitter(sys.stdout)
    try:
        work(emit, json.loads(sys.stdin.read() or "{}"))
    except KeyboardInterrupt:
        return _INTERRUPTED
    except BridgeError as error:
        emit(failure(error))
        return error.exit_status
    return 0
