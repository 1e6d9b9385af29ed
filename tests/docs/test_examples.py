"""Every block of Lua in docs/ runs in a kernel.

The words after ```lua say how: none, as the body of a sleepable runtime; ``atomic``, of
a non-sleepable one; ``forwarding``, of one whose hooks no packet meets here; ``callback``
and libraries to require, as a callback at LOCAL_OUT; ``file=NAME``, below the Lua root,
for the other blocks of the page. A packet is sent afterwards. Nothing may fail.
"""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

from bridge.errors import LuaError
from bridge.lunatik import Lunatik
from bridge.module import LUA_ROOT, PROJECT

kernel = pytest.mark.kernel

CALLBACK = """
local netfilter = require "netfilter"
{libraries}
netfilter.register{{
  pf = netfilter.family.IPV4, hooknum = netfilter.inet_hooks.LOCAL_OUT, priority = 0,
  hook = function(skb)
    {body}
    return netfilter.action.ACCEPT
  end,
}}
"""


@dataclass(frozen=True)
class Block:
    """A block of a page: the words that say how it runs, and the script."""

    page: str
    line: int
    words: tuple[str, ...]
    text: str

    @property
    def file(self) -> str | None:
        """The file it is, if it is one."""
        names = [word.removeprefix("file=") for word in self.words if word.startswith("file=")]
        return names[0] if names else None


def blocks(page: str, text: str) -> list[Block]:
    return [
        Block(page, text.count("\n", 0, found.start()) + 1, tuple(found[1].split()), found[2])
        for found in re.finditer(r"^```lua\b(.*)\n((?:.*\n)*?)```$", text, re.M)
    ]


ALL = [
    block
    for path in sorted((PROJECT / "docs").glob("*.md"))
    for block in blocks(path.name, path.read_text())
]


def run(block: Block, root: Path, send) -> None:
    """Run a block below a Lua root; raises LuaError or AssertionError if it fails."""
    source, sleep = block.text, True
    match block.words:
        case ():
            pass
        case ("atomic",) | ("forwarding",):
            sleep = False
        case ("callback", *libraries):
            required = "\n".join(f'local {name} = require "{name}"' for name in libraries)
            source, sleep = CALLBACK.format(libraries=required, body=block.text), False
        case _:
            raise AssertionError(f"unknown words {block.words}")
    with (
        Lunatik.load(root=root) as lunatik,
        lunatik.runtime("example", source=source, sleep=sleep) as runtime,
    ):
        send()
        info = runtime.info()
        assert info.errors == 0, info.last_error
        assert sleep or info.calls >= info.hooks or block.words == ("forwarding",)
        assert "callback" not in block.words or info.calls


@pytest.fixture
def root(tmp_path):
    """Make a Lua root with the policies, the libraries and the files of a page."""

    def make(page: str) -> Path:
        target = tmp_path / "root"
        shutil.copytree(LUA_ROOT, target)
        for block in ALL:
            if block.page == page and block.file:
                (target / block.file).write_text(block.text)
        return target

    return make


@kernel
@pytest.mark.parametrize(
    "block",
    [block for block in ALL if not block.file],
    ids=lambda block: f"{block.page}:{block.line}",
)
def test_the_example_runs(block, root, loopback):
    run(block, root(block.page), loopback)


@kernel
@pytest.mark.parametrize(
    ("words", "text"),
    [
        ((), "error('fails')"),
        (("atomic",), "error('fails')"),
        (("callback",), "error('fails')"),
        (("callback", "none"), "skb:u8(0)"),
        (("fragment",), "local x = 1"),
    ],
)
def test_an_example_that_fails_is_found(words, text, root, loopback):
    with pytest.raises((LuaError, AssertionError)):
        run(Block("none.md", 1, words, text), root("none.md"), loopback)


def test_blocks_are_found():
    page = "a\n```lua\nx = 1\n```\n```lua atomic\n```\n```\nno = 1\n```\n"
    assert blocks("p", page) == [
        Block("p", 2, (), "x = 1\n"),
        Block("p", 5, ("atomic",), ""),
    ]
    assert ALL
