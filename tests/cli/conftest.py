"""What the tests of verbs share: policies written to files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

HOOK = """
local nf = require "netfilter"
nf.register{{
  pf = nf.family.INET, hooknum = nf.inet_hooks.FORWARD, priority = 0, {extra}
  hook = function(skb)
    {body}
  end,
}}
"""


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Write a policy to a file in the directory the test is in; return its name."""
    monkeypatch.chdir(tmp_path)

    def write(source: str, name: str = "mine") -> str:
        Path(f"{name}.lua").write_text(source)
        return f"{name}.lua"

    return write


@pytest.fixture
def hook(write: Callable[..., str]) -> Callable[..., str]:
    """Write a policy with a hook at FORWARD, of the body of its callback."""

    def make(body: str, name: str = "mine", extra: str = "", after: str = "") -> str:
        return write(HOOK.format(body=body, extra=extra) + after, name)

    return make
