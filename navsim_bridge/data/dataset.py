"""Scenes as the policy's batches: camera images, command, ego status, history, recorded plan."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dpvla.batch import DrivingBatch
from dpvla.plan import HISTORY_POSES, NUM_POSES
from dpvla.sensors import Sensors
from navsim_bridge.data.image_store import MANIFEST, ImageStore, pack_images
from navsim_bridge.data.images import read_images, read_images_on_gpu
from navsim_bridge.files.roots import SENSORS
from navsim_bridge.splits.scenes import SceneRecord
from navsim_bridge.splits.sensors import camera_names, image_file, image_path


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
        """``workers`` threads decode the images of a batch, those of a scene's cameras as well."""
        self.records, self.data_root, self.sensors = list(records), Path(data_root), sensors
        self.cameras, self.image_size = camera_names(sensors.cameras), (sensors.width, sensors.height)
        self.workers = workers
        self._tokens = tuple(r.token for r in self.records)
        self._commands = torch.tensor([r.command for r in self.records], dtype=torch.int64)
        status = [np.concatenate([r.velocity, r.acceleration]) for r in self.records]
        self._status = torch.from_numpy(np.array(status, dtype=np.float32).reshape(-1, 4))
        history = [history_of(r) for r in self.records]
        self._history = torch.from_numpy(np.array(history, dtype=np.float32).reshape(-1, HISTORY_POSES, 3))
        self._plans: Tensor | None = None
        if all(len(r.poses) - r.num_history >= NUM_POSES for r in self.records):
            plans = np.array([r.plan() for r in self.records], dtype=np.float32)
            self._plans = torch.from_numpy(plans.reshape(-1, NUM_POSES, 3))
        self._cached: NDArray[np.uint8] | None = None
        self._store: tuple[ImageStore, NDArray[np.int64]] | None = None  # and where in it the scenes stand

    @property
    def tokens(self) -> tuple[str, ...]:
        """Names of the scenes, in order."""
        return self._tokens

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> DrivingBatch:
        """The scene at ``index`` as a batch of one."""
        return self.batch([range(len(self))[index]])

    def batch(self, indices: Sequence[int], decode_on: torch.device | None = None) -> DrivingBatch:
        """The scenes at ``indices``, in their order.

        Args:
            decode_on: a GPU that decodes the JPEGs, and where the images stay; nothing stands in for it where it
                cannot. None: threads of this machine. Kept images are read from where they are kept.

        Raises FileNotFoundError with the number of missing images and the first one, ValueError for one that cannot be
        read.
        """
        rows = torch.as_tensor(list(indices), dtype=torch.int64)
        return DrivingBatch(
            tokens=tuple(self._tokens[i] for i in rows.tolist()),
            images=self._images(rows.numpy(), decode_on),
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
        return [image_file(r, self.data_root, name) for name in self.cameras]

    def use_store(self, store: ImageStore) -> None:
        """Read images from ``store`` from now on. Raises ImageStoreError where it holds others than these."""
        store.require(self.sensors)
        self._store = store, store.rows(self.records, self.data_root)

    def cache_images(self, folder: Path | str, progress: bool = False) -> Path:
        """Decode all images once into a store below ``folder``, and read from it from now on.

        The store is named after the scenes, the image files and the size, so that another set or size makes another
        one. What it costs is printed before it is written.
        """
        path = Path(folder) / f"images-{self._image_fingerprint()}"
        former = path.with_suffix(".npy")  # one file, as version 0.1.0 kept it
        if former.is_file():
            self._store, self._cached = None, _former_cache(former, (len(self), *self.sensors.shape))
            return former
        if not (path / MANIFEST).is_file():
            pack_images(
                self.records, self.data_root, self.sensors, path, "of this run",
                title="image cache", threads=self.workers, progress=progress, wait=True,
            )  # fmt: skip
        self.use_store(ImageStore(path))
        return path

    def _images(self, rows: NDArray[np.int64], decode_on: torch.device | None) -> Tensor:
        if not self.cameras:
            return torch.empty((len(rows), *self.sensors.shape), dtype=torch.uint8)
        if self._store is not None:
            store, places = self._store
            return torch.from_numpy(store.read(places[rows]))
        if self._cached is not None:
            return torch.from_numpy(self._cached[rows])
        paths = [path for row in rows for path in self.image_paths(row)]
        shape = (len(rows), *self.sensors.shape)
        try:
            if decode_on is not None:
                return read_images_on_gpu(paths, self.image_size, decode_on).view(shape)
            return torch.from_numpy(read_images(paths, self.image_size, self.workers)).view(shape)
        except FileNotFoundError:
            raise self._missing() from None

    def _missing(self) -> FileNotFoundError:
        paths = [path for row in range(len(self)) for path in self.image_paths(row)]
        missing = [path for path in paths if not path.is_file()]
        return FileNotFoundError(
            f"{len(missing)} of {len(paths)} images are missing below {self.data_root}, first "
            f"{missing[0] if missing else 'none any more'}. Download the split's sensor data, or use a split whose "
            "images are there."
        )

    def _image_fingerprint(self) -> str:
        files = []
        for row in range(len(self)):
            for camera, path in zip(self.cameras, self.image_paths(row)):
                try:
                    stat = os.stat(path)
                except FileNotFoundError:
                    raise self._missing() from None
                name = (Path(SENSORS) / image_path(self.records[row], camera)).as_posix()
                files.append((name, stat.st_size, stat.st_mtime_ns))
        content = json.dumps({"tokens": self._tokens, "files": files, "size": self.image_size})
        return hashlib.sha256(content.encode()).hexdigest()[:16]


def _former_cache(path: Path, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    try:
        cached: NDArray[np.uint8] = np.lib.format.open_memmap(path, mode="r")
    except (ValueError, EOFError) as error:
        raise ValueError(f"{path} is damaged ({error}); delete the file") from None
    if cached.shape != shape or cached.dtype != np.uint8:
        raise ValueError(f"{path}: expected uint8 {shape}, found {cached.dtype} {cached.shape}; delete the file")
    return cached


def history_of(record: SceneRecord) -> NDArray[np.float64]:
    """(3, 3) past poses that a batch holds, in the ego frame. Raises ValueError where the scene has fewer frames."""
    if record.num_history <= HISTORY_POSES:
        raise ValueError(
            f"scene {record.token} has {record.num_history} history frames, a batch needs {HISTORY_POSES + 1}: use a "
            f"split with num_history_frames: {HISTORY_POSES + 1}"
        )
    return record.relative_poses(slice(record.now - HISTORY_POSES, record.now))
