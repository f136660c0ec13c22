"""Metric scenes for EPDMS (NAVSIM v2) from logs and maps: the v1 scene with v2's objects and extra inputs.

Observations end with the key frame at 4 s, so objects differ from v1's. As in v1, the reference plan is the recorded
driver and the centreline is chosen with the recorded path, which shows in ego progress (and in lane keeping where the
devkit's planner follows other lanes).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from navsim_bridge.logs import Annotations, Log, annotated, log_path, open_log
from navsim_bridge.maps import Polygon, VectorMap, flatten, open_map
from navsim_bridge.metric_cache.builder import SceneBuilder
from navsim_bridge.metric_cache.observation import KEY_FRAMES, observe
from navsim_bridge.metric_cache.route import route_lanes
from navsim_bridge.pdm.metric_scene import EPDMS_FRAMES, EPDMSInputs, MetricScene
from navsim_bridge.pdm.simulate import ego_state_as_read_back
from navsim_bridge.scenes import SceneRecord, by_log

V2_KEY_FRAMES = 9
"""Key frames of a v2 observation: 0 s to 4 s every 0.5 s."""
PAST_FRAMES = 4
"""Recorded states that history comfort starts from: -1.5 s to 0 s every 0.5 s."""
SYNTHETIC_TOKEN = 17
"""Length of a synthetic scene's token; the devkit knows them by it."""
_STEPS = (EPDMS_FRAMES - 1) // (V2_KEY_FRAMES - 1)  # 0.1 s frames between key frames
_NOTHING = Annotations(np.zeros((0, 7)), np.zeros(0, dtype=np.int64), np.zeros((0, 2)), ())


class EPDMSSceneBuilder:
    """Builds the EPDMS scenes of one log."""

    def __init__(self, log: Log, maps: dict[str, VectorMap]) -> None:
        """``maps``: location -> map, for every location of the log."""
        self._log, self._maps = log, maps
        self._v1 = SceneBuilder(log, maps)
        self._polygons = {location: _lane_polygons(vector_map) for location, vector_map in maps.items()}

    def build(self, record: SceneRecord) -> MetricScene:
        """The EPDMS scene of ``record``; raises ValueError naming log, scene and what is missing."""
        scene = self._v1.build(record)
        try:
            return dataclasses.replace(scene, **self._objects(record), v2=self._inputs(record))
        except ValueError as error:
            raise ValueError(f"scene {record.token} of log {record.log_name}: {error}") from error

    def _objects(self, record: SceneRecord) -> dict[str, Any]:
        """The object fields of a scene from the key frames up to 4 s."""
        now = record.first_frame + record.now
        frames = slice(now, now + V2_KEY_FRAMES)
        boxes = annotated(self._log.annotations[frames], self._log, now)
        states = np.zeros((KEY_FRAMES, 11))
        states[:V2_KEY_FRAMES, :3] = self._log.poses[frames]
        # nothing is seen after 4 s, so no track is interpolated towards later sightings
        seen = observe([*boxes, *[_NOTHING] * (KEY_FRAMES - V2_KEY_FRAMES)], ego_state_as_read_back(states)[:, :3])
        rows = int(seen.frame_offsets[EPDMS_FRAMES])
        return {
            "frame_offsets": seen.frame_offsets[: EPDMS_FRAMES + 1],
            "object_track": seen.object_track[:rows],
            "object_boxes": seen.object_boxes[:rows],
            "track_tokens": seen.track_tokens,
            "track_types": seen.track_types,
            "track_first_speed": seen.track_first_speed,
        }

    def _inputs(self, record: SceneRecord) -> EPDMSInputs:
        now = record.first_frame + record.now
        first = max(record.first_frame, now - PAST_FRAMES + 1)
        if now - first < 1:
            raise ValueError("EPDMS needs history: use a split with num_history_frames: 4")
        past = np.zeros((now + 1 - first, 11))
        past[:, :3] = self._log.poses[first : now + 1]
        past[:, 3:5] = self._log.velocities[first : now + 1]
        past[:, 5:7] = self._log.accelerations[first : now + 1]
        tokens, red = self._lights(record, now)
        polygons = [self._polygons[record.location][token] for token in tokens]
        ring_of_light, vertex_of_ring, vertices = flatten(polygons)
        return EPDMSInputs(
            human_plan=None if len(record.token) == SYNTHETIC_TOKEN else record.plan(),
            past_states=ego_state_as_read_back(past),
            past_times_us=self._log.times_us[first : now + 1],
            light_tokens=tokens,
            light_ring_offsets=ring_of_light,
            ring_offsets=vertex_of_ring,
            vertices=vertices.reshape(-1, 2),
            light_red=red,
        )

    def _lights(self, record: SceneRecord, now: int) -> tuple[tuple[str, ...], NDArray[np.bool_]]:
        """Lane connectors of the route that are red in some key frame, and when (41, light)."""
        on_route = set(route_lanes(self._maps[record.location], record.route))
        frames: list[set[str]] = []
        for index in range(now, now + V2_KEY_FRAMES):
            red = self._log.red_lights[index]
            if red is None:
                raise ValueError(
                    f"{self._log.path}: frame {index} (token {self._log.tokens[index]}) has no 'traffic_lights', which "
                    "EPDMS judges; score such logs with the PDM score v1 (--metric pdms)"
                )
            frames.append(on_route & set(red))
        tokens = tuple(sorted(set().union(*frames)))
        for token in tokens:
            if token not in self._polygons[record.location]:
                raise ValueError(f"the map has no polygon of lane connector {token}, whose light is red")
        by_key_frame = np.array([[token in red for token in tokens] for red in frames], dtype=bool)
        by_key_frame = by_key_frame.reshape(V2_KEY_FRAMES, len(tokens))
        return tokens, by_key_frame[np.arange(EPDMS_FRAMES) // _STEPS]


def _lane_polygons(vector_map: VectorMap) -> dict[str, Polygon]:
    return {p.token: p for layer in ("LANE", "LANE_CONNECTOR") for p in vector_map.polygons[layer]}


def build_epdms_scenes(
    records: Sequence[SceneRecord], data_root: Path | str, maps_root: Path | str
) -> Iterator[MetricScene]:
    """EPDMS scenes of ``records``, log by log in order of first appearance, in this process."""
    for (data_split, log_name), of_log in by_log(records).items():
        log = open_log(log_path(data_root, data_split, log_name))
        builder = EPDMSSceneBuilder(log, {r.location: open_map(maps_root, r.location) for r in of_log})
        yield from map(builder.build, of_log)
