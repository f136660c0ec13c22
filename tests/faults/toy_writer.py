"""A tool that writes a file in two steps, with care or without."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path


def main(argv: Sequence[str]) -> None:
    """``careful`` ends the same wherever it was cut; ``careless`` leaves what it began; ``stuck`` will not go on."""
    how, out = argv[0], Path("out")
    out.mkdir(exist_ok=how != "stuck")
    temporary = out / (".part" if how == "careful" else f".part-{os.getpid()}")
    with open(temporary, "w") as file:
        file.write("content")
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, out / "whole")
