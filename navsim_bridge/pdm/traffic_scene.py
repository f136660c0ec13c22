"""``TrafficBatch``: what traffic that is not recorded needs of many scenes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from navsim_bridge.pdm.metric_scene import EPDMS_FRAMES, Float, MetricScene, TrafficInputs
from navsim_bridge.pdm.packing import check_finite, check_offsets, scene_error
from navsim_bridge.pdm.scene import SceneBatch, concatenate_padded


@dataclass(frozen=True)
class SceneTraffic:
    """The vehicles of one scene at t = 0, global frame; on the CPU."""

    inputs: TrafficInputs
    tokens: tuple[str, ...]  # (vehicle,) of their tracks
    boxes: Float  # (vehicle, 5) center x, center y, heading, length, width
    origin: Float  # (2,) of the scene frame


@dataclass(frozen=True)
class TrafficBatch:
    """The vehicles of many scenes, and what is recorded of everything else; scene axis first."""

    vehicles: tuple[SceneTraffic | None, ...]  # (scene,) None: a scene without `EPDMSInputs.traffic`
    recorded: Tensor  # (scene, 41, object) bool, `SceneBatch.object_mask` with what overlaps the ego at t = 0
    annotated: Tensor  # (scene, object) bool, seen at t = 0
    is_vehicle: Tensor  # (scene, object) bool

    @classmethod
    def of(cls, scenes: Sequence[MetricScene], batch: SceneBatch) -> TrafficBatch:
        """Pack what ``scenes`` hold, whose columns are those of ``batch``.

        Raises ValueError for arrays that contradict each other or the scene; names its token.
        """
        present, vehicle = (np.zeros(batch.object_track.shape, dtype=bool) for _ in range(2))
        for row, scene in enumerate(scenes):
            vehicle[row, : len(scene.track_types)] = [name == "VEHICLE" for name in scene.track_types]
            if scene.v2 is not None and scene.v2.traffic is not None:
                present[row, : len(scene.track_types)] = scene.v2.traffic.present
        return cls(
            vehicles=tuple(map(_vehicles, scenes)),
            recorded=batch.object_mask[:, :EPDMS_FRAMES],
            annotated=torch.from_numpy(present).gather(1, batch.object_track),
            is_vehicle=torch.from_numpy(vehicle).gather(1, batch.object_track),
        )

    def to(self, device: torch.device | str) -> TrafficBatch:
        """The same with its tensors on another device."""
        return TrafficBatch(self.vehicles, *(tensor.to(device) for tensor in self._tensors))

    def select(self, index: NDArray[np.int64], rows: Tensor, objects: int) -> TrafficBatch:
        """The scenes at ``index``, which is ``rows`` on the device, with their first ``objects`` columns."""
        picked = (tensor.index_select(0, rows)[..., :objects] for tensor in self._tensors)
        return TrafficBatch(tuple(self.vehicles[row] for row in index.tolist()), *picked)

    @classmethod
    def concatenate(cls, parts: Sequence[TrafficBatch]) -> TrafficBatch:
        """The scenes of all parts, on one device, in order; padded to the largest of them."""
        joined = [concatenate_padded(tensors, 0) for tensors in zip(*(part._tensors for part in parts))]
        return cls(tuple(one for part in parts for one in part.vehicles), *joined)

    @property
    def _tensors(self) -> tuple[Tensor, ...]:
        return self.recorded, self.annotated, self.is_vehicle


def _vehicles(scene: MetricScene) -> SceneTraffic | None:
    found = None if scene.v2 is None else scene.v2.traffic
    if found is None:
        return None
    _check(scene, found)
    rows = slice(0, int(scene.frame_offsets[1]))
    row_of = {int(track): row for row, track in enumerate(scene.object_track[rows])}
    lost = [scene.track_tokens[track] for track in found.vehicle_track if int(track) not in row_of]
    if lost:
        raise scene_error(scene.token, f"v2.traffic: vehicle {lost[0]} is not in the first object frame")
    boxes = scene.object_boxes[[row_of[int(track)] for track in found.vehicle_track]]
    return SceneTraffic(
        inputs=found,
        tokens=tuple(scene.track_tokens[track] for track in found.vehicle_track),
        boxes=np.asarray(boxes, dtype=np.float64).reshape(-1, 5),
        origin=np.asarray(scene.ego_state[:2], dtype=np.float64),
    )


def _check(scene: MetricScene, found: TrafficInputs) -> None:
    """Refuse arrays whose shapes, offsets or indexes contradict each other or the scene."""
    token, tracks, vehicles, followers = (
        scene.token, len(scene.track_tokens), len(found.vehicle_track), len(found.follower),
    )  # fmt: skip
    shapes = {
        "present": (tracks,), "vehicle_velocity": (vehicles, 2), "parked": (vehicles,),
        "follower_pose": (followers, 3), "follower_progress": (followers,), "follower_limit": (followers,),
        "line_points": (len(found.line_points), 2),
    }  # fmt: skip
    for name, shape in shapes.items():
        array = np.asarray(getattr(found, name))
        if array.shape != shape:
            raise scene_error(token, f"v2.traffic.{name} must have shape {shape}, found {array.shape}")
        if array.dtype != bool:
            check_finite(f"v2.traffic.{name}", array, np.zeros(len(array), dtype=np.int64), [token])
    check_offsets(token, "v2.traffic.line_offsets", found.line_offsets, followers, len(found.line_points), 2)
    for name, index, size in (
        ("vehicle_track", found.vehicle_track, tracks),
        ("follower", found.follower, vehicles),
    ):
        if len(index) and (int(np.min(index)) < 0 or int(np.max(index)) >= size):
            raise scene_error(token, f"v2.traffic.{name} must hold indexes below {size}")
    if (np.asarray(found.follower_limit) <= 0).any():
        raise scene_error(token, "v2.traffic.follower_limit must hold positive speeds")


def without_inputs(batch: TrafficBatch, tokens: Sequence[str]) -> list[str]:
    """Tokens of scenes that lack `EPDMSInputs.traffic`."""
    return [token for token, vehicles in zip(tokens, batch.vehicles) if vehicles is None]
