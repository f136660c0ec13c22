"""What the documents name is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.paths import ROOT

DOCUMENTS = sorted(
    path.relative_to(ROOT).as_posix()
    for folder, pattern in (("", "*.md"), ("docs", "**/*.md"), ("benchmarks", "**/*.md"), ("tests", "**/*.md"))
    for path in (ROOT / folder).glob(pattern)
)
ROOMS = "dpvla|navsim_bridge|tools|benchmarks|configs|docs|examples|tests"
PATHS = re.compile(rf"(?<![\w./-])(?:{ROOMS})/[\w./-]*[\w/]")
LINKS = re.compile(r"\]\((?!https?:|#)([^)#]+)")
FENCED = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
WIDTH = 120
"""Of prose; tables and code are as wide as they are."""


def missing(text: str, beside: Path) -> list[str]:
    """Paths of the repository, and targets of links, that are named in ``text`` and not there."""
    named = [path for path in PATHS.findall(text) if not (ROOT / path).exists() and "NAME" not in path]
    return named + [target for target in LINKS.findall(text) if not (beside / target).exists()]


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_path_that_a_document_names_is_there(document: str) -> None:
    path = ROOT / document
    assert missing(path.read_text(encoding="utf-8"), path.parent) == []


def test_a_path_that_is_gone_is_found() -> None:
    text = "see `dpvla/rl/gone.py`, [x](docs/lost.md), `tools/`, `tests/nowhere/`; .../navsim_bridge/x.py is elsewhere"
    assert missing(text, ROOT) == ["dpvla/rl/gone.py", "docs/lost.md", "tests/nowhere/", "docs/lost.md"]


@pytest.mark.parametrize("document", DOCUMENTS)
def test_documents_wrap_at_one_width(document: str) -> None:
    prose = FENCED.sub("", (ROOT / document).read_text(encoding="utf-8")).splitlines()
    long = [line for line in prose if len(line) > WIDTH and not line.lstrip().startswith("|")]
    assert long == []
