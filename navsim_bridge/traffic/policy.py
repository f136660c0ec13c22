"""What is around the ego during a plan: to add a policy, write one file with a subclass and name it in `TRAFFIC`.

A policy that moves the vehicles of t = 0 is a `MovedVehicles`, which has the rest in common.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from navsim_bridge.pdm.epdms_scene import EPDMSBatch
from navsim_bridge.pdm.metric_scene import EPDMS_FRAMES
from navsim_bridge.pdm.objects import ObjectBatch
from navsim_bridge.pdm.traffic_scene import SceneTraffic, without_inputs

Float = NDArray[np.float64]
Int = NDArray[np.int64]

STATE = 5
"""Columns of an ego state that traffic looks at: x, y, heading, and velocity in its own axes."""


@dataclass(frozen=True)
class VehicleFrames:
    """Vehicles from 0.1 s to 4 s in many rows; a row is one plan in one scene. Global frame."""

    poses: Float  # (row, 40, vehicle, 3) center x, center y, heading
    velocities: Float  # (row, 40, vehicle, 2) global axes [m/s]
    there: NDArray[np.bool_]  # (row, 40, vehicle)
    order: Int  # (row, vehicle) in which the devkit lists those that are there
    dead_ends: Int  # (row,) see `ObjectBatch`


class TrafficPolicy(ABC):
    """Traffic during a plan, as the devkit's ``traffic_agents_policy`` of the same name has it."""

    as_recorded: ClassVar[bool] = False
    """Whether the objects are those that the scenes hold, which then can be used as they are."""

    @abstractmethod
    def simulate(self, scenes: EPDMSBatch, states: Tensor) -> ObjectBatch:
        """The objects during each of many plans.

        Plans see different traffic, so that what is given back has an entry for every plan: entry
        ``scene * candidates + candidate`` holds the 41 frames of that plan of that scene, in the columns that the
        scene's objects have in ``scenes``. A term that looks at objects is then asked about ``scene * candidates``
        scenes of one candidate (or of two: the reference is scored in the traffic of each plan)::

            objects = policy.simulate(scenes, states)  # states (scene, candidate, 41, 11)
            collision = no_at_fault_collisions(objects, states.flatten(0, 1)[:, None], areas of the same shape)

        Args:
            scenes: of metric scenes with `EPDMSInputs.traffic`, on any device.
            states: (scene, candidate, 41, 11) simulated ego states in the scene frame (global axes, origin at the ego
                rear axle at t = 0), columns as in `MetricScene`.

        Raises:
            ValueError: a scene without `EPDMSInputs.traffic`; names it, and says what to do.
        """


class MovedVehicles(TrafficPolicy):
    """A policy that moves the vehicles of t = 0, and nothing else.

    As in the devkit, the first frame shows everything that is annotated at t = 0, also what overlaps the ego. In the
    others vehicles are where they were moved to, and what is no vehicle is where it was recorded. Vehicles that appear
    later do not.

    Vehicles are moved on the CPU, in float64. From a GPU the states are fetched, which is waited for once, and the
    vehicles' boxes are sent back.
    """

    def simulate(self, scenes: EPDMSBatch, states: Tensor) -> ObjectBatch:
        lacking = without_inputs(scenes.traffic, scenes.tokens)
        if lacking:
            raise ValueError(
                f"metric scene {lacking[0]!r} ({len(lacking)} of {len(scenes)}) holds nothing of what vehicles need to "
                "move, only the recorded traffic (log_replay): the cache is of an earlier version, make it again with "
                "tools/cache_metrics.py"
            )
        vehicles = [one for one in scenes.traffic.vehicles if one is not None]
        candidates = states.shape[1]
        ego = states[..., :STATE].flatten(0, 1).cpu().numpy().copy()
        row_scene = np.repeat(np.arange(len(vehicles)), candidates)
        origin = np.stack([one.origin for one in vehicles])[row_scene]
        ego[..., :2] += origin[:, None]
        frames = self.move(vehicles, row_scene, ego)
        return _objects(scenes, candidates, frames, row_scene, origin)

    @abstractmethod
    def move(self, scenes: Sequence[SceneTraffic], scene: Int, ego: Float) -> VehicleFrames:
        """Where vehicles are from 0.1 s on.

        Args:
            scenes: what rows are of.
            scene: (row,) index into ``scenes``.
            ego: (row, 41, 5) simulated ego states, global frame; columns x, y and heading of the rear axle, and
                velocity (x, y) in vehicle axes.
        """


def repeated(tensor: Tensor, candidates: int) -> Tensor:
    """For every candidate of every scene the values of its scene, a copy."""
    return tensor.repeat_interleave(candidates, dim=0) if candidates > 1 else tensor.clone()


def _objects(scenes: EPDMSBatch, candidates: int, frames: VehicleFrames, row_scene: Int, origin: Float) -> ObjectBatch:
    batch, traffic = scenes.scenes, scenes.traffic
    vehicles = [one for one in traffic.vehicles if one is not None]
    counts = np.array([len(one.tokens) for one in vehicles], dtype=np.int64)[row_scene]
    row, vehicle = np.nonzero(np.arange(frames.there.shape[2]) < counts[:, None])
    tracks = [one.inputs.vehicle_track for one in vehicles]
    column = np.concatenate([np.zeros(0, dtype=np.int64), *(tracks[scene] for scene in row_scene)])
    sizes = np.concatenate([np.zeros((0, 2)), *(vehicles[scene].boxes[:, 3:] / 2 for scene in row_scene)])
    moved = np.empty((len(row), EPDMS_FRAMES - 1, 6))
    moved[..., :3] = frames.poses[row, :, vehicle]
    moved[..., :2] -= origin[row, None]
    moved[..., 3:5] = sizes[:, None]
    moved[..., 5] = frames.there[row, :, vehicle]

    device = batch.device
    at = torch.from_numpy(row).to(device), slice(1, EPDMS_FRAMES), torch.from_numpy(column).to(device)
    sent = torch.from_numpy(moved).to(device)

    mask = traffic.recorded.clone()
    mask[:, 0] &= traffic.annotated
    mask[:, 1:] &= ~traffic.is_vehicle[:, None]
    boxes, mask = repeated(batch.object_boxes[:, :EPDMS_FRAMES], candidates), repeated(mask, candidates)
    boxes[at], mask[at] = sent[..., :5], sent[..., 5] > 0
    return ObjectBatch(
        object_boxes=boxes,
        object_mask=mask,
        object_track=repeated(batch.object_track, candidates),
        track_is_agent=repeated(batch.track_is_agent, candidates),
        track_stopped=repeated(batch.track_stopped, candidates),
        track_skipped=repeated(batch.track_skipped, candidates),
        dead_ends=torch.from_numpy(frames.dead_ends).to(device),
    )


def listed(vehicles: SceneTraffic, frames: VehicleFrames, row: int) -> list[list[int]]:
    """Per frame from 0.1 s on the vehicles of a row that are there, in the order in which the devkit lists them."""
    order = [i for i in frames.order[row].tolist() if i < len(vehicles.tokens)]
    return [[i for i in order if there[i]] for there in frames.there[row]]
