"""What the planner believes the others will do: keep their velocity; and which of them it looks at at all."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import shapely
from numpy.typing import NDArray

from navsim_bridge.pdm.metric_scene import NUM_FRAMES
from navsim_bridge.pdm_closed.boxes import EGO_HALF, box_distance, corners, ego_centers
from navsim_bridge.pdm_closed.inputs import PlannerScene

Float = NDArray[np.float64]

FRAME_STEP = 2
"""Steps of 0.1 s between forecast frames; a step in between looks at the frame before it."""
NUM_FORECASTS = NUM_FRAMES // FRAME_STEP + 1
RADIUS = 100.0
"""[m] between the centers of ego and object; farther ones are not looked at."""
RED_LIGHT = "red_light_"
_MOST_MOVING = {"VEHICLE": 50, "PEDESTRIAN": 25, "BICYCLE": 10}
_MOST_STATIC = 50


@dataclass(frozen=True)
class Forecast:
    """Objects of one scene in the order of the devkit's occupancy maps: static ones, then road users by type, each
    nearest first; then red lights."""

    tokens: tuple[str, ...]  # (object,)
    types: tuple[str, ...]  # (object,)
    boxes: Float  # (object, 5) center x, y, heading, length, width at t = 0
    velocity: Float  # (object, 2) [m/s] along the heading, or against it for objects that go backwards
    speed: Float  # (object,) [m/s]
    is_agent: NDArray[np.bool_]  # (object,) road users
    ignored_object: NDArray[np.bool_]  # (object,) touches the ego at t = 0: neither followed nor scored
    light_tokens: tuple[str, ...]  # (light,)
    lights: NDArray[np.object_]  # (light,) shapely polygons
    ignored_light: NDArray[np.bool_]  # (light,) not followed
    newly_ignored: tuple[str, ...]  # tokens of what this scene adds to the list of ignored ones

    def centers(self, frames: NDArray[np.int64]) -> Float:
        """(frame, object, 2) at forecast frames, of `FRAME_STEP` steps each."""
        seconds = (frames * FRAME_STEP).astype(np.float64) * 0.1
        return self.boxes[None, :, :2] + seconds[:, None, None] * self.velocity[None]


def forecast(scene: PlannerScene, ignored: Collection[str] = ()) -> Forecast:
    """Objects and red lights that the planner deals with.

    Args:
        scene: the inputs; its objects are those of t = 0.
        ignored: tokens that earlier scenes of the same run put on the list of ignored ones.
    """
    present = scene.present
    center = ego_centers(scene.ego_state[None, :3])[0]
    away = np.hypot(present.boxes[:, 0] - center[0], present.boxes[:, 1] - center[1])
    usable = away <= RADIUS
    usable &= np.array([token not in ignored for token in present.tokens], dtype=bool).reshape(len(away))
    types = np.array(present.types, dtype=object)
    groups = []
    for of_type, most in (
        (~np.isin(types, [*_MOST_MOVING, "EGO"]), _MOST_STATIC),
        *((types == name, most) for name, most in _MOST_MOVING.items()),
    ):
        rows = np.flatnonzero(usable & of_type)
        groups.append(rows[np.argsort(away[rows], kind="stable")][:most])
    order = np.concatenate(groups)
    boxes = present.boxes[order]
    is_agent = np.isin(types[order], list(_MOST_MOVING))
    vx, vy = np.where(is_agent[:, None], present.velocities[order], 0.0).T
    speed = np.hypot(vx, vy)
    off_course = boxes[:, 2] - np.arctan2(vy, vx)
    backwards = np.abs(np.arctan2(np.sin(off_course), np.cos(off_course))) >= np.pi / 2
    heading = boxes[:, 2] + np.where(backwards, np.pi, 0.0)
    tokens = tuple(present.tokens[i] for i in order)

    touching = _touches_ego(scene, boxes)
    ego = shapely.polygons(corners(center, scene.ego_state[2], EGO_HALF))
    lights = np.array([light.shape() for light in scene.red_lights], dtype=object)
    light_tokens = tuple(RED_LIGHT + light.token for light in scene.red_lights)
    inside = np.array([shapely.within(ego, light) for light in lights], dtype=bool)
    earlier = np.array([token in ignored for token in light_tokens], dtype=bool)
    newly = [token for token, new in zip(tokens + light_tokens, [*touching, *inside]) if new]
    return Forecast(
        tokens=tokens,
        types=tuple(types[order]),
        boxes=boxes,
        velocity=np.stack([np.cos(heading) * speed, np.sin(heading) * speed], axis=1),
        speed=speed,
        is_agent=is_agent,
        ignored_object=touching,
        light_tokens=light_tokens,
        lights=lights,
        ignored_light=inside | earlier,
        newly_ignored=tuple(newly),
    )


def _touches_ego(scene: PlannerScene, boxes: Float) -> NDArray[np.bool_]:
    """(object,) whether boxes share a point with the ego's at t = 0."""
    pose = scene.ego_state[:3]
    center = ego_centers(np.array([[0.0, 0.0, pose[2]]]))[0]
    apart = box_distance(center, pose[2], EGO_HALF, boxes[:, :2] - pose[:2], boxes[:, 2], boxes[:, 3:] / 2)
    return np.asarray(apart == 0.0)
