"""The small world with official scores, shared with the bridge's tests, and both scorers."""

from __future__ import annotations

from tests.navsim_bridge.conftest import world
from tests.navsim_bridge.scorers import scorer

__all__ = ["scorer", "world"]
