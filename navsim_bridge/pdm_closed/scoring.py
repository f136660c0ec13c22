"""The planner's own scoring: the devkit's scorer of the same version, on its forecast instead of what happens.

Progress is measured by the furthest of the fifteen proposals. In version 2 history comfort counts as one, because the
planner knows no past, and two-frame comfort is not weighed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from dpvla.plan import NUM_POSES
from navsim_bridge.files.maps import Polygon, flatten
from navsim_bridge.pdm.epdms import MULTIPLIERS
from navsim_bridge.pdm.epdms_scene import EPDMSBatch
from navsim_bridge.pdm.formula import EXTENDED_PDM_SCORE, PDM_SCORE, total
from navsim_bridge.pdm.metric_scene import EPDMS_FRAMES, NUM_FRAMES, MetricScene
from navsim_bridge.pdm.packing import pack_map
from navsim_bridge.pdm.scene import SceneBatch
from navsim_bridge.pdm.terms.areas import EgoAreas, drivable_area_compliance, ego_areas
from navsim_bridge.pdm.terms.collision import no_at_fault_collisions
from navsim_bridge.pdm.terms.comfort import comfort_flags
from navsim_bridge.pdm.terms.lanes import lane_keeping
from navsim_bridge.pdm.terms.lights import traffic_light_compliance
from navsim_bridge.pdm.terms.progress import (
    driving_direction_compliance,
    normalize_progress,
    normalize_raw_progress,
    progress_along_centerline,
)
from navsim_bridge.pdm.terms.ttc import LOOKAHEAD, time_to_collision
from navsim_bridge.pdm.traffic_scene import TrafficBatch
from navsim_bridge.pdm_closed.forecast import FRAME_STEP, Forecast
from navsim_bridge.pdm_closed.inputs import PlannerScene


def scores_v1(scenes: Sequence[PlannerScene], forecasts: Sequence[Forecast], states: Tensor) -> Tensor:
    """PDM score v1 (scene, proposal) of simulated states (scene, proposal, 41, 11), global frame."""
    batch = SceneBatch.from_scenes([_as_metric_scene(scene, seen) for scene, seen in zip(scenes, forecasts)])
    states = _in_frames_of(batch, states)
    areas = ego_areas(batch, states)
    values = {
        "no_at_fault_collisions": no_at_fault_collisions(batch, states, areas).score,
        "drivable_area_compliance": drivable_area_compliance(areas),
        "time_to_collision_within_bound": time_to_collision(batch, states, areas).score,
        "comfort": comfort_flags(states).all(-1).to(torch.float64),
    }
    product = values["no_at_fault_collisions"] * values["drivable_area_compliance"]
    weighted = progress_along_centerline(batch, states) * product
    values["ego_progress"] = normalize_progress(weighted, product, weighted.amax(-1, keepdim=True).expand_as(weighted))
    return total(PDM_SCORE, values)


def scores_v2(scenes: Sequence[PlannerScene], forecasts: Sequence[Forecast], states: Tensor) -> Tensor:
    """``pdm_score`` of version 2 (scene, proposal) of simulated states (scene, proposal, 41, 11), global frame."""
    as_metric = [_as_metric_scene(scene, seen) for scene, seen in zip(scenes, forecasts)]
    batch = SceneBatch.from_scenes(as_metric)
    states = _in_frames_of(batch, states)
    with_lights = _with_lights(batch, as_metric, [scene.red_lights for scene in scenes])
    areas = ego_areas(batch, states)
    off_route = areas._replace(oncoming=areas.oncoming & ~areas.center_in_intersection)
    seen = EPDMS_FRAMES - max(LOOKAHEAD)
    raw = progress_along_centerline(batch, states)
    values = {
        "no_at_fault_collisions": no_at_fault_collisions(batch, states, areas).score,
        "drivable_area_compliance": drivable_area_compliance(areas),
        "driving_direction_compliance": driving_direction_compliance(states, off_route),
        "traffic_light_compliance": traffic_light_compliance(with_lights, states),
        "time_to_collision_within_bound": time_to_collision(
            batch, states[:, :, :seen], EgoAreas(*(flag[:, :, :seen] for flag in areas))
        ).score,
        "lane_keeping": lane_keeping(batch, states, areas),
        "history_comfort": torch.ones_like(raw),
    }
    product = torch.stack([values[name] for name in MULTIPLIERS]).prod(0)
    values["ego_progress"] = normalize_raw_progress(raw, (raw * product).amax(-1, keepdim=True))
    return total(EXTENDED_PDM_SCORE, values)


def _in_frames_of(batch: SceneBatch, states: Tensor) -> Tensor:
    """Global states in the scenes' own frames."""
    states = states.clone()
    states[..., :2] -= batch.origin[:, None, None]
    return states


def _as_metric_scene(scene: PlannerScene, seen: Forecast) -> MetricScene:
    """The scene with the planner's forecast in place of what really happens."""
    kept = np.flatnonzero(~seen.ignored_object)
    centers = seen.centers(np.arange(NUM_FRAMES) // FRAME_STEP)[:, kept]
    shape = np.broadcast_to(seen.boxes[kept, 2:], (NUM_FRAMES, len(kept), 3))
    pose = scene.ego_state[:3]
    return scene.metric_scene(
        reference_states=np.stack([pose, pose]),  # nothing is compared with a reference here
        reference_times_us=np.array([scene.ego_time_us, scene.ego_time_us + 1]),
        frame_offsets=np.arange(NUM_FRAMES + 1) * len(kept),
        object_track=np.tile(np.arange(len(kept)), NUM_FRAMES),
        object_boxes=np.concatenate([centers, shape], axis=-1).reshape(-1, 5),
        track_tokens=tuple(seen.tokens[i] for i in kept),
        track_types=tuple(seen.types[i] for i in kept),
        track_first_speed=seen.speed[kept],
        provenance={},
    )


def _with_lights(batch: SceneBatch, scenes: Sequence[MetricScene], lights: Sequence[tuple[Polygon, ...]]) -> EPDMSBatch:
    """The batch with the lights that are red at t = 0, taken to stay so. It has neither past nor recorded driver."""
    as_maps = []
    for scene, red_lights in zip(scenes, lights):
        rings, vertices_of_ring, vertices = flatten(red_lights)
        as_maps.append(
            dataclasses.replace(
                scene,
                polygon_tokens=tuple(light.token for light in red_lights),
                polygon_types=("LANE_CONNECTOR",) * len(red_lights),
                polygon_ring_offsets=rings,
                ring_offsets=vertices_of_ring,
                vertices=vertices,
            )
        )
    packed: dict[str, np.ndarray] = {}
    pack_map(as_maps, batch.origin.numpy(), packed, np.zeros((len(scenes), 5), dtype=np.int64))
    count = torch.tensor([len(red_lights) for red_lights in lights])
    red = torch.arange(int(count.max())) < count[:, None]
    return EPDMSBatch(
        scenes=batch,
        human_plans=torch.zeros((len(scenes), NUM_POSES, 3), dtype=torch.float64),
        has_human=torch.zeros(len(scenes), dtype=torch.bool),
        past=torch.zeros((len(scenes), 0, 3), dtype=torch.float64),
        past_count=torch.zeros(len(scenes), dtype=torch.int64),
        light_chains=torch.from_numpy(packed["chain_vertices"]),
        chain_light=torch.from_numpy(packed["chain_polygon"]),
        light_red=red[:, None].expand(-1, EPDMS_FRAMES, -1),
        object_is_light=torch.zeros_like(batch.track_is_agent),
        traffic=TrafficBatch.of(scenes, batch),
    )
