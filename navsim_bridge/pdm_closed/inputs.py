"""What the reference planner looks at in a scene, and the plan it hands back."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from navsim_bridge.files.frames import Annotations
from navsim_bridge.files.maps import Polygon, refuse_crossing
from navsim_bridge.pdm.metric_scene import OBJECT_TYPES, MetricScene

Float = NDArray[np.float64]
Int = NDArray[np.int64]


@dataclass(frozen=True)
class PresentObjects:
    """Boxes around the ego at t = 0, global frame."""

    tokens: tuple[str, ...]  # (object,) track tokens, each once
    types: tuple[str, ...]  # (object,) names from OBJECT_TYPES
    boxes: Float  # (object, 5) center x, center y, heading, length, width
    velocities: Float  # (object, 2) global axes [m/s]; not read of things that are no road users

    @classmethod
    def from_annotations(cls, annotations: Annotations, pose: Float) -> PresentObjects:
        """The boxes of the log frame at t = 0, whose rear-axle pose (3,) is given as the devkit reads it back."""
        sizes = annotations.boxes[:, 3:5]
        return cls(
            tokens=annotations.track_tokens,
            types=tuple(OBJECT_TYPES[kind] for kind in annotations.types),
            boxes=np.concatenate([annotations.global_poses(pose), sizes], axis=1),
            velocities=annotations.global_velocities(pose),
        )


@dataclass(frozen=True)
class PlannerScene:
    """Inputs of PDM-Closed for one scene, global frame; map fields as in `MetricScene`.

    Route, centerline and speed limit are those of the planner's own, corrected route.
    """

    token: str
    log_name: str
    ego_state: Float  # (11,) rear axle at t = 0 as the devkit reads it back
    ego_time_us: int
    centerline: Float  # (point >= 2, 3) x, y, heading of the base lines' points
    speed_limit: float  # [m/s] of the lane that the centerline starts in; NaN where the map has none
    route_lane_ids: tuple[str, ...]
    polygon_tokens: tuple[str, ...]
    polygon_types: tuple[str, ...]
    polygon_ring_offsets: Int
    ring_offsets: Int
    vertices: Float
    present: PresentObjects
    red_lights: tuple[Polygon, ...]  # on-route lane connectors that are red at t = 0

    def metric_scene(self, **others: Any) -> MetricScene:
        """The same scene for the scorer, with its ``others``: reference plan, objects, provenance."""
        shared = {field.name for field in fields(MetricScene)} & {field.name for field in fields(self)}
        return MetricScene(**{name: getattr(self, name) for name in shared}, **others)


@dataclass(frozen=True)
class ReferencePlan:
    """What the devkit's metric cache keeps as its reference trajectory, and how it was chosen."""

    states: Float  # (51, 3) global rear-axle poses every 0.1 s, for ``MetricScene.reference_states``
    times_us: Int  # (51,) their time stamps, for ``MetricScene.reference_times_us``
    proposal: int  # index of the chosen proposal: path * 5 + policy
    scores: Float  # (15,) of the planner's own scoring
    ignored: frozenset[str]  # tokens that planning of the following scenes has to start with


def red_lights_on_route(
    red: Collection[str], route_lane_ids: Collection[str], polygons: Mapping[str, Polygon]
) -> tuple[Polygon, ...]:
    """Polygons of the red lane connectors that are on the route, in the order of the log.

    Args:
        red: ids of red connectors at t = 0 (``Log.red_lights``).
        route_lane_ids: lanes and connectors of the corrected route.
        polygons: lane-connector polygons of the map by id.

    Raises ValueError for one that has no polygon, or one that crosses itself, on which the devkit raises, too.
    """
    on_route = set(route_lane_ids)
    missing = [token for token in red if token in on_route and token not in polygons]
    if missing:
        raise ValueError(f"the map has no polygon of lane connector {missing[0]}, whose light is red")
    refuse_crossing([polygons[token] for token in red if token in on_route])
    return tuple(polygons[token] for token in red if token in on_route)
