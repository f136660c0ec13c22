"""The small world with official scores, shared with the bridge's tests."""

from __future__ import annotations

from tests.navsim_bridge.conftest import world

__all__ = ["world"]
