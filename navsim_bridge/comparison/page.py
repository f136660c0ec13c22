"""The page of results: tables, links to pictures and numbers, commands, what made them; remarks by hand stay."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TypedDict

from dpvla.config import ConfigError
from dpvla.files import read_text, write_atomically, write_json, write_text
from dpvla.provenance import made_by
from dpvla.schema import read_as

SECTIONS = {
    "table_4": "Table 4",
    "table_4_navval": "Table 4 on the validation split",
    "study_cycles": "Cycles of roll-outs and the anchor",
    "figure_5": "Beta and omega, and the stability of losses",
    "figure_scaling": "Scores by plans scored",
    "selection": "How hyperparameters were chosen",
}
"""Results by the name of their files, in the order of the page."""
BY_HAND = "## What it says"
"""From this line on the page is written by hand and kept."""
WIDTH = 120


class _Made(TypedDict):
    command: str
    git_commit: str | None
    device: str
    packages: dict[str, str]


def note_made(out: Path, name: str, command: str) -> None:
    """Keep beside a result what made it."""
    by = made_by()
    kept = {key: by[key] for key in ("git_commit", "device", "packages")}
    write_json(out / f"{name}.json", {"command": command, **kept})


def write_page(out: Path, page: Path) -> list[Path]:
    """Write ``page`` from what ``out`` holds, pictures and CSV files beside it; returns the files.

    Raises ConfigError where ``out`` holds no result.
    """
    there = [name for name in SECTIONS if (out / f"{name}.md").exists() and (out / f"{name}.json").exists()]
    if not there:
        raise ConfigError(f"{out} holds no result yet: make --table 4, --figure or --study first")
    written, parts = [], [f"# RL algorithms on driving\n\n{_wrapped(INTRODUCTION)}"]
    for name in there:
        made = read_as(out / f"{name}.json", _Made)
        links = []
        for path in sorted([*out.glob(f"{name}.png"), *out.glob(f"{name}_*.png"), *out.glob(f"{name}.csv"),
                            *out.glob(f"{name}_*.csv")]):  # fmt: skip
            if any(path.stem.startswith(other) for other in SECTIONS if other != name and len(other) > len(name)):
                continue
            target = page.parent / f"{page.stem}_{path.name}"
            with path.open("rb") as source:
                write_atomically(target, partial(shutil.copyfileobj, source))
            written.append(target)
            mark = "!" if path.suffix == ".png" else ""
            links.append(f"{mark}[{path.stem if mark else path.name}]({target.name})")
        text = _wrapped(read_text(out / f"{name}.md").strip())
        parts.append(f"## {SECTIONS[name]}\n\n{text}\n\n```bash\n{made['command']}\n```\n\n" + _about(made))
        parts.append("\n".join(links))
    parts.append(_by_hand(page))
    write_text(page, "\n\n".join(parts) + "\n")
    return [page, *written]


INTRODUCTION = """Made by `python tools/reproduce.py --report`, from runs on the synthetic demo world: relations between
methods, not numbers of NAVSIM. Hyperparameters were chosen on a validation split of its own. What stands below "What it
says" is written by hand."""


def _about(made: Mapping[str, object]) -> str:
    packages = made["packages"]
    assert isinstance(packages, Mapping)
    versions = ", ".join(f"{name} {packages[name]}" for name in ("torch", "numpy") if name in packages)
    commit = str(made["git_commit"] or "unknown")[:12]
    return f"Written at commit {commit} on {made['device']}, {versions}."


def _by_hand(page: Path) -> str:
    if page.exists():
        before = read_text(page)
        if BY_HAND in before:
            return BY_HAND + before.partition(BY_HAND)[2].rstrip()
    return f"{BY_HAND}\n\nNothing yet."


def _wrapped(text: str) -> str:
    """Paragraphs and list items at the page's width; tables as they are."""
    lines: list[str] = []
    for paragraph in text.split("\n\n"):
        if paragraph.startswith("|"):
            lines.append(paragraph)
        elif paragraph.startswith("- "):
            lines.append("\n".join(_filled(item, "  ") for item in paragraph.split("\n")))
        else:
            lines.append(_filled(paragraph))
    return "\n\n".join(lines)


def _filled(text: str, indent: str = "") -> str:
    return textwrap.fill(text, WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
