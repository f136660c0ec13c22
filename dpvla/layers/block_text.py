"""Blocks as text: ``"24 modulated self mlp"``. Read without any network library, as configs are."""

from __future__ import annotations

import re
from collections import Counter

from dpvla.files import short

SUBLAYERS = ("self", "cross", "fused-cross", "mlp")
MOST = 512
"""No text stands for more blocks."""


def parse_blocks(text: str) -> list[tuple[bool, tuple[str, ...]]]:
    """``"24 modulated self mlp"`` -> 24 times ``(True, ("self", "mlp"))``; ValueError for what is no such text."""
    match = re.fullmatch(r"\s*(\d{1,9})\s+(modulated|plain)((?:\s+[a-z-]+)+)\s*", text[:1000])
    if match is None:
        raise ValueError(
            f"cannot read block {short(text)}; expected e.g. '24 modulated self mlp' or '1 plain self cross mlp'"
        )
    if not 1 <= int(match[1]) <= MOST:
        raise ValueError(f"block {short(text)}: from 1 to {MOST} of them are taken")
    sublayers = tuple(match[3].split())
    unknown = [name for name in sublayers if name not in SUBLAYERS]
    if unknown:
        raise ValueError(f"block {short(text)}: unknown sublayers {short(unknown)}; expected {', '.join(SUBLAYERS)}")
    twice = [name for name, count in Counter(name.replace("fused-", "") for name in sublayers).items() if count > 1]
    if twice:
        raise ValueError(f"block {short(text)}: {twice[0]} stands twice; write two blocks")
    return [(match[2] == "modulated", sublayers)] * int(match[1])
