"""What is read from /proc, and that the program and Python agree on their numbers."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from bridge import tracer
from bridge.errors import EnvironmentLacking
from bridge.tracer import Kind, gfp, probes
from bridge.tracer.program import COUNTERS

PROGRAM = (Path(tracer.__file__).parent / "program.c").read_text()
KALLSYMS = b"""\
ffffffff81000000 T mutex_lock
ffffffff81000100 t mutex_lock.cold
ffffffff81000200 T vmalloc
ffffffffc0400000 t lunatik_hook_run.isra.0\t[lunatik]
ffffffffc0402000 T lunatik_init\t[lunatik]
ffffffffc0403000 d lunatik_table\t[lunatik]
ffffffffc0410000 t other\t[other]
"""


def enumerators(name: str) -> list[str]:
    body = re.search(rf"^enum {name} {{(.*?)}};", PROGRAM, re.DOTALL | re.MULTILINE)
    assert body is not None
    text = re.sub(r"/\*.*?\*/", "", body[1], flags=re.DOTALL)
    return [word.strip() for word in text.split(",") if word.strip()]


def test_kinds_are_numbered_as_in_the_program() -> None:
    assert enumerators("kind") == [*(kind.name for kind in Kind), "KINDS"]


def test_counters_are_numbered_as_in_the_program() -> None:
    assert [name.lower() for name in enumerators("counter")] == [*COUNTERS, "counters"]


def test_every_program_a_probe_names_exists() -> None:
    names = {program for _, program in (*probes.MEMORY_TRACEPOINTS, *probes.BOTTOM_HALVES)}
    names |= {*probes.ENTRY_PROGRAMS, *probes.LOSSLESS_PROGRAMS, "sleeper", "calibrate"}
    assert {name for name in names if f"int {name}(struct " not in PROGRAM} == set()


def test_every_tracepoint_of_the_module_is_watched() -> None:
    header = Path(tracer.__file__).parents[2] / "kmod" / "trace.h"
    declared = re.findall(r"^TRACE_EVENT\((\w+),", header.read_text(), re.MULTILINE)
    assert sorted(declared) == sorted(probes.MODULE_TRACEPOINTS)


def test_a_symbol_is_found_under_the_name_this_kernel_has() -> None:
    symbols = probes.parse_kallsyms(KALLSYMS, ["mutex_lock", "vmalloc_noprof", "vmalloc"])
    assert symbols.find(("vmalloc_noprof", "vmalloc")) == "vmalloc"
    assert symbols.find(("down",)) is None
    assert symbols.addresses["mutex_lock"] == 0xFFFFFFFF81000000


def test_the_hook_function_is_found_under_a_compilers_suffix() -> None:
    symbols = probes.parse_kallsyms(KALLSYMS, ["mutex_lock"])
    assert symbols.hook_function() == "lunatik_hook_run.isra.0"


def test_a_modules_code_ends_before_that_of_the_next() -> None:
    text = probes.parse_kallsyms(KALLSYMS, ["mutex_lock"]).text("lunatik")
    assert text == probes.Text("lunatik", 0xFFFFFFFFC0400000, 0xFFFFFFFFC0410000)


def test_the_last_modules_code_has_an_end() -> None:
    text = probes.parse_kallsyms(KALLSYMS, ["mutex_lock"]).text("other")
    assert text == probes.Text("other", 0xFFFFFFFFC0410000, 0xFFFFFFFFC0420000)


def test_hidden_addresses_are_refused() -> None:
    hidden = re.sub(rb"(?m)^[0-9a-f]{16}", b"0" * 16, KALLSYMS)
    with pytest.raises(EnvironmentLacking, match="shows no addresses"):
        probes.parse_kallsyms(hidden, ["mutex_lock"])


def test_modules_that_use_lunatik_are_traced_too() -> None:
    text = "x 1 0 - Live 0x0\nlunatik 1 2 lunatik_sabotage,more, Live 0x0\n"
    assert probes.traced_modules(text) == ("lunatik", "lunatik_sabotage", "more")
    assert probes.traced_modules("lunatik 1 0 - Live 0x0 (OE)\n") == ("lunatik",)


def test_without_the_module_there_is_nothing_to_trace() -> None:
    with pytest.raises(EnvironmentLacking, match="not loaded"):
        probes.traced_modules("lunatik_sabotage 1 0 - Live 0x0\n")


@pytest.mark.parametrize(
    ("flags", "name"),
    [
        (0xCC0, "GFP_KERNEL"),
        (0x820, "GFP_ATOMIC"),
        (0xA20, "GFP_ATOMIC"),
        (0x800, "GFP_NOWAIT"),
        (0x2820, "GFP_ATOMIC|__GFP_NOWARN"),
        (0x400CC0, "GFP_KERNEL_ACCOUNT"),
        (0x400, "__GFP_DIRECT_RECLAIM"),
        (0, "0x0"),
        (1 << 30, "0x40000000"),
    ],
)
def test_flags_have_the_names_of_the_kernels_sources(flags: int, name: str) -> None:
    assert gfp.name(flags) == name


def test_only_direct_reclaim_may_sleep() -> None:
    assert gfp.may_sleep(0xCC0)
    assert not gfp.may_sleep(0x820)
    assert not gfp.may_sleep(0x800)
