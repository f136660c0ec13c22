"""``EPDMSBatch``: many scenes with the inputs of EPDMS (NAVSIM v2), packed into padded tensors."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dpvla.plan import NUM_POSES
from navsim_bridge.ego import HALF_EGO
from navsim_bridge.pdm.geometry import boxes_intersect, ego_center
from navsim_bridge.pdm.metric_scene import EPDMS_FRAMES, NUM_FRAMES, EPDMSInputs, MetricScene
from navsim_bridge.pdm.packing import check_finite, check_offsets, pack_map, scene_error
from navsim_bridge.pdm.scene import SceneBatch, concatenate_padded
from navsim_bridge.pdm.traffic_scene import TrafficBatch

_PAST_STEP_US = 100_000
_PARTS = ("scenes", "traffic")


@dataclass(frozen=True)
class EPDMSBatch:
    """Scenes as EPDMS needs them; scene axis first, coordinates as in ``SceneBatch``.

    Objects that overlap the ego at t = 0 are left out, as the devkit's log replay of traffic does.
    """

    scenes: SceneBatch  # objects end at 4 s; frames 41..50 are empty
    human_plans: Tensor  # (scene, 8, 3) ego frame; zeros where there is none
    has_human: Tensor  # (scene,) bool, False: synthetic
    past: Tensor  # (scene, sample, 3) heading, longitudinal and lateral acceleration every 0.1 s before t = 0
    past_count: Tensor  # (scene,) int64 valid samples
    light_chains: Tensor  # (scene, chain, edge + 1, 2) pieces of the lights' polygons, +inf as padding
    chain_light: Tensor  # (scene, chain) int64
    light_red: Tensor  # (scene, 41, light) bool
    object_is_light: Tensor  # (scene, object) bool, tracks whose token makes the devkit take them for a red light
    traffic: TrafficBatch  # what traffic that is not recorded needs

    def __len__(self) -> int:
        return len(self.scenes)

    @property
    def tokens(self) -> tuple[str, ...]:
        """Scene tokens."""
        return self.scenes.tokens

    @property
    def sizes(self) -> NDArray[np.int64]:
        """As in ``SceneBatch``."""
        return self.scenes.sizes

    @property
    def device(self) -> torch.device:
        """Device of all tensors."""
        return self.scenes.device

    def to(self, device: torch.device | str) -> EPDMSBatch:
        """The same scenes on another device."""
        return self._map(self.scenes.to(device), self.traffic.to(device), lambda tensor: tensor.to(device))

    def select(self, index: Sequence[int] | NDArray[np.int64] | Tensor) -> EPDMSBatch:
        """The scenes at ``index`` (may repeat)."""
        if isinstance(index, Tensor):
            index = index.cpu().numpy()
        index = np.asarray(index, dtype=np.int64).reshape(-1)
        rows = torch.from_numpy(index).to(self.device)
        scenes = self.scenes.select(index)
        objects = scenes.object_track.shape[1]
        traffic = self.traffic.select(index, rows, objects)
        picked = self._map(scenes, traffic, lambda tensor: tensor.index_select(0, rows))
        return dataclasses.replace(picked, object_is_light=picked.object_is_light[:, :objects])

    @classmethod
    def concatenate(cls, parts: Sequence[EPDMSBatch]) -> EPDMSBatch:
        """The scenes of all parts, on one device, in order; padded to the largest of them."""
        tensors: dict[str, Any] = {
            field.name: concatenate_padded(
                [getattr(part, field.name) for part in parts], torch.inf if field.name == "light_chains" else 0
            )
            for field in dataclasses.fields(cls)
            if field.name not in _PARTS
        }
        return cls(
            scenes=SceneBatch.concatenate([part.scenes for part in parts]),
            traffic=TrafficBatch.concatenate([part.traffic for part in parts]),
            **tensors,
        )

    def _map(self, scenes: SceneBatch, traffic: TrafficBatch, function: Callable[[Tensor], Tensor]) -> EPDMSBatch:
        tensors: dict[str, Any] = {
            field.name: function(getattr(self, field.name))
            for field in dataclasses.fields(self)
            if field.name not in _PARTS
        }
        return dataclasses.replace(self, scenes=scenes, traffic=traffic, **tensors)

    @classmethod
    def from_scenes(cls, scenes: Sequence[MetricScene]) -> EPDMSBatch:
        """Pack scenes that carry ``MetricScene.v2``.

        Raises:
            ValueError: no scenes, a scene without ``v2``, or with NaN, missing or inconsistent arrays; names it.
        """
        extras = [_checked(scene) for scene in scenes]
        scenes = [_with_empty_tail(scene) for scene in scenes]
        everything = SceneBatch.from_scenes(scenes)
        batch = _without_overlapping(everything)
        past = [_sample_past(extra) for extra in extras]
        count = np.array([len(rows) for rows in past], dtype=np.int64)
        padded = np.zeros((len(scenes), int(count.max()), 3))
        for row, samples in enumerate(past):
            padded[row, : len(samples)] = samples

        lights: dict[str, NDArray] = {}
        as_map = [lights_as_map(scene, extra) for scene, extra in zip(scenes, extras)]
        pack_map(as_map, batch.origin.numpy(), lights, np.zeros((len(scenes), 5), dtype=np.int64))
        red = np.zeros((len(scenes), EPDMS_FRAMES, max(len(extra.light_tokens) for extra in extras)), dtype=bool)
        for row, extra in enumerate(extras):
            red[row, :, : len(extra.light_tokens)] = extra.light_red
        is_light = np.zeros(batch.object_track.shape, dtype=bool)
        for row, scene in enumerate(scenes):
            is_light[row, : len(scene.track_tokens)] = [t.startswith("red_light") for t in scene.track_tokens]
        human = [np.zeros((NUM_POSES, 3)) if extra.human_plan is None else extra.human_plan for extra in extras]
        return cls(
            scenes=batch,
            human_plans=torch.from_numpy(np.stack(human).astype(np.float64)),
            has_human=torch.tensor([extra.human_plan is not None for extra in extras]),
            past=torch.from_numpy(padded),
            past_count=torch.from_numpy(count),
            light_chains=torch.from_numpy(lights["chain_vertices"]),
            chain_light=torch.from_numpy(lights["chain_polygon"]),
            light_red=torch.from_numpy(red),
            object_is_light=torch.from_numpy(is_light),
            traffic=TrafficBatch.of(scenes, everything),
        )


def _checked(scene: MetricScene) -> EPDMSInputs:
    """The scene's extra inputs, when their shapes and values can be used."""
    extra, token = scene.v2, scene.token
    if extra is None:
        raise scene_error(
            token, "it holds the inputs of the PDM score v1 alone, without MetricScene.v2; EPDMS needs it"
        )
    if np.shape(scene.frame_offsets) != (EPDMS_FRAMES + 1,):
        raise scene_error(
            token, f"EPDMS needs {EPDMS_FRAMES} object frames, found {len(np.atleast_1d(scene.frame_offsets)) - 1}"
        )
    knots, lights = len(extra.past_times_us), len(extra.light_tokens)
    expected = {
        "human_plan": (extra.human_plan, (NUM_POSES, 3)),
        "past_states": (extra.past_states, (knots, 11)),
        "light_red": (extra.light_red, (EPDMS_FRAMES, lights)),
        "vertices": (extra.vertices, (len(extra.vertices), 2)),
    }
    for name, (array, shape) in expected.items():
        if array is None:
            continue
        if np.shape(array) != shape:
            raise scene_error(token, f"v2.{name} must have shape {shape}, found {np.shape(array)}")
        if np.asarray(array).dtype != bool:
            check_finite(f"v2.{name}", np.asarray(array), np.zeros(len(array), dtype=np.int64), [token])
    if knots < 2 or (np.diff(extra.past_times_us) <= 0).any():
        raise scene_error(token, "v2.past_times_us must hold at least two time stamps that increase strictly")
    check_offsets(token, "v2.light_ring_offsets", extra.light_ring_offsets, lights, len(extra.ring_offsets) - 1, 1)
    check_offsets(token, "v2.ring_offsets", extra.ring_offsets, len(extra.ring_offsets) - 1, len(extra.vertices), 3)
    return extra


