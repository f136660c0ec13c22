"""Scenes as the policy's batches: camera images, command, ego status, history, recorded plan."""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from dpvla.batch import DrivingBatch
from dpvla.files import write_atomically
from dpvla.plan import HISTORY_POSES, NUM_POSES
from dpvla.sensors import Sensors
from navsim_bridge.files.roots import SENSORS
from navsim_bridge.splits.scenes import SceneRecord
from navsim_bridge.splits.sensors import camera_names

UNREADABLE = (OSError, ValueError, SyntaxError, EOFError, struct.error, Image.DecompressionBombError)
"""What Pillow raises for files that hold no whole image."""


class NavsimDataset:
    """Map-style data set over scene records, for a policy that looks at ``sensors``.

    Images are cut to the asked aspect ratio, by the same number of rows at the top and the bottom (16:9 to 2:1
    loses a ninth of the rows; an image wider than asked loses columns left and right instead), then reduced. All
    else is computed once, in float64, and kept as float32.
    """

    def __init__(
        self,
        records: Sequence[SceneRecord],
        data_root: Path | str,
        sensors: Sensors,
        workers: int = 4,
    ) -> None:
        """``workers`` threads decode the images of a batch."""
        self.records, self.data_root, self.sensors = list(records), Path(data_root), sensors
        self.cameras, self.image_size = camera_names(sensors.cameras), (sensors.width, sensors.height)
        self.workers = workers
        self._tokens = tuple(r.token for r in self.records)
        self._commands = torch.tensor([r.command for r in self.records], dtype=torch.int64)
        status = [np.concatenate([r.velocity, r.acceleration]) for r in self.records]
        self._status = torch.from_numpy(np.array(status, dtype=np.float32).reshape(-1, 4))
        history = [_history(r) for r in self.records]
        self._history = torch.from_numpy(np.array(history, dtype=np.float32).reshape(-1, HISTORY_POSES, 3))
        self._plans: Tensor | None = None
        if all(len(r.poses) - r.num_history >= NUM_POSES for r in self.records):
            plans = np.array([r.plan() for r in self.records], dtype=np.float32)
            self._plans = torch.from_numpy(plans.reshape(-1, NUM_POSES, 3))
        self._cached: NDArray[np.uint8] | None = None

    @property
    def tokens(self) -> tuple[str, ...]:
        """Names of the scenes, in order."""
        return self._tokens

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> DrivingBatch:
        """The scene at ``index`` as a batch of one."""
        return self.batch([range(len(self))[index]])

    def batch(self, indices: Sequence[int]) -> DrivingBatch:
        """The scenes at ``indices``, in their order.

        Raises FileNotFoundError with the number of missing images and the first one.
        """
        rows = torch.as_tensor(list(indices), dtype=torch.int64)
        return DrivingBatch(
            tokens=tuple(self._tokens[i] for i in rows.tolist()),
            images=torch.from_numpy(self._images(rows.numpy())),
            command=self._commands[rows],
            ego_status=self._status[rows],
            history=self._history[rows],
            plan=None if self._plans is None else self._plans[rows],
        )

    def plans(self) -> Tensor:
        """(scene, 8, 3) float32 recorded plans of all scenes. Raises ValueError where the split has none."""
        if self._plans is None:
            raise ValueError(f"the split's scenes have fewer than {NUM_POSES} future frames: there are no plans")
        return self._plans

    def ego_status(self) -> Tensor:
        """(scene, 4) float32 velocity and acceleration of all scenes."""
        return self._status

    def commands(self) -> Tensor:
        """(scene,) int64 driving commands of all scenes."""
        return self._commands

    def image_paths(self, index: int) -> list[Path]:
        """Files of the cameras of a scene, in the order of the batch."""
        r = self.records[index]
        absent = [name for name in self.cameras if name not in r.cameras]
        if absent:
            raise ValueError(f"scene {r.token} of log {r.log_name} names no image for {', '.join(absent)}")
        return [self.data_root / SENSORS / r.data_split / r.cameras[name] for name in self.cameras]

    def cache_images(self, folder: Path | str, progress: bool = False) -> Path:
        """Decode all images once into one memory-mapped file below ``folder`` and read from it from now on.

        The file is named after the scenes, the image files and the size, so that another set or size makes
        another file. What it costs is printed before it is written.
        """
        path = Path(folder) / f"images-{self._image_fingerprint()}.npy"
        shape = self._image_shape(len(self))
        if not path.is_file():
            cost = int(np.prod(shape)) / 1e6
            print(
                f"image cache: {len(self)} scenes at {self.image_size[0]}x{self.image_size[1]}, {cost:.0f} MB, {path}"
            )
            bar = tqdm(total=len(self), desc="images", unit="scene", disable=not progress)

            def write(file: object) -> None:
                np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})  # type: ignore[arg-type]
                for first in range(0, len(self), 64):
                    rows = np.arange(first, min(first + 64, len(self)))
                    file.write(self._decode(rows).tobytes())  # type: ignore[attr-defined]
                    bar.update(len(rows))

            with bar:
                write_atomically(path, write)
        cached = np.load(path, mmap_mode="r", allow_pickle=False)
        if cached.shape != shape or cached.dtype != np.uint8:
            raise ValueError(f"{path}: expected uint8 {shape}, found {cached.dtype} {cached.shape}; delete the file")
        self._cached = cached
        return path

    def _images(self, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        return self._decode(rows) if self._cached is None else self._cached[rows]

    def _image_shape(self, scenes: int) -> tuple[int, int, int, int, int]:
        return scenes, *self.sensors.shape

    def _decode(self, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        paths = [path for row in rows for path in self.image_paths(row)]
        try:
            if self.workers > 1 and len(paths) > len(self.cameras):
                with ThreadPoolExecutor(self.workers) as pool:  # decoding releases the interpreter lock
                    images = list(pool.map(self._read, paths))
            else:
                images = [self._read(path) for path in paths]
        except FileNotFoundError:
            raise self._missing() from None
        stacked = np.stack(images) if images else np.zeros(0, dtype=np.uint8)
        return stacked.reshape(self._image_shape(len(rows)))

    def _read(self, path: Path) -> NDArray[np.uint8]:
        try:
            return read_image(path, self.image_size)
        except FileNotFoundError:
            raise
        except UNREADABLE as error:
            raise ValueError(
                f"{path}: not a readable image ({type(error).__name__}: {error}). Get the file again; or delete it, "
                "and start without its scene (--allow-missing, where the tool has it)"
            ) from error

    def _missing(self) -> FileNotFoundError:
        paths = [path for row in range(len(self)) for path in self.image_paths(row)]
        missing = [path for path in paths if not path.is_file()]
        return FileNotFoundError(
            f"{len(missing)} of {len(paths)} images are missing below {self.data_root / SENSORS}, first "
            f"{missing[0] if missing else 'none any more'}. Download the split's sensor data, or use a split whose "
            "images are there."
        )

    def _image_fingerprint(self) -> str:
        files = []
        for row in range(len(self)):
            for path in self.image_paths(row):
                try:
                    stat = os.stat(path)
                except FileNotFoundError:
                    raise self._missing() from None
                files.append((str(path.relative_to(self.data_root)), stat.st_size, stat.st_mtime_ns))
        content = json.dumps({"tokens": self._tokens, "files": files, "size": self.image_size})
        return hashlib.sha256(content.encode()).hexdigest()[:16]


def read_image(path: Path | str, size: tuple[int, int]) -> NDArray[np.uint8]:
    """(3, height, width) image cut to the aspect ratio of ``size`` (width, height) and reduced to it.

    JPEGs are decoded at a reduced scale that still has twice the pixels asked for, then resized bicubically.
    """
    width, height = size
    with Image.open(path) as image:
        full_width, full_height = image.size
        keep_height = min(full_height, full_width * height / width)
        keep_width = min(full_width, full_height * width / height)
        image.draft("RGB", (round(2 * width * full_width / keep_width), round(2 * height * full_height / keep_height)))
        scale_x, scale_y = image.size[0] / full_width, image.size[1] / full_height
        left, top = (full_width - keep_width) / 2 * scale_x, (full_height - keep_height) / 2 * scale_y
        box = (left, top, left + keep_width * scale_x, top + keep_height * scale_y)
        small = image.convert("RGB").resize(size, Image.Resampling.BICUBIC, box=box, reducing_gap=2.0)
    return np.ascontiguousarray(np.asarray(small, dtype=np.uint8).transpose(2, 0, 1))


def _history(record: SceneRecord) -> NDArray[np.float64]:
    if record.num_history <= HISTORY_POSES:
        raise ValueError(
            f"scene {record.token} has {record.num_history} history frames, a batch needs {HISTORY_POSES + 1}: use a "
            f"split with num_history_frames: {HISTORY_POSES + 1}"
        )
    return record.relative_poses(slice(record.now - HISTORY_POSES, record.now))
