"""What EPDMS (NAVSIM v2) reads of logs and maps beyond the PDM score v1, by the rules of the devkit 2.1.2.

Observations end with the key frame at 4 s, so objects differ from v1's. History comfort starts from the recorded
states of the last 1.5 s, and lane connectors whose light is red are kept for every 0.1 s.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
from numpy.typing import NDArray

from navsim_bridge.files.logs import Log
from navsim_bridge.files.maps import VectorMap, flatten, refuse_crossing
from navsim_bridge.pdm.metric_scene import EPDMS_FRAMES, EPDMSInputs
from navsim_bridge.pdm.simulate import ego_state_as_read_back
from navsim_bridge.splits.scenes import SceneRecord
from navsim_bridge.splits.two_stage import SYNTHETIC_TOKEN
from navsim_bridge.traffic.log_replay import STEPS

KEY_FRAMES = (EPDMS_FRAMES - 1) // STEPS + 1
"""0 s to 4 s every 0.5 s."""
PAST_FRAMES = 4
"""Recorded states that history comfort starts from: -1.5 s to 0 s every 0.5 s."""


def epdms_inputs(log: Log, vector_map: VectorMap, record: SceneRecord, lanes: Collection[str]) -> EPDMSInputs:
    """The inputs of EPDMS of one scene.

    Args:
        log, vector_map: of the scene.
        record: the scene.
        lanes: lanes of the route as the log gives it: unlike the planner, the devkit judges red lights on the route
            before its correction.

    Raises:
        ValueError: no history, no traffic lights, or a red light without a polygon that can be used.
    """
    now = record.first_frame + record.now
    first = max(record.first_frame, now - PAST_FRAMES + 1)
    if now - first < 1:
        raise ValueError("EPDMS needs history: use a split with num_history_frames: 4")
    past = np.zeros((now + 1 - first, 11))
    past[:, :3] = log.poses[first : now + 1]
    past[:, 3:5] = log.velocities[first : now + 1]
    past[:, 5:7] = log.accelerations[first : now + 1]
    tokens, red = _lights(log, now, set(lanes))
    polygons = [vector_map.areas(token)[0] for token in tokens]
    refuse_crossing(polygons)
    ring_of_light, vertex_of_ring, vertices = flatten(polygons)
    return EPDMSInputs(
        human_plan=None if len(record.token) == SYNTHETIC_TOKEN else record.plan(),
        past_states=ego_state_as_read_back(past),
        past_times_us=log.times_us[first : now + 1],
        light_tokens=tokens,
        light_ring_offsets=ring_of_light,
        ring_offsets=vertex_of_ring,
        vertices=vertices.reshape(-1, 2),
        light_red=red,
    )


def _lights(log: Log, now: int, lanes: set[str]) -> tuple[tuple[str, ...], NDArray[np.bool_]]:
    """Those of ``lanes`` that are red in some key frame, and when (41, light)."""
    frames: list[set[str]] = []
    for index in range(now, now + KEY_FRAMES):
        red = log.red_lights[index]
        if red is None:
            raise ValueError(
                f"{log.path}: frame {index} (token {log.tokens[index]}) has no 'traffic_lights', which EPDMS judges"
            )
        frames.append(lanes & set(red))
    tokens = tuple(sorted(set().union(*frames)))
    by_key_frame = np.array([[token in red for token in tokens] for red in frames], dtype=bool)
    by_key_frame = by_key_frame.reshape(KEY_FRAMES, len(tokens))
    return tokens, by_key_frame[np.arange(EPDMS_FRAMES) // STEPS]
