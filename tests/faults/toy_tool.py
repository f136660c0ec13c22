"""A tool that does what it is asked: it tells the harness's classes apart."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path


def main(argv: Sequence[str]) -> None:
    """Read ``input`` into ``out``; then end as the first word says."""
    how = argv[0]
    if how == "spins":
        while True:
            pass
    if how == "waits":
        signal.pause()
    if how == "dies":
        os.kill(os.getpid(), signal.SIGSEGV)
    if how == "eats":
        bytearray(1 << 36)
    if how == "raises":
        raise KeyError("x")
    if how == "names":
        raise SystemExit("error: input is damaged")
    if how == "mumbles":
        raise SystemExit("error: something is wrong")
    if how == "mutters":
        raise SystemExit("input is damaged")
    if how == "repeats":
        print("error: input is damaged", file=sys.stderr)
        raise SystemExit("error: input is damaged")
    if how == "rambles":
        raise SystemExit(f"error: input is damaged: {'x' * 5000}")
    if how == "leaves":
        subprocess.Popen(["sleep", "1000"])
        raise SystemExit("error: input is damaged")
    if how == "strays":
        Path("input.bak").write_text("mine")
        raise SystemExit("error: input is damaged")
    content = Path("input").read_text()
    Path("out").write_text("7" if how == "ignores" else content)
