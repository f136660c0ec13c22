"""Traffic that keeps its velocity and heading, whatever the ego does."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from navsim_bridge.pdm.metric_scene import EPDMS_FRAMES
from navsim_bridge.pdm.traffic_scene import SceneTraffic
from navsim_bridge.traffic.policy import Float, Int, MovedVehicles, VehicleFrames
from navsim_bridge.traffic.tables import table

STEP = 0.1
"""[s]"""


class ConstantVelocity(MovedVehicles):
    """Every vehicle at t = 0 goes on as it is; nothing else is moved."""

    def move(self, scenes: Sequence[SceneTraffic], scene: Int, ego: Float) -> VehicleFrames:
        boxes, there = table([one.boxes for one in scenes], 5)
        velocities, _ = table([one.inputs.vehicle_velocity for one in scenes], 2)
        elapsed = np.arange(1, EPDMS_FRAMES) * STEP
        poses = np.broadcast_to(boxes[:, None, :, :3], (len(boxes), len(elapsed), *boxes.shape[1:2], 3)).copy()
        poses[..., :2] += velocities[:, None] * elapsed[:, None, None]
        shape = (len(scene), len(elapsed), boxes.shape[1])
        return VehicleFrames(
            poses=poses[scene],
            velocities=np.broadcast_to(velocities[scene][:, None], (*shape, 2)),
            there=np.broadcast_to(there[scene][:, None], shape),
            order=np.broadcast_to(np.arange(shape[2]), (shape[0], shape[2])),
            dead_ends=np.zeros(len(scene), dtype=np.int64),
        )
