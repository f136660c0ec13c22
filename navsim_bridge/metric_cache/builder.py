"""`MetricScene`s from logs and maps, by the observation rules of the devkit's metric cache (version 1.1).

What differs from the official cache: the reference plan is the recorded driver, not the PDM-Closed planner, and
the centreline is chosen with the recorded path (see `route`). Both are named in each scene's provenance.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from navsim_bridge.logs import Log, annotated, log_path, open_log
from navsim_bridge.maps import VectorMap, flatten, open_map
from navsim_bridge.metric_cache.observation import KEY_FRAMES, observe
from navsim_bridge.metric_cache.route import Centerlines, route_lanes
from navsim_bridge.pdm.metric_scene import MetricScene
from navsim_bridge.pdm.simulate import ego_state_as_read_back, reference_from_plan
from navsim_bridge.scenes import SceneRecord, by_log

MAP_RADIUS = 100.0
"""Half-width [m] of the map square around the vehicle centre that the score looks at."""
CENTER_FROM_REAR_AXLE = 1.461
"""Metres from the rear axle forward to the centre of the devkit's vehicle."""
REFERENCE = "recorded driver"


class SceneBuilder:
    """Builds the metric scenes of one log."""

    def __init__(self, log: Log, maps: dict[str, VectorMap]) -> None:
        """``maps``: location -> map, for every location of the log."""
        self._log, self._maps = log, maps
        self._centerlines = {location: Centerlines(vector_map) for location, vector_map in maps.items()}

    def build(self, record: SceneRecord) -> MetricScene:
        """The metric scene of ``record``.

        Raises ValueError naming log, scene and what is missing: fewer than ten future frames, no annotations,
        or a route that the map does not have.
        """
        now = record.first_frame + record.now
        frames = slice(now, now + KEY_FRAMES)
        if len(record.poses) - record.now < KEY_FRAMES:
            raise ValueError(
                f"scene {record.token} of log {record.log_name} has {len(record.poses) - record.num_history} future "
                f"frames; scoring needs {KEY_FRAMES - 1}: use a split with num_future_frames: {KEY_FRAMES - 1}"
            )
        states = np.zeros((KEY_FRAMES, 11))
        states[:, :3] = self._log.poses[frames]
        states = ego_state_as_read_back(states)
        ego_state = states[0].copy()
        ego_state[3:5], ego_state[5:7] = record.velocity, record.acceleration
        vector_map = self._maps[record.location]
        try:
            boxes = annotated(self._log.annotations[frames], self._log, now)
            observation = observe(boxes, states[:, :3])
            lanes = route_lanes(vector_map, record.route)
        except ValueError as error:
            raise ValueError(f"scene {record.token} of log {record.log_name}: {error}") from error
        centerline, source = self._centerlines[record.location].find(lanes, ego_state[:3], self._log.poses[frames])
        reference, times = reference_from_plan(record.plan(), ego_state, int(record.times_us[record.now]))
        heading = ego_state[2]
        polygons = vector_map.drivable(
            float(ego_state[0] + CENTER_FROM_REAR_AXLE * np.cos(heading)),
            float(ego_state[1] + CENTER_FROM_REAR_AXLE * np.sin(heading)),
            MAP_RADIUS,
        )
        ring_of_polygon, vertex_of_ring, vertices = flatten(polygons)
        return MetricScene(
            token=record.token,
            log_name=record.log_name,
            ego_state=ego_state,
            ego_time_us=int(record.times_us[record.now]),
            reference_states=reference,
            reference_times_us=times,
            polygon_tokens=tuple(p.token for p in polygons),
            polygon_types=tuple(p.layer for p in polygons),
            polygon_ring_offsets=ring_of_polygon,
            ring_offsets=vertex_of_ring,
            vertices=vertices,
            route_lane_ids=lanes,
            centerline=centerline,
            frame_offsets=observation.frame_offsets,
            object_track=observation.object_track,
            object_boxes=observation.object_boxes,
            track_tokens=observation.track_tokens,
            track_types=observation.track_types,
            track_first_speed=observation.track_first_speed,
            provenance={"reference": REFERENCE, "centerline": source},
        )


def build_scenes(records: Sequence[SceneRecord], data_root: Path | str, maps_root: Path | str) -> Iterator[MetricScene]:
    """Metric scenes of ``records``, log by log in order of first appearance, in this process."""
    for (data_split, log_name), of_log in by_log(records).items():
        log = open_log(log_path(data_root, data_split, log_name))
        builder = SceneBuilder(log, {r.location: open_map(maps_root, r.location) for r in of_log})
        yield from map(builder.build, of_log)
