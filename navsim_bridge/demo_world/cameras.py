"""The eight cameras: where they sit on the car, which way they look, and their pinhole model."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float64]

FOCAL, CENTER_X, CENTER_Y = 1545.0, 960.0, 560.0  # pixels at full size
FULL_WIDTH, FULL_HEIGHT = 1920, 1080
MOUNTS: dict[str, tuple[float, float, float, float]] = {  # x, y, z [m] and bearing [degrees] in the ego frame
    "CAM_F0": (1.70, 0.00, 1.53, 0.0),
    "CAM_L0": (1.62, 0.35, 1.55, 55.0),
    "CAM_R0": (1.62, -0.35, 1.55, -55.0),
    "CAM_L1": (1.15, 0.55, 1.60, 110.0),
    "CAM_R1": (1.15, -0.55, 1.60, -110.0),
    "CAM_L2": (0.20, 0.55, 1.60, 150.0),
    "CAM_R2": (0.20, -0.55, 1.60, -150.0),
    "CAM_B0": (-0.45, 0.00, 1.62, 180.0),
}


@dataclass(frozen=True)
class Camera:
    """A pinhole camera without distortion. Axes: x right, y down, z forward; ego frame: x forward, y left, z up."""

    name: str
    intrinsic: Float  # (3, 3) for the image size in use
    rotation: Float  # (3, 3) camera to ego
    translation: Float  # (3,) camera center in the ego frame
    width: int
    height: int

    def project(self, points: Float) -> tuple[Float, Float]:
        """Pixel coordinates ``(n, 2)`` and depths ``(n,)`` of points in the ego frame (valid for depth > 0)."""
        local = (points - self.translation) @ self.rotation
        depth = local[:, 2]
        with np.errstate(divide="ignore", invalid="ignore"):
            pixel = local[:, :2] / depth[:, None]
        focal = np.array([self.intrinsic[0, 0], self.intrinsic[1, 1]])
        return pixel * focal + self.intrinsic[:2, 2], depth


def make_camera(name: str, width: int, height: int) -> Camera:
    """The named camera at the given image size."""
    x, y, z, bearing = MOUNTS[name]
    angle = np.deg2rad(bearing)
    forward, right = [np.cos(angle), np.sin(angle), 0.0], [np.sin(angle), -np.cos(angle), 0.0]
    sx, sy = width / FULL_WIDTH, height / FULL_HEIGHT
    intrinsic = np.array([[FOCAL * sx, 0.0, CENTER_X * sx], [0.0, FOCAL * sy, CENTER_Y * sy], [0.0, 0.0, 1.0]])
    rotation = np.array([right, [0.0, 0.0, -1.0], forward]).T.copy()
    return Camera(name, intrinsic, rotation, np.array([x, y, z]), width, height)
