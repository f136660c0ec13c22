"""Metric caches of navsim v1.1 as metric scenes.

Objects are stored as polygons of their box corners, 51 frames of them. Center, heading and size are taken back from
the corners; where they are within `SNAP` of the first-seen object's size, or of the straight line between 0.5 s key
frames along which the devkit interpolated, they are set to that, which removes the rounding of the corners. Headings
keep it (about 1e-9 rad).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpvla.files import short
from navsim_bridge.files.nuplan_objects import Value, object_type, vector
from navsim_bridge.metric_cache.official_parts import MOST_POLYGONS, check_size, polygons, shared_fields
from navsim_bridge.metric_cache.tracks import interpolated_between_key_frames
from navsim_bridge.pdm.metric_scene import AGENT_TYPES, NUM_FRAMES, OBJECT_TYPES, MetricScene

SNAP = 1e-7
"""[m] what separates a rounded number from another one."""


def scene_of_v1(cache: Value, token: str, log_name: str) -> MetricScene:
    """The scene of a MetricCache; raises ValueError for content that is not as version 1.1 writes it."""
    return MetricScene(token=token, log_name=log_name, **shared_fields(cache), **_objects(cache["observation"]))


def _objects(observation: Value) -> dict[str, Any]:
    """The object fields of a `MetricScene`."""
    maps, sampling = observation["_occupancy_maps"].items(), observation["_observation_sample_res"].whole()
    if len(maps) != NUM_FRAMES or sampling != 1:
        raise ValueError(f"{len(maps)} object frames at sampling {sampling}; expected {NUM_FRAMES} at 1")
    if observation["_collided_track_ids"].items():
        raise ValueError("objects are marked as collided before scoring, which this reader does not support")
    unique, red_light = observation["_unique_objects"].mapping(), observation["_red_light_token"].text()
    names, shapes, frames = [], [], []
    for frame, occupancy in enumerate(maps):
        tokens, geometries = occupancy.argument(0).texts(), occupancy.argument(1)
        rings = polygons(geometries)
        if len(tokens) != len(rings):
            raise ValueError(f"object frame {frame} has {len(tokens)} tokens and {len(rings)} polygons")
        for token, polygon in zip(tokens, rings):
            if token in unique:
                names.append(token)
                shapes.append(polygon)
                frames.append(frame)
            elif red_light not in token:  # red lights are no objects: the v1 score skips them
                raise ValueError(f"object frame {frame} holds {short(token)}, which is no known object")
        if len(names) > MOST_POLYGONS:
            raise ValueError(f"more than {MOST_POLYGONS} objects in its frames")
    types = {token: OBJECT_TYPES[object_type(unique[token])] for token in dict.fromkeys(names)}
    seen = sorted(types, key=lambda token: OBJECT_TYPES.index(types[token]))
    position = {token: i for i, token in enumerate(seen)}
    track = np.array([position[name] for name in names], dtype=np.int64)
    frame_of_row = np.array(frames, dtype=np.int64)
    boxes = interpolated_between_key_frames(frame_of_row, track, _boxes(shapes), SNAP)
    first_size = np.array([_size(unique[token]["_box"]) for token in seen], dtype=np.float64)
    sizes = first_size.reshape(-1, 2)[track]
    near = (np.abs(boxes[:, 3:] - sizes) <= SNAP).all(axis=1)
    boxes[near, 3:] = sizes[near]
    return {
        "frame_offsets": np.concatenate([[0], np.cumsum(np.bincount(frame_of_row, minlength=NUM_FRAMES))]),
        "object_track": track,
        "object_boxes": boxes,
        "track_tokens": tuple(seen),
        "track_types": tuple(types[token] for token in seen),
        "track_first_speed": np.array([_speed(unique[token], types[token]) for token in seen], dtype=np.float64),
    }


def _size(box: Value) -> tuple[float, float]:
    return box["_length"].number(), box["_width"].number()


def _speed(found: Value, kind: str) -> float:
    if kind not in AGENT_TYPES:
        return 0.0
    return float(np.hypot(*vector(found["_velocity"])))


def _boxes(shapes: Sequence[Sequence[NDArray[np.float64]]]) -> NDArray[np.float64]:
    """(box, 5) center, heading, length and width of rectangles whose corners start front left and go round by rear
    left, as nuPlan writes them."""
    if len(shapes) == 0:
        return np.zeros((0, 5))
    if any(len(rings) != 1 or len(rings[0]) != 5 for rings in shapes):
        raise ValueError("an object is not a rectangle of four corners")
    corners = np.stack([rings[0][:4] for rings in shapes])
    check_size("an object", corners)
    front_left, rear_left, rear_right, front_right = np.moveaxis(corners, 1, 0)
    along = (front_left - rear_left + front_right - rear_right) / 2
    across = (front_left - front_right + rear_left - rear_right) / 2
    length, width = np.linalg.norm(along, axis=1), np.linalg.norm(across, axis=1)
    # The longer side gives the better heading; across is 90 degrees to the left of along.
    by_along = np.arctan2(along[:, 1], along[:, 0])
    by_across = np.arctan2(-across[:, 0], across[:, 1])
    heading = np.where(length >= width, by_along, by_across)
    center = rear_right + (along + across) / 2
    return np.column_stack([center, heading, length, width])
