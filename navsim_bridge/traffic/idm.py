"""Traffic that reacts: the devkit's IDM policy, which its two-stage score asks of both stages.

Vehicles on a lane follow it (`following`), parked ones stay, and every other vehicle is gone from 0.1 s on. Vehicles
jump to the base line between the first two frames. Facts read in navsim 2.1.2.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import shapely
from numpy.typing import NDArray

from navsim_bridge.pdm.metric_scene import EPDMS_FRAMES
from navsim_bridge.pdm.traffic_scene import SceneTraffic
from navsim_bridge.traffic.following import Followers, Motion, follow
from navsim_bridge.traffic.policy import Float, Int, MovedVehicles, VehicleFrames
from navsim_bridge.traffic.shapes import rectangles
from navsim_bridge.traffic.tables import table

Bool = NDArray[np.bool_]


class IDM(MovedVehicles):
    """Vehicles follow their lanes and brake for what is ahead."""

    def move(self, scenes: Sequence[SceneTraffic], scene: Int, ego: Float) -> VehicleFrames:
        boxes, _ = table([one.boxes for one in scenes], 5)
        velocity, _ = table([one.inputs.vehicle_velocity for one in scenes], 2)
        parked, parks = table([np.flatnonzero(one.inputs.parked) for one in scenes])
        follower, follows = table([one.inputs.follower for one in scenes])
        parked, parks, follower, follows = parked[scene], parks[scene], follower[scene], follows[scene]
        motion = follow([_followers(one) for one in scenes], scene, ego)
        size = np.take_along_axis(boxes[scene][..., 3:], follower[..., None], axis=1)
        stand = np.take_along_axis(boxes[scene], parked[..., None], axis=1)
        stays = _stay(stand, parks, motion, size)

        shape = (len(scene), EPDMS_FRAMES - 1, boxes.shape[1])
        poses, velocities = np.zeros((*shape, 3)), np.zeros((*shape, 2))
        there = np.zeros(shape, dtype=bool)
        poses[:], velocities[:] = boxes[scene][:, None, :, :3], velocity[scene][:, None]
        row, at = np.nonzero(parks)
        there[row, :, parked[row, at]] = stays[row, :, at]
        row, at = np.nonzero(follows)
        vehicle, heading = follower[row, at], motion.poses[row, :, at, 2]
        poses[row, :, vehicle], there[row, :, vehicle] = motion.poses[row, :, at], motion.active[row, :, at]
        along = np.stack([np.cos(heading), np.sin(heading)], axis=-1)
        velocities[row, :, vehicle] = motion.speeds[row, :, at, None] * along
        return VehicleFrames(poses, velocities, there, _order(shape[2], follower, follows), motion.dead_ends)


def _followers(one: SceneTraffic) -> Followers:
    found = one.inputs
    velocity = found.vehicle_velocity[found.follower]
    return Followers(
        tokens=tuple(one.tokens[i] for i in found.follower),
        start=np.concatenate([found.follower_pose, one.boxes[found.follower, 3:]], axis=1),
        progress=found.follower_progress,
        speed=np.hypot(velocity[:, 0], velocity[:, 1]),
        limit=found.follower_limit,
        lines=tuple(np.split(found.line_points, found.line_offsets[1:-1])) if len(found.follower) else (),
    )


def _stay(boxes: Float, parks: Bool, motion: Motion, size: Float) -> Bool:
    """(row, frame, parked): whether parked vehicles are shown, which stand nowhere where something else is.

    Args:
        boxes: (row, parked, 5) of vehicles that may stay, in their order; parks: (row, parked) whether there is one.
        motion: of the followers; size: (row, follower, 2) their lengths and widths.
    """
    frames = motion.active.shape[1]
    stays = np.broadcast_to(parks[:, None], (len(parks), frames, parks.shape[1])).copy()
    radius, reach = np.hypot(*np.moveaxis(boxes[..., 3:], -1, 0)) / 2, np.hypot(*np.moveaxis(size, -1, 0)) / 2
    shapes = np.full(parks.shape, None, dtype=object)
    shapes[parks] = rectangles(boxes[parks])
    for i in range(parks.shape[1]):
        apart = np.hypot(*np.moveaxis(motion.poses[..., :2] - boxes[:, None, None, i, :2], -1, 0))
        near = motion.active & parks[:, i, None, None] & (apart <= (reach + radius[:, i, None])[:, None] + 1e-6)
        row, frame, other = np.nonzero(near)
        others = np.concatenate([motion.poses[row, frame, other], size[row, other]], axis=-1)
        met = shapely.intersects(shapes[row, i], rectangles(others))
        stays[row[met], frame[met], i] = False
        for j in range(i):
            row = np.flatnonzero(parks[:, i] & parks[:, j])
            row = row[shapely.intersects(shapes[row, i], shapes[row, j])]
            stays[row, :, i] &= ~stays[row, :, j]
    return stays


def _order(vehicles: int, follower: Int, follows: Bool) -> Int:
    """(row, vehicle): followers in their order, then the others in theirs."""
    place = np.broadcast_to(np.arange(vehicles) + vehicles, (len(follower), vehicles)).copy()
    row, at = np.nonzero(follows)
    place[row, follower[row, at]] = at
    return np.argsort(place, axis=1, kind="stable")