def _without_overlapping(batch: SceneBatch) -> SceneBatch:
    """The scenes without the tracks that touch the ego box at t = 0."""
    scene, column = batch.object_mask[:, 0].nonzero(as_tuple=True)
    box, ego = batch.object_boxes[scene, 0, column], batch.ego_state[scene]
    touching = boxes_intersect(ego_center(ego), ego[:, 2], HALF_EGO, box[:, :2], box[:, 2], box[:, 3:])
    gone = torch.zeros_like(batch.track_skipped)
    gone[scene[touching], batch.object_track[scene, column][touching]] = True
    gone = gone.gather(1, batch.object_track)
    return dataclasses.replace(batch, object_mask=batch.object_mask & ~gone[:, None])


def _with_empty_tail(scene: MetricScene) -> MetricScene:
    """The scene with empty object frames from 4 s on; nothing of EPDMS looks there."""
    tail = np.full(NUM_FRAMES - EPDMS_FRAMES, scene.frame_offsets[-1], dtype=np.int64)
    return dataclasses.replace(scene, frame_offsets=np.concatenate([scene.frame_offsets, tail]))


def _sample_past(extra: EPDMSInputs) -> NDArray[np.float64]:
    """Heading and accelerations (sample, 3) of the past every 0.1 s.

    The devkit samples from the first state up to, not including, the last, and then drops one more sample: 1.5 s
    give 14 samples that end 0.2 s before t = 0, though the comfort filters take them for 0.1 s.
    """
    times = np.asarray(extra.past_times_us, dtype=np.int64) - int(extra.past_times_us[0])
    at = np.arange(0, times[-1], _PAST_STEP_US)[:-1]
    states = np.asarray(extra.past_states, dtype=np.float64)
    columns = (np.unwrap(states[:, 2]), states[:, 5], states[:, 6])
    return np.stack([np.interp(at, times, column) for column in columns], axis=-1)


def lights_as_map(scene: MetricScene, extra: EPDMSInputs) -> MetricScene:
    """A scene whose map is the lights' polygons, for the packing they share with the map."""
    return dataclasses.replace(
        scene,
        polygon_tokens=extra.light_tokens,
        polygon_types=("LANE_CONNECTOR",) * len(extra.light_tokens),
        polygon_ring_offsets=extra.light_ring_offsets,
        ring_offsets=extra.ring_offsets,
        vertices=extra.vertices,
    )
