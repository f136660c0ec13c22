"""Where NAVSIM's data and maps lie: the option, else the devkit's environment variable, else the demo world."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

DEMO_WORLD = Path("data/demo_world")
"""Where `tools/make_demo_world.py` writes, relative to the working directory."""

LOGS = "navsim_logs"
SENSORS = "sensor_blobs"
MAP_INDEX = "nuplan-maps-v1.0.json"


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """Options of every tool that reads logs."""

    data_root: str | None = None  # folder with navsim_logs/; default: OPENSCENE_DATA_ROOT, then the demo world
    data_split: str | None = None  # folder below navsim_logs/; default: what the split says, else that of its scenes
    synthetic_root: str | None = None  # of a second stage: has synthetic_scene_pickles/; default: DATA_ROOT/SPLIT


@dataclass(frozen=True, kw_only=True)
class DataAndMapOptions(DataOptions):
    """Options of every tool that reads logs and maps."""

    maps_root: str | None = None  # folder with nuplan-maps-v1.0.json; default: NUPLAN_MAPS_ROOT, then the demo world


def data_root(option: Path | str | None = None) -> Path:
    """Folder that holds `navsim_logs/` and `sensor_blobs/`.

    Raises FileNotFoundError naming what was looked at and what to do.
    """
    return _find(option, "OPENSCENE_DATA_ROOT", DEMO_WORLD, LOGS, "--data-root", "driving data")


def maps_root(option: Path | str | None = None) -> Path:
    """Folder that holds `nuplan-maps-v1.0.json` and one folder per location; errors as `data_root`."""
    return _find(option, "NUPLAN_MAPS_ROOT", DEMO_WORLD / "maps", MAP_INDEX, "--maps-root", "maps")


def _find(option: Path | str | None, variable: str, demo: Path, inside: str, flag: str, what: str) -> Path:
    if option:
        source, root = flag, Path(option)
    elif os.environ.get(variable):
        source, root = f"environment variable {variable}", Path(os.environ[variable])
    elif (demo / inside).exists():
        return demo
    else:
        raise FileNotFoundError(
            f"no {what}: {flag} was not given, {variable} is not set and there is no {demo / inside}. "
            "Make the demo world with `python tools/make_demo_world.py`, or point to NAVSIM's own data."
        )
    if not (root / inside).exists():
        found = ", ".join(sorted(p.name for p in root.iterdir())[:8]) if root.is_dir() else "no such folder"
        raise FileNotFoundError(f"{root} ({source}) should hold {inside} but does not; it holds: {found or 'nothing'}")
    return root
