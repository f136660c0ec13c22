"""The command ``dpvla``: every program of the project as a sub-command, ``dpvla evaluate --help``."""

from __future__ import annotations

import ast
import difflib
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent


def main(argv: Sequence[str] | None = None) -> None:
    """Run the program that the first word names with the rest of the words."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help", "help"):
        print(overview())
        return
    if words[0] in ("-V", "--version"):
        from dpvla import __version__

        print(f"dpvla {__version__}")
        return
    name, names = words[0].replace("_", "-"), programs()
    if name not in names:
        near = difflib.get_close_matches(name, names, n=1, cutoff=0.0)[0]
        print(f"error: no program {words[0]!r:.80}; nearest: {near}; all: {', '.join(names)}", file=sys.stderr)
        raise SystemExit(2)
    sys.argv = [f"dpvla {name}", *words[1:]]
    program = importlib.import_module(f"{__package__ or HERE.name}.{name.replace('-', '_')}")
    program.main()


def programs() -> tuple[str, ...]:
    """Names of all, as they are typed."""
    return tuple(sorted(path.stem.replace("_", "-") for path in HERE.glob("*.py") if path.stem[0] != "_"))


def overview() -> str:
    """A line for each program: the first of its documentation, up to its example."""
    lines = ["usage: dpvla PROGRAM [OPTIONS]; dpvla PROGRAM --help has its options", ""]
    for name in programs():
        about = ast.get_docstring(ast.parse((HERE / f"{name.replace('-', '_')}.py").read_text(encoding="utf-8"))) or ""
        lines.append(f"  {name:<20}{about.splitlines()[0].split(': `')[0].rstrip('.:')}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
