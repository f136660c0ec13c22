"""Metric caches of navsim v2 as metric scenes: of recorded scenes, and of the synthetic ones of the second stage.

They hold boxes themselves every 0.1 s, what is annotated at t = 0, and polygons of red lights; lanes are in the map
that they name, and vehicles find theirs there when the file is read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpvla.files import short
from dpvla.plan import NUM_POSES, POSE_INTERVAL
from navsim_bridge.files.frames import MAP_LOCATIONS, Annotations
from navsim_bridge.files.maps import VectorMap, open_map
from navsim_bridge.files.nuplan_objects import Value, boxes_of
from navsim_bridge.metric_cache.official_parts import (
    MOST_POLYGONS,
    open_rings,
    polygon,
    rear_axle,
    shared_fields,
    state,
    time,
)
from navsim_bridge.pdm.metric_scene import AGENT_TYPES, EPDMS_FRAMES, OBJECT_TYPES, EPDMSInputs, MetricScene
from navsim_bridge.traffic.starts import traffic_inputs

ORIGINAL, SYNTHETIC = 0, 1
"""Numbers of a scene's type."""
_AGENTS = [OBJECT_TYPES.index(name) for name in AGENT_TYPES]


def scene_of_v2(cache: Value, token: str, log_name: str, maps_root: Path | str | None) -> MetricScene:
    """The scene of a MetricCache; raises ValueError for content that is not as version 2 writes it, or without map.

    Args:
        cache: the MetricCache.
        token, log_name: of the scene.
        maps_root: see `official.read_official_cache`.
    """
    fields, v2 = shared_fields(cache), _inputs(cache)
    objects = _objects(cache["observation"])
    present = _present(cache["current_tracked_objects"], objects["track_tokens"])
    traffic = traffic_inputs(
        objects["track_tokens"],
        present.track_tokens,
        [OBJECT_TYPES[kind] for kind in present.types],
        _five(present),
        present.velocities,
        np.array(rear_axle(cache["ego_state"])),
        _map(cache["map_parameters"], maps_root),
    )
    return MetricScene(token=token, log_name=log_name, **fields, **objects, v2=replace(v2, traffic=traffic))


def _map(parameters: Value, maps_root: Path | str | None) -> VectorMap:
    """The map that a file names."""
    root, location = maps_root or parameters["map_root"].text(), parameters["map_name"]
    if location.found not in MAP_LOCATIONS:
        raise location.error(f"one of {', '.join(MAP_LOCATIONS)}")
    try:
        return open_map(root, location.text())
    except FileNotFoundError as error:
        of_file = "" if maps_root else " (map_root in the file); say with --maps-root where the maps are"
        raise ValueError(f"{error}{of_file}") from None


def _inputs(cache: Value) -> EPDMSInputs:
    """What EPDMS reads beyond the score of v1, without traffic."""
    kind = cache["scene_type"].argument(0)
    if kind.whole() not in (ORIGINAL, SYNTHETIC):
        raise kind.error(f"{ORIGINAL} or {SYNTHETIC}")
    past = cache["past_human_trajectory"].argument(0).items()
    return EPDMSInputs(
        human_plan=None if kind.whole() == SYNTHETIC else _plan(cache["human_trajectory"]),
        past_states=np.array([state(ego) for ego in past], dtype=np.float64).reshape(-1, 11),
        past_times_us=np.array([time(ego) for ego in past], dtype=np.int64),
        **_lights(cache["observation"]),
    )


def _plan(trajectory: Value) -> NDArray[np.float64]:
    """(8, 3) a Trajectory."""
    poses, sampling = trajectory["poses"], trajectory["trajectory_sampling"]
    if (sampling["num_poses"].whole(), sampling["interval_length"].number()) != (NUM_POSES, POSE_INTERVAL):
        raise sampling.error(f"{NUM_POSES} poses {POSE_INTERVAL} s apart")
    found: Any = poses.found
    if not isinstance(found, np.ndarray) or found.shape != (NUM_POSES, 3) or found.dtype.kind != "f":
        raise poses.error(f"numbers ({NUM_POSES}, 3)")
    return found.astype(np.float64)


