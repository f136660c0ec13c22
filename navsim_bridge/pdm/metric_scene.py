"""One scene as the PDM score needs it: plain ragged numpy arrays in the global map frame.

This is the hand-over between whatever reads a scene (logs and maps, official metric caches, stored
reference scores) and the scorer, which packs many of them into a padded, ego-centered ``SceneBatch``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float64]
Int = NDArray[np.int64]

NUM_FRAMES = 51
"""Object frames per scene of the PDM score v1: 0 s to 5 s every 0.1 s."""
EPDMS_FRAMES = 41
"""Object frames per scene of EPDMS (v2): 0 s to 4 s every 0.1 s."""

POLYGON_TYPES = ("ROADBLOCK", "ROADBLOCK_CONNECTOR", "LANE", "LANE_CONNECTOR", "INTERSECTION",
                 "CARPARK_AREA", "DRIVABLE_AREA")  # fmt: skip
OBJECT_TYPES = ("VEHICLE", "PEDESTRIAN", "BICYCLE", "TRAFFIC_CONE", "BARRIER", "CZONE_SIGN",
                "GENERIC_OBJECT", "EGO")  # fmt: skip
AGENT_TYPES = ("VEHICLE", "PEDESTRIAN", "BICYCLE", "EGO")
"""Those of `OBJECT_TYPES` that move by themselves."""
ODD_THINGS = "odd"
"""Key of a scene's provenance: causes (of `files.odd.ODD`) with blanks between; absent where nothing is odd."""


@dataclass(frozen=True)
class TrafficInputs:
    """What vehicles need to react to a plan, from t = 0 and the map alone, so that scoring needs no map.

    Tracks are those of the scene (`MetricScene.track_tokens`); where they are at t = 0 and what is replayed stands in
    its object frames. A follower is a vehicle that the devkit's IDM policy moves along the base line of one lane.
    Global frame, meters, seconds, radians.
    """

    present: NDArray[np.bool_]  # (track,) annotated at t = 0; others are in frame 0 of a recording, but not of traffic
    vehicle_track: Int  # (vehicle,) tracks that are vehicles at t = 0, as the devkit lists them: in the log's order
    vehicle_velocity: Float  # (vehicle, 2) at t = 0, global axes [m/s]
    parked: NDArray[np.bool_]  # (vehicle,) no follower, and stays where it is unless another box is there
    follower: Int  # (follower,) index into the vehicles, in the order in which they move
    follower_pose: Float  # (follower, 3) x, y, heading at t = 0, moved onto the base line
    follower_progress: Float  # (follower,) [m] along the line at t = 0; may lie beyond the end of its path
    follower_limit: Float  # (follower,) [m/s] speed on a free road
    line_offsets: Int  # (follower + 1,) follower -> points of its base line
    line_points: Float  # (point, 2) of the whole line, as the map has it


@dataclass(frozen=True)
class EPDMSInputs:
    """What EPDMS (NAVSIM v2) reads of a scene beyond the PDM score v1.

    Lights are the lane connectors of the route that are red at some time, each with one polygon.
    """

    human_plan: Float | None  # (8, 3) what the recorded driver did, ego frame; None: a synthetic scene
    past_states: Float  # (knot >= 2, 11) recorded states before and at t = 0, 0.5 s apart
    past_times_us: Int  # (knot,) their time stamps
    light_tokens: tuple[str, ...]  # (light,) lane-connector tokens
    light_ring_offsets: Int  # (light + 1,) light -> rings
    ring_offsets: Int  # (ring + 1,) ring -> vertices
    vertices: Float  # (vertex, 2) global frame
    light_red: NDArray[np.bool_]  # (41, light) whether the light is red at each 0.1 s
    traffic: TrafficInputs | None = None  # None: of a cache that was made without; recorded traffic alone can be asked


@dataclass(frozen=True)
class MetricScene:
    """Inputs of the PDM score for one scene, global map frame, meters, seconds, radians.

    Objects differ between the versions, as they do in the devkit's caches: v1 scenes hold 51 frames
    interpolated from annotations up to 5 s, scenes of EPDMS 41 frames up to 4 s and ``v2``.

    The columns of a state are x, y, heading, velocity (x, y), acceleration (x, y), steering angle, steering rate,
    angular velocity and angular acceleration: the pose of the rear axle, the rest in vehicle axes.

    Offsets follow the CSR habit: item ``i`` owns rows ``offsets[i]:offsets[i + 1]``. Rings are open
    (first vertex not repeated); the first ring of a polygon is its outline, the others are holes.
    """

    token: str
    log_name: str
    ego_state: Float  # (11,) rear axle at t = 0 as the devkit reads it back
    ego_time_us: int  # time stamp of t = 0 [us]

    reference_states: Float  # (knot, 3) x, y, heading of the reference plan's knots, first at t = 0
    reference_times_us: Int  # (knot,)

    polygon_tokens: tuple[str, ...]  # (polygon,) may repeat
    polygon_types: tuple[str, ...]  # (polygon,) names from POLYGON_TYPES
    polygon_ring_offsets: Int  # (polygon + 1,) polygon -> rings
    ring_offsets: Int  # (ring + 1,) ring -> vertices
    vertices: Float  # (vertex, 2)
    route_lane_ids: tuple[str, ...]  # on-route lane and lane-connector tokens
    centerline: Float  # (point, 3) x, y, heading

    frame_offsets: Int  # (52,), for EPDMS (42,): frame -> rows of object_track and object_boxes
    object_track: Int  # (row,) index into track_tokens; a token may occur twice in a frame
    object_boxes: Float  # (row, 5) center x, center y, heading, length, width
    track_tokens: tuple[str, ...]  # (track,)
    track_types: tuple[str, ...]  # (track,) names from OBJECT_TYPES, of the first-seen object
    track_first_speed: Float  # (track,) [m/s] of the first-seen object

    provenance: dict[str, str]  # where each part came from, e.g. {"reference": "PDM-Closed (navsim 1.1)"}

    v2: EPDMSInputs | None = None  # what only EPDMS reads


def odd_causes(provenance: Mapping[str, str]) -> tuple[str, ...]:
    """What is odd in the log and the map that a scene came from, by its provenance."""
    return tuple(provenance.get(ODD_THINGS, "").split())
