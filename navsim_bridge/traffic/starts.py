"""Where vehicles start in the traffic of the devkit's IDM policy, and the lane that each follows.

Facts read in navsim 2.1.2 and nuplan-devkit 1.2, whose decisions these are down to the order of comparisons. One thing
differs: a lane whose base line the map lacks is no lane here; the devkit stops with an error there.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import shapely
from numpy.typing import NDArray

from navsim_bridge.ego import EGO_LENGTH, EGO_WIDTH, REAR_AXLE_TO_CENTER
from navsim_bridge.files.map_tables import MapError
from navsim_bridge.files.maps import Lane, Polygon, VectorMap
from navsim_bridge.pdm.metric_scene import TrafficInputs
from navsim_bridge.traffic.shapes import rectangles

Float = NDArray[np.float64]

FREE_SPEED = 10.0
"""[m/s] Of vehicles on a lane without a speed limit, unless an earlier vehicle's lane has one."""
FARTHEST_FROM_LINE = 3.0
"""[m] From a vehicle's center to the base line that it follows."""
PARKED_SPEED = 0.1
"""[m/s] What is slower and in no lane or intersection is parked."""
HEADING_STEP = 0.5
"""[m] Along a line, to tell its heading."""


def traffic_inputs(
    track_tokens: Sequence[str],
    tokens: Sequence[str],
    types: Sequence[str],
    boxes: Float,
    velocities: Float,
    ego_pose: Float,
    vector_map: VectorMap,
) -> TrafficInputs:
    """What `EPDMSInputs.traffic` holds of a scene.

    Args:
        track_tokens: of the metric scene; the tokens of the objects are among them.
        tokens: (object,) track tokens of what is annotated at t = 0, each once, in the log's order.
        types: (object,) names from OBJECT_TYPES.
        boxes: (object, 5) center x, center y, heading, length, width; global frame.
        velocities: (object, 2) global axes [m/s].
        ego_pose: (3,) global rear-axle pose at t = 0 as the devkit reads it back.
        vector_map: of the scene's location.
    """
    track = {token: i for i, token in enumerate(track_tokens)}
    present = np.zeros(len(track_tokens), dtype=bool)
    present[[track[token] for token in tokens]] = True
    vehicles = [i for i, name in enumerate(types) if name == "VEHICLE"]
    boxes, velocities = boxes[vehicles], velocities[vehicles]
    starts = [_Start.of(vector_map, *box[:3].tolist()) for box in boxes]

    limit, followers, limits = FREE_SPEED, [], []
    taken = [rectangles(_ego_box(ego_pose)[None])[0]]
    for i, start in enumerate(starts):
        if start.lane is None or start.deviation > FARTHEST_FROM_LINE:
            continue
        placed = rectangles(np.append(start.pose, boxes[i, 3:])[None])[0]
        if shapely.intersects(placed, taken).any():
            continue
        taken.append(placed)
        followers.append(i)
        if start.lane.speed_limit > 0.0:
            limit = start.lane.speed_limit  # where a lane has none, that of the vehicle before stays: the devkit leaks
        limits.append(limit)

    slow = np.hypot(velocities[:, 0], velocities[:, 1]) < PARKED_SPEED
    aside = np.array([start.deviation > FARTHEST_FROM_LINE for start in starts], dtype=bool)
    off_road = np.array([not start.on_road for start in starts], dtype=bool)
    following = np.isin(np.arange(len(vehicles)), followers)
    lines = [lane.baseline[:, :2] for i in followers if (lane := starts[i].lane) is not None]
    return TrafficInputs(
        present=present,
        vehicle_track=np.array([track[tokens[i]] for i in vehicles], dtype=np.int64),
        vehicle_velocity=velocities.reshape(-1, 2),
        parked=~following & ((slow & off_road) | aside),
        follower=np.array(followers, dtype=np.int64),
        follower_pose=np.array([starts[i].pose for i in followers]).reshape(-1, 3),
        follower_progress=np.array([starts[i].progress for i in followers], dtype=np.float64),
        follower_limit=np.array(limits, dtype=np.float64),
        line_offsets=np.cumsum([0, *(len(line) for line in lines)], dtype=np.int64),
        line_points=np.concatenate([np.zeros((0, 2)), *lines]),
    )


class _Start:
    """What the map says of one vehicle."""

    def __init__(self, on_road: bool, lane: Lane | None, progress: float, pose: Float, deviation: float) -> None:
        self.on_road = on_road
        """Inside a lane or an intersection."""
        self.lane, self.progress, self.pose = lane, progress, pose
        self.deviation = deviation
        """[m] From the line; 0 without a lane."""

    @classmethod
    def of(cls, vector_map: VectorMap, x: float, y: float, heading: float) -> _Start:
        in_lanes = _holding(vector_map, "LANE", x, y)
        on_road = bool(in_lanes or _holding(vector_map, "INTERSECTION", x, y))
        areas = in_lanes or (_holding(vector_map, "LANE_CONNECTOR", x, y) if on_road else [])
        lanes = [lane for area in areas if (lane := _lane(vector_map, area.token)) is not None]
        nearest = [_nearest_pose(lane.baseline[:, :2], x, y) for lane in lanes]
        if not lanes:
            return cls(on_road, None, 0.0, np.zeros(3), 0.0)
        # Not wrapped, as in the devkit: beside +-pi it may choose the lane that runs the other way.
        best = int(np.argmin([abs(pose[2] - heading) for _, pose in nearest]))
        progress, pose = nearest[best]
        return cls(on_road, lanes[best], progress, pose, float(np.hypot(pose[0] - x, pose[1] - y)))


def _holding(vector_map: VectorMap, layer: str, x: float, y: float) -> list[Polygon]:
    """Polygons of a layer that hold the point, edges not included."""
    found = vector_map.at(layer, x, y)
    return [polygon for polygon in found if shapely.contains_xy(polygon.shape(), x, y)]


def _lane(vector_map: VectorMap, token: str) -> Lane | None:
    try:
        return vector_map.lanes.get(token)
    except MapError:
        return None


def _nearest_pose(points: Float, x: float, y: float) -> tuple[float, Float]:
    """Progress [m] and pose (3,) of the point of a line (point, 2) that is nearest to a position."""
    line = shapely.LineString(points)
    progress = float(line.project(shapely.Point(x, y)))
    here, ahead = line.interpolate(progress), line.interpolate(progress + HEADING_STEP)
    if here == ahead:  # the end of the line
        here_from = line.interpolate(progress - HEADING_STEP)
        heading = np.arctan2(here.y - here_from.y, here.x - here_from.x)
    else:
        heading = np.arctan2(ahead.y - here.y, ahead.x - here.x)
    return progress, np.array([here.x, here.y, heading])


def _ego_box(pose: Float) -> Float:
    x, y, heading = pose
    center = x + REAR_AXLE_TO_CENTER * np.cos(heading), y + REAR_AXLE_TO_CENTER * np.sin(heading)
    return np.array([*center, heading, EGO_LENGTH, EGO_WIDTH])