def _lights(observation: Value) -> dict[str, Any]:
    """The lights of `EPDMSInputs`: red connectors of the route, with one polygon each."""
    frames, prefix = observation["_occupancy_maps_tl"], f"{observation['_red_light_token'].text()}_"
    if len(frames.items()) != EPDMS_FRAMES:
        raise frames.error(f"{EPDMS_FRAMES} frames")
    shapes: dict[str, Value] = {}
    red: list[set[str]] = []
    for frame in frames.items():
        parts = frame.items()
        if len(parts) != 2:
            raise frame.error("tokens and polygons")
        tokens, geometries = parts[0].texts(), parts[1].items()
        if len(tokens) != len(geometries) or not all(token.startswith(prefix) for token in tokens):
            raise frame.error(f"as many tokens {prefix}... as polygons")
        red.append({token.removeprefix(prefix) for token in tokens})
        for token, geometry in zip(tokens, geometries):
            shapes.setdefault(token.removeprefix(prefix), geometry.argument(0, "Geometry"))
    lights = tuple(sorted(shapes))
    ring_of_light, vertex_of_ring, vertices = open_rings([polygon(shapes[light]) for light in lights])
    return {
        "light_tokens": lights,
        "light_ring_offsets": ring_of_light,
        "ring_offsets": vertex_of_ring,
        "vertices": vertices.reshape(-1, 2),
        "light_red": np.array([[light in frame for light in lights] for frame in red], dtype=bool).reshape(
            EPDMS_FRAMES, len(lights)
        ),
    }


def _objects(observation: Value) -> dict[str, Any]:
    """The object fields of a `MetricScene`."""
    listed, sampling = observation["_detections_tracks"], observation["_observation_sample_res"]
    frames = listed.items()
    if len(frames) != EPDMS_FRAMES or sampling.whole() != 1:
        raise listed.error(f"{EPDMS_FRAMES} object frames at sampling 1")
    collided = observation["_collided_track_ids"]
    if collided.items():
        raise collided.error("no objects that are marked as collided before scoring")
    shown: list[Annotations] = []
    for frame in frames:
        shown.append(boxes_of(frame))
        if sum(len(s.types) for s in shown) > MOST_POLYGONS:
            raise listed.error(f"at most {MOST_POLYGONS} objects")
        if len(set(shown[-1].track_tokens)) < len(shown[-1].types):
            raise frame.error("each track once")
    first: dict[str, tuple[int, float]] = {}  # type and speed of the first sighting
    for one in shown:
        for token, kind, speed in zip(one.track_tokens, one.types.tolist(), one.speeds.tolist()):
            first.setdefault(token, (kind, speed if kind in _AGENTS else 0.0))
    tokens = sorted(first, key=lambda token: first[token][0])  # stable
    place = {token: i for i, token in enumerate(tokens)}
    track = [np.array([place[token] for token in one.track_tokens], dtype=np.int64) for one in shown]
    order = [np.argsort(rows) for rows in track]
    return {
        "frame_offsets": np.cumsum([0, *(len(rows) for rows in track)], dtype=np.int64),
        "object_track": np.concatenate([rows[sort] for rows, sort in zip(track, order)]),
        "object_boxes": np.concatenate([_five(one)[sort] for one, sort in zip(shown, order)]),
        "track_tokens": tuple(tokens),
        "track_types": tuple(OBJECT_TYPES[first[token][0]] for token in tokens),
        "track_first_speed": np.array([first[token][1] for token in tokens], dtype=np.float64),
    }


def _five(shown: Annotations) -> NDArray[np.float64]:
    """(box, 5) center x, center y, heading, length, width."""
    return shown.boxes[:, [0, 1, 6, 3, 4]]


def _present(current: Value, tracks: Sequence[str]) -> Annotations:
    """What is annotated at t = 0."""
    frames = current.items()
    if len(frames) != 1:
        raise current.error("one frame")
    present, known = boxes_of(frames[0]), set(tracks)
    unknown = [token for token in present.track_tokens if token not in known]
    if unknown or len(set(present.track_tokens)) < len(present.track_tokens):
        raise frames[0].error(f"objects of the observation, each once, not {short(unknown[:1])}")
    return present
