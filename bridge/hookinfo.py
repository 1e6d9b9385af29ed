"""What the kernel counts at a hook."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

_RULES = {0: "drop", 1: "accept"}


@dataclass(frozen=True, slots=True)
class HookInfo:
    """A hook in force and what it has counted, on all CPUs and since it came into force.

    A script that takes over goes on counting where it has a hook at the same place.
    ``packets`` are those it gave a verdict for: accepted, dropped or queued, by the
    callback or, for ``errors`` and ``reentered``, by the rule ``on_error``. Errors are
    callbacks that failed, ``budget_hits`` those of them that ran too long; reentered
    are packets that came while their CPU was in the Lua state that should see them.

    ``time_ns`` and ``histogram`` are taken while the module's parameter timing is on.
    The histogram counts callbacks: item n those of at least 2**n and less than
    2**(n + 1) ns, where the first also has those below and the last those above; it
    is empty when none was timed. ``ifindex`` is None unless the hook is at a device,
    ``mark`` unless it sees only packets with that mark.
    """

    runtime_id: int
    runtime_name: str
    number: int
    pf: int
    hooknum: int
    priority: int
    ifindex: int | None
    mark: int | None
    on_error: str
    packets: int
    accepted: int
    dropped: int
    queued: int
    errors: int
    budget_hits: int
    reentered: int
    time_ns: int
    histogram: tuple[int, ...]

    @classmethod
    def of(cls, message: Any) -> HookInfo:
        """Return what a message of the kernel says."""

        def get(name: str) -> Any:
            return message.get_attr(f"LUNATIK_A_{name}")

        buckets = get("HISTOGRAM")
        return cls(
            runtime_id=get("ID"),
            runtime_name=get("NAME"),
            number=get("HOOK"),
            pf=get("PF"),
            hooknum=get("HOOKNUM"),
            priority=get("PRIORITY"),
            ifindex=get("IFINDEX"),
            mark=get("MARK"),
            on_error=_RULES[get("ONERROR")],
            packets=get("PACKETS"),
            accepted=get("ACCEPTED"),
            dropped=get("DROPPED"),
            queued=get("QUEUED"),
            errors=get("ERRORS"),
            budget_hits=get("BUDGET_HITS"),
            reentered=get("REENTERED"),
            time_ns=get("TIME") or 0,
            histogram=tuple(buckets.get_attrs("LUNATIK_A_BUCKET")) if buckets else (),
        )
