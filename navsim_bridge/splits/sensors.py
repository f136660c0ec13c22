"""Camera files of scenes: which cannot be used, before any work starts."""

from __future__ import annotations

import os
import stat
import sys
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from navsim_bridge.files.roots import SENSORS
from navsim_bridge.splits.scenes import ASK_FOR_THE_REST, SceneRecord

NAVSIM_CAMERAS = {
    "front": "CAM_F0", "front_left": "CAM_L0", "front_right": "CAM_R0", "left": "CAM_L1", "right": "CAM_R1",
    "rear_left": "CAM_L2", "rear_right": "CAM_R2", "rear": "CAM_B0",
}  # fmt: skip
"""NAVSIM's cameras, by the names that encoders know them by (`dpvla.batch.Sensors`)."""
MISSING, EMPTY, NO_FILE, UNNAMED = "missing", "empty", "no regular files", "not named in the logs"
_AT_ONCE = 16
"""Folders looked at together: on a file server most of the time is waiting."""


@dataclass(frozen=True)
class BadImage:
    """A camera file that cannot be read."""

    path: str  # or which camera of which scene, where the log names no file
    cause: str  # MISSING, EMPTY, NO_FILE or UNNAMED

    def __str__(self) -> str:
        why = {MISSING: "", UNNAMED: " (the log names none)"}.get(self.cause, f" ({self.cause})")
        return f"{self.path}{why}"


def camera_names(cameras: Sequence[str]) -> tuple[str, ...]:
    """NAVSIM's names of an encoder's cameras, in their order. Raises ValueError for a camera that NAVSIM has not."""
    unknown = [name for name in cameras if name not in NAVSIM_CAMERAS]
    if unknown:
        known = ", ".join(f"{name} ({navsims})" for name, navsims in NAVSIM_CAMERAS.items())
        raise ValueError(f"cameras: NAVSIM has no camera {unknown[0]!r}; choose from {known}")
    return tuple(NAVSIM_CAMERAS[name] for name in cameras)


def image_sizes(records: Sequence[SceneRecord], data_root: Path | str, cameras: Sequence[str]) -> dict[str, int | None]:
    """Bytes of every camera file of the scenes that the logs name, by its `image_path`.

    None for a file that is not there, -1 for what is there and no regular file.
    """
    of_folder: dict[str, list[tuple[str, str]]] = {}
    for record in records:
        root = os.fspath(image_folder(record, data_root))
        for camera in cameras:
            if camera in record.cameras:
                path = os.path.join(root, record.cameras[camera])
                of_folder.setdefault(os.path.dirname(path), []).append((image_path(record, camera), path))
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        found = pool.map(lambda files: [(name, _size(path)) for name, path in files], of_folder.values())
        return {name: size for sizes in found for name, size in sizes}


def image_folder(record: SceneRecord, data_root: Path | str) -> Path:
    """Where a scene's camera paths begin."""
    return record.synthetic.images if record.synthetic else Path(data_root) / SENSORS / record.data_split


def image_file(record: SceneRecord, data_root: Path | str, camera: str) -> Path:
    """The image of a camera at t = 0."""
    return image_folder(record, data_root) / record.cameras[camera]


def image_path(record: SceneRecord, camera: str) -> str:
    """What that image is called wherever the data lies: its path below `sensor_blobs/`, and of a synthetic scene below
    the folder that holds its stage."""
    if record.synthetic is None:
        return f"{record.data_split}/{record.cameras[camera]}"
    images = record.synthetic.images
    return f"{images.parent.name}/{images.name}/{record.cameras[camera]}"


def missing_images(
    records: Sequence[SceneRecord], data_root: Path | str, cameras: Sequence[str]
) -> dict[str, list[BadImage]]:
    """Token -> camera files that are missing, empty, or something else than a file, for the scenes with any."""
    sizes = image_sizes(records, data_root, cameras)
    bad: dict[str, list[BadImage]] = {}
    for record in records:
        for camera in cameras:
            if camera not in record.cameras:
                bad.setdefault(record.token, []).append(BadImage(f"{camera} of scene {record.token}", UNNAMED))
                continue
            path = image_path(record, camera)
            size = sizes[path]
            if size is None or size <= 0:
                cause = MISSING if size is None else EMPTY if size == 0 else NO_FILE
                file = image_file(record, data_root, camera)
                bad.setdefault(record.token, []).append(BadImage(str(file), cause))
    return bad


def describe_bad(bad: dict[str, list[BadImage]], scenes: int, cameras: int) -> str:
    """'3 of 96 camera files are missing (2) or empty (1), for 2 of 32 scenes, first PATH'."""
    files = [file for of_scene in bad.values() for file in of_scene]
    causes = Counter(file.cause for file in files)
    are = " or ".join(causes) if len(causes) == 1 else " or ".join(f"{cause} ({n})" for cause, n in causes.items())
    count = f"{len(files)} of {scenes * cameras} camera files"
    first = files[0].path if len(causes) == 1 else files[0]
    return f"{count} are {are}, for {len(bad)} of {scenes} scenes, first {first}"


def with_images(
    records: Sequence[SceneRecord],
    data_root: Path | str,
    cameras: Sequence[str],
    split: str,
    allow_missing: bool = False,
) -> list[SceneRecord]:
    """The scenes that have all of ``cameras`` at t = 0; all of them, unless ``allow_missing``.

    Raises:
        FileNotFoundError: files are missing or empty (with counts of files and scenes) and that was not allowed, or
            no scene is left.
    """
    bad = missing_images(records, data_root, cameras)
    if not bad:
        return list(records)
    found = f"split {split}: {describe_bad(bad, len(records), len(cameras))}"
    if not allow_missing or len(bad) == len(records):
        first = next(record for record in records if record.token in bad)
        where = f"them into {image_folder(first, data_root)}"
        none_left = len(bad) == len(records)
        advice = f"No scene has all: get {where}." if none_left else ASK_FOR_THE_REST.format(f"Get {where}")
        raise FileNotFoundError(f"{found}. {advice}")
    print(f"{found}; these scenes are left out", file=sys.stderr)
    return [record for record in records if record.token not in bad]


def _size(path: str) -> int | None:
    try:
        status = os.stat(path)
    except PermissionError:
        raise  # says itself what is wrong
    except OSError:
        return -1 if os.path.lexists(path) else None  # a link that leads nowhere or to itself is not missing by name
    return status.st_size if stat.S_ISREG(status.st_mode) else -1
