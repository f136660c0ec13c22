"""Scenes as the devkit's agent sends them, and as the policy sees them."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dpvla.batch import DrivingBatch
from dpvla.files import short
from dpvla.sensors import Sensors
from dpvla_devkit.protocol import STATUS
from navsim_bridge.data.dataset import history_of
from navsim_bridge.data.images import UNREADABLE, decode_image, reduce_pixels
from navsim_bridge.splits.scenes import SceneRecord
from navsim_bridge.splits.sensors import camera_names

FAR, FAST = 1e4, 1e3
"""Meters of a past pose, and m/s (m/s^2) of a velocity (an acceleration): what is more is no car's."""
_MILLI = 1e3


class SceneError(ValueError):
    """A scene that cannot be planned for; the message says why."""


@dataclass(frozen=True)
class AskedScene:
    """One scene, ready for a batch."""

    status: NDArray[np.float32]  # (4,) velocity [m/s], acceleration [m/s^2], ego axes
    history: NDArray[np.float32]  # (3, 3) past poses, ego frame
    command: int  # index into dpvla.batch.COMMANDS
    images: Tensor  # (camera, 3, height, width) uint8

    @property
    def fingerprint(self) -> str:
        """Of what the car knows of its own motion: the same in every frame of the same scene, whoever reads it."""
        return fingerprint(self.status, self.history, self.command)


def read_scene(arrays: Mapping[str, NDArray[np.generic]], sensors: Sensors) -> AskedScene:
    """What the arrays of a request say.

    Args:
        arrays: as `dpvla_devkit.protocol` has them.
        sensors: of the policy.

    Raises SceneError.
    """
    cameras = camera_names(sensors.cameras)
    wrong = set(arrays) ^ {*STATUS, *cameras}
    if wrong:
        raise SceneError(f"the request has {short(sorted(arrays))}, the policy needs {short([*STATUS, *cameras])}")
    for name, shape in STATUS.items():
        if arrays[name].shape != shape or not np.isfinite(arrays[name]).all():
            raise SceneError(f"{name} must be finite numbers of shape {shape}, found shape {short(arrays[name].shape)}")
    status = np.concatenate([arrays["velocity"], arrays["acceleration"]]).astype(np.float64)
    poses = arrays["poses"].astype(np.float64)
    if np.abs(poses).max() > FAR or np.abs(status).max() > FAST or np.abs(poses[-1]).max() > 1e-3:
        raise SceneError(
            "poses must be in the ego frame of the last one, and a car's motion: found "
            f"{short(poses.tolist())}, {short(status.tolist())}"
        )
    command = arrays["command"].tolist()
    if sorted(command) != [0, 0, 0, 1]:
        raise SceneError(f"command must be a one-hot of 4 (left, straight, right, unknown), found {short(command)}")
    images = [_image(arrays[camera], camera, sensors) for camera in cameras]
    return AskedScene(
        status.astype(np.float32),
        poses[:-1].astype(np.float32),
        command.index(1),
        torch.from_numpy(np.stack(images)) if images else torch.zeros(sensors.shape, dtype=torch.uint8),
    )


def _image(array: NDArray[np.generic], camera: str, sensors: Sensors) -> NDArray[np.uint8]:
    is_pixels = array.ndim == 3 and array.shape[2] == 3
    if array.dtype != np.uint8 or not (is_pixels or array.ndim == 1):
        raise SceneError(f"{camera} must be uint8, (height, width, 3) or a file's bytes, found {short(array.shape)}")
    content = array.view(np.uint8)
    try:
        size = (sensors.width, sensors.height)
        return reduce_pixels(content, size) if is_pixels else decode_image(content, size)
    except UNREADABLE as error:
        raise SceneError(f"{camera} is no readable image ({type(error).__name__}: {error!s:.200})") from None


def batch_of(scenes: Sequence[AskedScene], names: Sequence[str]) -> DrivingBatch:
    """Scenes to be planned together; ``names``: what their noise hangs on."""
    return DrivingBatch(
        tokens=tuple(names),
        images=torch.stack([scene.images for scene in scenes]),
        command=torch.tensor([scene.command for scene in scenes], dtype=torch.int64),
        ego_status=torch.from_numpy(np.stack([scene.status for scene in scenes])),
        history=torch.from_numpy(np.stack([scene.history for scene in scenes])),
    )


class SceneNames:
    """What a scene's noise hangs on: its token where a known split has it, else its motion.

    The devkit does not tell an agent which scene it is asked about. The car's velocity, acceleration, past poses and
    command do, except where it stands.
    """

    def __init__(self, records: Sequence[SceneRecord] = ()) -> None:
        """``records``: of the split; scenes whose motion is the same cannot be told apart and are not known."""
        found = [_fingerprint_of(record) for record in records]
        count = Counter(found)
        self._tokens = {
            motion: record.token for motion, record in zip(found, records, strict=True) if count[motion] == 1
        }
        self.alike = len(records) - len(self._tokens)
        """Scenes of the split that cannot be told apart."""

    def name(self, scene: AskedScene) -> tuple[str, bool]:
        """What the noise hangs on, and whether it is a token."""
        motion = scene.fingerprint
        token = self._tokens.get(motion)
        return (f"motion {motion}", False) if token is None else (token, True)


def _fingerprint_of(record: SceneRecord) -> str:
    status = np.concatenate([record.velocity, record.acceleration]).astype(np.float32)
    return fingerprint(status, history_of(record).astype(np.float32), record.command)


def fingerprint(status: NDArray[np.float32], history: NDArray[np.float32], command: int) -> str:
    """Past poses count to the millimeter and milliradian: whoever computes them rounds otherwise."""
    rounded = np.rint(history.astype(np.float64) * _MILLI).astype("<i8")
    exact = (status + np.float32(0)).astype("<f4")  # no -0
    return hashlib.sha256(exact.tobytes() + rounded.tobytes() + bytes([command])).hexdigest()
