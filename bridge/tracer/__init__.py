"""Proof, from the kernel's own tracepoints and functions, of how a policy ran.

Create and stop runtimes and send packets inside ``with Tracer() as tracer``, then
``prove(tracer.finish(), expected=sent).require()``.
"""

from bridge.tracer.proof import (
    Expected,
    Explained,
    Outcome,
    Proof,
    ProofError,
    Property,
    Violation,
    prove,
)
from bridge.tracer.session import Tracer
from bridge.tracer.trace import (
    Allocation,
    Coverage,
    Event,
    HookCount,
    Kind,
    Leak,
    Losses,
    Memory,
    Trace,
)

__all__ = [
    "Allocation",
    "Coverage",
    "Event",
    "Expected",
    "Explained",
    "HookCount",
    "Kind",
    "Leak",
    "Losses",
    "Memory",
    "Outcome",
    "Proof",
    "ProofError",
    "Property",
    "Trace",
    "Tracer",
    "Violation",
    "prove",
]
