"""Metric scenes with vehicles to move that somebody made up."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from navsim_bridge.pdm.metric_scene import MetricScene, TrafficInputs


def with_traffic(scene: MetricScene, followers: int = 0, **changes: Any) -> MetricScene:
    """The scene of EPDMS with its vehicles at t = 0, of which some follow a lane each and the others are parked.

    ``changes`` replace fields of `TrafficInputs`.
    """
    assert scene.v2 is not None
    first = scene.object_track[: int(scene.frame_offsets[1])]
    vehicles = np.array([i for i in sorted(set(first.tolist())) if scene.track_types[i] == "VEHICLE"], dtype=np.int64)
    follower = np.arange(min(followers, len(vehicles)))
    rng = np.random.default_rng(0)
    boxes = np.array([scene.object_boxes[int(np.argmax(first == track))] for track in vehicles]).reshape(-1, 5)
    ahead = np.arange(0.0, 50.0, 0.7)[:, None]
    lines = [box[:2] + ahead * [np.cos(box[2]), np.sin(box[2])] for box in boxes[follower]]
    inputs = TrafficInputs(
        present=np.isin(np.arange(len(scene.track_tokens)), first),
        vehicle_track=vehicles,
        vehicle_velocity=rng.normal(0.0, 5.0, (len(vehicles), 2)),
        parked=np.arange(len(vehicles)) >= len(follower),
        follower=follower,
        follower_pose=boxes[follower, :3],
        follower_progress=np.zeros(len(follower)),
        follower_limit=np.full(len(follower), 10.0),
        line_offsets=np.cumsum([0, *(len(line) for line in lines)], dtype=np.int64),
        line_points=np.concatenate([np.zeros((0, 2)), *lines]),
    )
    return dataclasses.replace(scene, v2=dataclasses.replace(scene.v2, traffic=dataclasses.replace(inputs, **changes)))
