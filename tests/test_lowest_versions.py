"""What `make test-lowest` tries is what setup.py allows."""

from __future__ import annotations

import re
from pathlib import Path

HERE = Path(__file__).parent.parent
UNTRIED = {"deepspeed", "mypy", "ruff", "setuptools"}
"""DeepSpeed builds itself for the torch that is there; setuptools comes with Python; the others check
the text alone."""


def test_the_constraints_are_the_lower_bounds_of_setup() -> None:
    allowed = dict(re.findall(r'"([\w-]+)>=([\d.]+)', (HERE / "setup.py").read_text()))
    tried = dict(re.findall(r"^([\w-]+)==([\d.]+)", (HERE / "constraints" / "lowest.txt").read_text(), re.MULTILINE))
    assert len(tried) > 20
    assert {name: version for name, version in allowed.items() if name not in UNTRIED}.keys() == tried.keys()
    for name, version in tried.items():
        wanted = allowed[name].split(".")
        assert version.split(".")[: len(wanted)] == wanted, (
            f"{name}: setup.py allows {allowed[name]}, tried is {version}"
        )
