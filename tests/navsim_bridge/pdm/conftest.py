"""Both scorers."""

from __future__ import annotations

from tests.navsim_bridge.scorers import scorer

__all__ = ["scorer"]
