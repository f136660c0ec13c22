"""Camera files of scenes: which are missing, before any work starts."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from navsim_bridge.roots import SENSORS
from navsim_bridge.scenes import SceneRecord


def missing_images(
    records: Sequence[SceneRecord], data_root: Path | str, cameras: Sequence[str]
) -> dict[str, list[str]]:
    """Token -> files that are not there (or '(the log names none)'), for the scenes that lack any.

    Folders are listed once each, which is far quicker than asking for every file.
    """
    listed = lru_cache(maxsize=None)(_names)
    missing: dict[str, list[str]] = {}
    for record in records:
        for camera in cameras:
            name = record.cameras.get(camera)
            path = Path(data_root) / SENSORS / record.data_split / name if name else None
            if path is None or path.name not in listed(path.parent):
                missing.setdefault(record.token, []).append(str(path) if path else "(the log names none)")
    return missing


def with_images(
    records: Sequence[SceneRecord],
    data_root: Path | str,
    cameras: Sequence[str],
    split: str,
    allow_missing: bool = False,
) -> list[SceneRecord]:
    """The scenes that have all of ``cameras`` at t = 0; all of them, unless ``allow_missing``.

    Raises:
        FileNotFoundError: files are missing (with counts of files and scenes) and that was not allowed, or no scene
            is left.
    """
    missing = missing_images(records, data_root, cameras)
    if not missing:
        return list(records)
    files = [file for of_scene in missing.values() for file in of_scene]
    found = (
        f"split {split}: {len(files)} of {len(records) * len(cameras)} camera files are missing, for {len(missing)} of "
        f"{len(records)} scenes, first {files[0]}"
    )
    if not allow_missing or len(missing) == len(records):
        raise FileNotFoundError(
            f"{found}. Get them into {Path(data_root) / SENSORS / records[0].data_split}, or ask for the scenes that "
            "have theirs (--allow-missing, where the tool has it)."
        )
    print(f"{found}; these scenes are left out", file=sys.stderr)
    return [record for record in records if record.token not in missing]


def _names(folder: Path) -> frozenset[str]:
    try:
        return frozenset(entry.name for entry in os.scandir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return frozenset()
