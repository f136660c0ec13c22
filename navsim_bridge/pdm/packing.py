"""Metric scenes -> padded numpy arrays: checks and vectorized packing behind ``SceneBatch.from_scenes``."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from navsim_bridge.pdm.metric_scene import AGENT_TYPES, NUM_FRAMES, OBJECT_TYPES, POLYGON_TYPES, MetricScene

CHAIN_EDGES = 10
"""Edges per polygon chain; more means fewer bounding-box tests and more exact edge tests."""
STOPPED_SPEED = 0.05
"""[m/s] an object (or the ego) at or below this speed counts as standing."""

_DRIVABLE = ("ROADBLOCK", "INTERSECTION", "DRIVABLE_AREA", "CARPARK_AREA")
_LANE = ("LANE", "LANE_CONNECTOR")


class SceneSizes(NamedTuple):
    """Valid entries per padded axis of one scene, or the largest of several scenes."""

    knots: int
    chains: int
    polygons: int
    line_points: int
    objects: int


def pack_scenes(scenes: Sequence[MetricScene]) -> tuple[dict[str, NDArray], NDArray[np.int64]]:
    """Arrays of ``SceneBatch`` by field name, and the sizes (scene, 5) in the order of ``SceneSizes``.

    Raises:
        ValueError: a scene with NaN, missing or inconsistent arrays; names its token.
    """
    for scene in scenes:
        _check_shapes(scene)
    tokens = [scene.token for scene in scenes]
    states = np.stack([np.asarray(scene.ego_state, dtype=np.float64) for scene in scenes])
    check_finite("ego_state", states, np.arange(len(scenes)), tokens)
    origin = states[:, :2].copy()
    states[:, :2] = 0.0
    times = np.array([int(scene.ego_time_us) for scene in scenes], dtype=np.int64)
    parts: dict[str, NDArray] = {"origin": origin, "ego_state": states, "ego_time_us": times}
    sizes = np.zeros((len(scenes), len(SceneSizes._fields)), dtype=np.int64)
    _pack_reference(scenes, origin, parts, sizes)
    pack_map(scenes, origin, parts, sizes)
    _pack_centerline(scenes, origin, parts, sizes)
    _pack_objects(scenes, origin, parts, sizes)
    return parts, sizes


def scene_error(token: str, problem: str) -> ValueError:
    """An error that names the scene."""
    return ValueError(f"metric scene {token!r}: {problem}")


def _check_shapes(scene: MetricScene) -> None:
    """Refuse arrays whose shapes or offsets contradict each other (cheap, once per scene)."""
    token = scene.token

    def expect(condition: bool, problem: str) -> None:
        if not condition:
            raise scene_error(token, problem)

    expect(np.shape(scene.ego_state) == (11,), f"ego_state must be (11,), found {np.shape(scene.ego_state)}")
    knots = np.shape(scene.reference_states)
    expect(
        len(knots) == 2 and knots[0] >= 2 and knots[1] >= 3, f"reference_states must be (knot >= 2, 3), found {knots}"
    )
    expect(
        np.shape(scene.reference_times_us) == knots[:1],
        f"reference_times_us must be ({knots[0]},), found {np.shape(scene.reference_times_us)}",
    )
    polygons = len(scene.polygon_tokens)
    expect(len(scene.polygon_types) == polygons, f"{polygons} polygon tokens but {len(scene.polygon_types)} types")
    rings = len(scene.ring_offsets) - 1
    vertices = np.shape(scene.vertices)
    expect(len(vertices) == 2 and vertices[1] == 2, f"vertices must be (vertex, 2), found {vertices}")
    check_offsets(token, "polygon_ring_offsets", scene.polygon_ring_offsets, polygons, rings, 1)
    check_offsets(token, "ring_offsets", scene.ring_offsets, rings, vertices[0], 3)
    line = np.shape(scene.centerline)
    expect(len(line) == 2 and line[0] >= 2 and line[1] >= 2, f"centerline must be (point >= 2, 3), found {line}")
    boxes = np.shape(scene.object_boxes)
    expect(len(boxes) == 2 and boxes[1] == 5, f"object_boxes must be (row, 5), found {boxes}")
    expect(np.shape(scene.object_track) == boxes[:1], f"object_track must be ({boxes[0]},)")
    check_offsets(token, "frame_offsets", scene.frame_offsets, NUM_FRAMES, boxes[0], 0)
    tracks = len(scene.track_tokens)
    expect(
        len(set(scene.track_tokens)) == tracks, "track_tokens holds a token twice; repeat it in object_track instead"
    )
    expect(
        len(scene.track_types) == tracks and np.shape(scene.track_first_speed) == (tracks,),
        f"track_types and track_first_speed must have one entry per track ({tracks})",
    )


def check_offsets(token: str, name: str, offsets: NDArray[np.int64], items: int, rows: int, smallest: int) -> None:
    """Refuse offsets that do not give ``smallest`` or more of ``rows`` to each of ``items``."""
    offsets = np.asarray(offsets)
    if offsets.shape != (items + 1,) or offsets[0] != 0 or offsets[-1] != rows:
        raise scene_error(token, f"{name} must hold {items + 1} offsets from 0 to {rows}, found shape {offsets.shape}")
    if items and np.diff(offsets).min() < smallest:
        raise scene_error(token, f"{name}: every item needs at least {smallest} rows")


def check_finite(
    name: str, values: NDArray[np.float64], scene_of_row: NDArray[np.int64], tokens: Sequence[str]
) -> None:
    """Raise for the first scene with a non-finite entry in the concatenated rows."""
    if values.size and not np.isfinite(values.sum()):
        finite = np.isfinite(values).reshape(len(values), -1).all(axis=1)
        if not finite.all():
            raise scene_error(tokens[int(scene_of_row[np.argmin(finite)])], f"{name} holds NaN or infinite values")


def _stack(
    arrays: list, columns: int
) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Concatenate rows; also the row count per scene, and scene and position of every row."""
    counts = np.array([len(array) for array in arrays], dtype=np.int64)
    rows = np.concatenate([np.asarray(array, dtype=np.float64)[:, :columns] for array in arrays])
    scene_of_row = np.repeat(np.arange(len(arrays)), counts)
    position = _ranges(counts)
    return rows, counts, scene_of_row, position


