"""dpvla knows nothing of NAVSIM: it imports none of the bridge, and none of NAVSIM's names stand in its code."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.paths import ROOT

FILES = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "dpvla").rglob("*.py"))
FORMATS = (
    "VEHICLE", "PEDESTRIAN", "CZONE_SIGN", "ROADBLOCK", "DRIVABLE_AREA", "CARPARK_AREA", "LANE_CONNECTOR", "CAM_",
    "navsim_logs", "sensor_blobs", "nuplan-maps", "NUPLAN_MAPS_ROOT", "OPENSCENE_DATA_ROOT",
    "no_at_fault_collisions", "drivable_area_compliance", "time_to_collision_within_bound",
)  # fmt: skip
"""Names of objects, layers, files, folders and sub-scores of NAVSIM and nuPlan."""


def imported(tree: ast.AST) -> Iterator[str]:
    """Modules, also those imported inside functions or for types alone."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""


def texts(tree: ast.AST) -> Iterator[str]:
    """String constants that are no docstrings, and names."""
    prose = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in prose:
            yield node.value
        elif isinstance(node, ast.Name):
            yield node.id


@pytest.mark.parametrize("file", FILES)
def test_no_file_of_dpvla_uses_the_bridge_or_names_of_navsims_formats(file: str) -> None:
    tree = ast.parse(Path(ROOT / file).read_text(encoding="utf-8"))
    assert not [module for module in imported(tree) if module.split(".")[0] in ("navsim_bridge", "tools")]
    assert not [text for text in texts(tree) if "navsim_bridge" in text or any(name in text for name in FORMATS)]
