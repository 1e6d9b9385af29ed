"""lunatik-bridge: write, test and show packet policies in Lua, in a real kernel."""

from __future__ import annotations

__version__ = "0.1.0"