def _ranges(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """0..n-1 for every count, concatenated."""
    return np.arange(int(counts.sum())) - np.repeat(np.cumsum(counts) - counts, counts)


def _pack_reference(scenes: Sequence[MetricScene], origin: NDArray, parts: dict[str, NDArray], sizes: NDArray) -> None:
    rows, counts, scene, position = _stack([item.reference_states for item in scenes], 3)
    check_finite("reference_states", rows, scene, [item.token for item in scenes])
    rows[:, :2] -= origin[scene]
    stamps = np.concatenate([np.asarray(item.reference_times_us, dtype=np.int64) for item in scenes])
    backwards = (np.diff(stamps) <= 0) & (scene[1:] == scene[:-1])
    if backwards.any():
        raise scene_error(scenes[int(scene[np.argmax(backwards)])].token, "reference_times_us must increase strictly")
    sizes[:, 0] = counts
    poses = np.zeros((len(scenes), counts.max(), 3))
    times = np.full((len(scenes), counts.max()), np.iinfo(np.int64).max)
    poses[scene, position] = rows
    times[scene, position] = stamps
    parts |= {"reference_poses": poses, "reference_times_us": times, "reference_count": counts}


def pack_map(scenes: Sequence[MetricScene], origin: NDArray, parts: dict[str, NDArray], sizes: NDArray) -> None:
    """Cut polygons into chains of edges relative to ``origin`` (scene, 2), and note what each polygon is."""
    tokens = [item.token for item in scenes]
    rows, _, scene_of_vertex, _ = _stack([item.vertices for item in scenes], 2)
    check_finite("vertices", rows, scene_of_vertex, tokens)
    rows -= origin[scene_of_vertex]

    polygon_counts = np.array([len(item.polygon_tokens) for item in scenes], dtype=np.int64)
    polygon_scene = np.repeat(np.arange(len(scenes)), polygon_counts)
    polygon_position = _ranges(polygon_counts)
    codes = {name: code for code, name in enumerate(POLYGON_TYPES)}
    kinds = np.array([codes.get(name, -1) for item in scenes for name in item.polygon_types], dtype=np.int64)
    if (kinds < 0).any():
        bad = int(np.argmax(kinds < 0))
        scene = scenes[polygon_scene[bad]]
        name = scene.polygon_types[polygon_position[bad]]
        raise scene_error(scene.token, f"unknown polygon type {name!r}; expected one of {', '.join(POLYGON_TYPES)}")
    on_route = np.array(
        [name in route for item in scenes for route in [set(item.route_lane_ids)] for name in item.polygon_tokens],
        dtype=bool,
    )
    # no rule looks at roadblock connectors: leave their edges out
    used = kinds != POLYGON_TYPES.index("ROADBLOCK_CONNECTOR")

    rings_per_polygon = np.concatenate([np.diff(item.polygon_ring_offsets) for item in scenes])
    ring_polygon = np.repeat(np.arange(len(kinds)), rings_per_polygon)
    ring_length = np.concatenate([np.diff(item.ring_offsets) for item in scenes])
    ring_start = np.cumsum(ring_length) - ring_length
    keep = used[ring_polygon] if len(kinds) else np.zeros(0, dtype=bool)
    ring_polygon, ring_length, ring_start = ring_polygon[keep], ring_length[keep], ring_start[keep]

    chains_per_ring = -(-ring_length // CHAIN_EDGES)
    chain_ring = np.repeat(np.arange(len(ring_length)), chains_per_ring)
    first_edge = _ranges(chains_per_ring) * CHAIN_EDGES
    within = np.minimum(first_edge[:, None] + np.arange(CHAIN_EDGES + 1), ring_length[chain_ring, None])
    within = np.where(within == ring_length[chain_ring, None], 0, within)  # close the ring, then stay there
    vertices = rows[ring_start[chain_ring, None] + within]
    chain_polygon = ring_polygon[chain_ring]
    chain_scene = polygon_scene[chain_polygon] if len(kinds) else np.zeros(0, dtype=np.int64)
    chain_counts = np.bincount(chain_scene, minlength=len(scenes))
    position = _ranges(chain_counts)

    sizes[:, 1] = chain_counts
    sizes[:, 2] = polygon_counts
    chains = np.full((len(scenes), chain_counts.max(), CHAIN_EDGES + 1, 2), np.inf)
    owners = np.zeros((len(scenes), chain_counts.max()), dtype=np.int64)
    chains[chain_scene, position] = vertices
    owners[chain_scene, position] = polygon_position[chain_polygon]

    flags = partial(_padded_flags, (len(scenes), polygon_counts.max()), (polygon_scene, polygon_position))

    def kind_in(names: tuple[str, ...]) -> NDArray:
        return np.isin(kinds, [codes[name] for name in names])

    parts |= {
        "chain_vertices": chains,
        "chain_polygon": owners,
        "polygon_drivable": flags(kind_in(_DRIVABLE)),
        "polygon_lane": flags(kind_in(_LANE)),
        "polygon_on_route": flags(kind_in(_LANE) & on_route),
        "polygon_intersection": flags(kind_in(("INTERSECTION",))),
    }


def _pack_centerline(scenes: Sequence[MetricScene], origin: NDArray, parts: dict[str, NDArray], sizes: NDArray) -> None:
    rows, counts, scene, position = _stack([item.centerline for item in scenes], 2)
    check_finite("centerline", rows, scene, [item.token for item in scenes])
    rows -= origin[scene]
    sizes[:, 3] = counts
    line = np.zeros((len(scenes), counts.max(), 2))
    mask = np.zeros(line.shape[:2], dtype=bool)
    line[scene, position] = rows
    mask[scene, position] = True
    parts |= {"centerline": line, "centerline_mask": mask}


def _pack_objects(scenes: Sequence[MetricScene], origin: NDArray, parts: dict[str, NDArray], sizes: NDArray) -> None:
    tokens = [item.token for item in scenes]
    num_scenes = len(scenes)
    rows, _, scene, _ = _stack([item.object_boxes for item in scenes], 5)
    check_finite("object_boxes", rows, scene, tokens)
    if (rows[:, 3:] < 0).any():
        bad = int(np.argmax((rows[:, 3:] < 0).any(axis=1)))
        raise scene_error(tokens[int(scene[bad])], "object_boxes holds a negative length or width")
    rows[:, :2] -= origin[scene]
    rows[:, 3:] *= 0.5
    frame = np.concatenate([np.repeat(np.arange(NUM_FRAMES), np.diff(item.frame_offsets)) for item in scenes])
    track = np.concatenate([np.asarray(item.object_track, dtype=np.int64) for item in scenes])
    track_counts = np.array([len(item.track_tokens) for item in scenes], dtype=np.int64)
    outside = (track < 0) | (track >= track_counts[scene])
    if outside.any():
        raise scene_error(tokens[int(scene[np.argmax(outside)])], "object_track points beyond track_tokens")

    column, extra = _object_columns(scene, frame, track, track_counts)
    counts = track_counts + np.bincount(extra[0], minlength=num_scenes)
    sizes[:, 4] = counts
    boxes = np.zeros((num_scenes, NUM_FRAMES, counts.max(), 5))
    mask = np.zeros(boxes.shape[:3], dtype=bool)
    boxes[scene, frame, column] = rows
    mask[scene, frame, column] = True
    owner = np.tile(np.arange(counts.max()), (num_scenes, 1))
    owner[extra[0], extra[1]] = extra[2]

    track_scene = np.repeat(np.arange(num_scenes), track_counts)
    track_position = _ranges(track_counts)
    codes = {name: code for code, name in enumerate(OBJECT_TYPES)}
    kinds = np.array([codes.get(name, -1) for item in scenes for name in item.track_types], dtype=np.int64)
    if (kinds < 0).any():
        bad = int(np.argmax(kinds < 0))
        item = scenes[track_scene[bad]]
        name = item.track_types[track_position[bad]]
        raise scene_error(item.token, f"unknown object type {name!r}; expected one of {', '.join(OBJECT_TYPES)}")
    speed = np.concatenate([np.asarray(item.track_first_speed, dtype=np.float64) for item in scenes])
    red_light = np.array(["red_light" in name for item in scenes for name in item.track_tokens], dtype=bool)
    agent = np.isin(kinds, [codes[name] for name in AGENT_TYPES])
    check_finite("track_first_speed", np.where(agent, speed, 0.0), track_scene, tokens)  # others have none

    flags = partial(_padded_flags, (num_scenes, counts.max()), (track_scene, track_position))
    parts |= {
        "object_boxes": boxes,
        "object_mask": mask,
        "object_track": owner,
        "track_is_agent": flags(agent),
        "track_stopped": flags(~agent | (speed <= STOPPED_SPEED)),
        "track_skipped": flags(red_light),
    }


def _padded_flags(shape: tuple[int, int], places: tuple[NDArray, NDArray], values: NDArray) -> NDArray[np.bool_]:
    """``values`` at ``places`` (scene, position) of a table of False."""
    padded = np.zeros(shape, dtype=bool)
    padded[places] = values
    return padded


def _object_columns(
    scene: NDArray[np.int64], frame: NDArray[np.int64], track: NDArray[np.int64], track_counts: NDArray[np.int64]
) -> tuple[NDArray[np.int64], tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]]:
    """Column of every object row, and (scene, column, track) of the columns that hold repeated tokens.

    The last occurrence of a token in a frame sits in the track's own column, because the devkit judges
    every hit of that token by it. Earlier occurrences get columns behind the tracks.
    """
    column = track.copy()
    none = np.zeros(0, dtype=np.int64)
    if len(track) == 0:
        return column, (none, none, none)
    width = int(track_counts.max())
    key = (scene * NUM_FRAMES + frame) * width + track
    winner = np.zeros(len(track_counts) * NUM_FRAMES * width, dtype=np.int64)
    winner[key] = np.arange(len(key))  # numpy keeps the last value of a repeated index
    repeats = np.flatnonzero(winner[key] != np.arange(len(key)))
    if len(repeats) == 0:
        return column, (none, none, none)
    order = repeats[np.argsort(key[repeats], kind="stable")]
    _, occurrences = np.unique(key[order], return_counts=True)
    rank = _ranges(occurrences)
    # one column per (scene, track, how many-th repeat)
    slot = (scene[order] * width + track[order]) * (int(rank.max()) + 1) + rank
    unique_slot, slot_index = np.unique(slot, return_inverse=True)
    slot_track = unique_slot // (int(rank.max()) + 1)
    slot_scene, slot_track = slot_track // width, slot_track % width
    per_scene = np.bincount(slot_scene, minlength=len(track_counts))
    slot_column = track_counts[slot_scene] + _ranges(per_scene)
    column[order] = slot_column[slot_index]
    return column, (slot_scene, slot_column, slot_track)
