"""What the arrays of a scene file must be before scenes are cut out of them.

A checksum finds damage, not a file that was made to deceive: shapes, types, offsets and indexes are looked at once,
when the file is opened, so that what is cut out later is inside its arrays and what is scored is finite.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpvla.plan import NUM_POSES
from navsim_bridge.metric_cache.container import Expect, parsed
from navsim_bridge.metric_cache.fixed_point import unpack_column
from navsim_bridge.metric_cache.tracks import mask_lengths
from navsim_bridge.pdm.metric_scene import AGENT_TYPES, EPDMS_FRAMES, OBJECT_TYPES, POLYGON_TYPES
from navsim_bridge.traffic.log_replay import STEPS

Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Layout:
    """Which arrays a file has, beside ``frame_count`` and the texts."""

    coordinates: Mapping[str, int]  # float64 arrays whose first two columns are coordinates, with their columns
    numbers: Mapping[str, tuple[int, ...]]  # other float64 arrays, with their shapes behind the first axis
    times: tuple[str, ...]  # int64 arrays
    counted: Mapping[str, tuple[str, ...]]  # arrays of which each scene has as many rows as ``<name>_count`` says
    indexes: tuple[str, ...]  # unsigned arrays beside the counts
    of_scenes: tuple[str, ...]  # arrays with a row for each scene
    tables: Mapping[str, tuple[int, ...]] = field(default_factory=dict)  # unsigned arrays of more than one axis

    def with_(self, other: Layout) -> Layout:
        """The arrays of both."""
        return Layout(
            {**self.coordinates, **other.coordinates},
            {**self.numbers, **other.numbers},
            (*self.times, *other.times),
            {**self.counted, **other.counted},
            (*self.indexes, *other.indexes),
            (*self.of_scenes, *other.of_scenes),
            {**self.tables, **other.tables},
        )

    @property
    def floats(self) -> dict[str, tuple[int, ...]]:
        """All float64 arrays, with their shapes behind the first axis."""
        return {**{name: (columns,) for name, columns in self.coordinates.items()}, **self.numbers}


_OF_ALL = Layout(
    coordinates={"vertices": 2, "centerline": 3, "reference_states": 3, "key_xy": 2, "free_xy": 2},
    numbers={"ego_state": (11,), "object_heading": (), "track_first_speed": (), "track_size": (2,), "free_size": (2,)},
    times=("ego_time_us", "reference_times_us"),
    counted={
        "reference": ("reference_states", "reference_times_us"),
        "scene_polygon": ("scene_polygon",),
        "route_lane": ("route_lane",),
        "object": ("object_track", "object_heading"),
        "track": ("track_token", "track_type", "track_first_speed", "track_mask", "track_size", "track_size_varies"),
        "free_xy": ("free_xy",),
        "free_size": ("free_size",),
    },
    indexes=(
        "polygon_type", "polygon_ring_count", "ring_vertex_count", "scene_polygon", "centerline_count",
        "scene_centerline", "object_track", "track_type", "track_mask", "track_size_varies", "provenance",
    ),
    of_scenes=("log_name", "ego_state", "ego_time_us", "frame_count", "scene_centerline", "provenance"),
)  # fmt: skip
_OF_V2 = Layout(
    coordinates={"past_states": 11},
    numbers={"human_plan": (NUM_POSES, 3)},
    times=("past_times_us",),
    counted={"past": ("past_states", "past_times_us"), "light_polygon": ("light_polygon", "light_red")},
    indexes=("light_polygon", "has_human"),
    of_scenes=("human_plan", "has_human"),
    tables={"light_red": (EPDMS_FRAMES,)},
)
_OF_TRAFFIC = Layout(
    coordinates={"line_points": 2, "follower_pose": 3},
    numbers={"vehicle_velocity": (2,), "follower_progress": (), "follower_limit": ()},
    times=(),
    counted={
        "vehicle": ("vehicle_track", "vehicle_velocity", "vehicle_parked"),
        "follower": ("follower", "follower_pose", "follower_progress", "follower_limit", "follower_line"),
    },
    indexes=("track_present", "vehicle_track", "vehicle_parked", "follower", "follower_line", "line_count"),
    of_scenes=(),
)
TEXTS = ("token", "log_name", "polygon_token", "track_token", "route_lane")
"""Lists of texts."""
MOST_FRAMES = 16 * STEPS
"""A track's mask has 16 key frames."""
LONGEST_US = 3.6e9
"""From the first to the last state of a scene: they are interpolated."""
REFERENCE_BEGINS_US = 1e6
"""From the ego's time to that of the reference plan's first state: they are the same as they are written."""
MOST_FOLLOWERS, MOST_LINE_POINTS = 512, 16384
"""Of a scene, and of the base line that one follows; tables of them are padded to the longest."""
MOST_SIZE = 1e9
"""Of a number, whatever it says: UTM coordinates have up to 1e7 meters."""
MOST_VERTICES = 1 << 24
"""Of the map of one scene, which may name a polygon many times."""


def layout_of(has_v2: bool, has_traffic: bool) -> Layout:
    """The arrays of a file whose scenes have the inputs of NAVSIM v2 or not, and those of traffic or not."""
    layout = _OF_ALL.with_(_OF_V2) if has_v2 else _OF_ALL
    return layout.with_(_OF_TRAFFIC) if has_traffic else layout


def layout_in(header: Mapping[str, Any], expect: Expect) -> Layout:
    """That of a file's header."""
    has_v2, has_traffic = header.get("epdms"), header.get("traffic", False)  # files of before say nothing of traffic
    expect(type(has_v2) is bool and type(has_traffic) is bool, "header: no epdms, or an odd traffic")
    expect(has_v2 or not has_traffic, "header: traffic without epdms")
    return layout_of(bool(has_v2), bool(has_traffic))


def provenances_of(header: Mapping[str, Any], expect: Expect) -> list[dict[str, str]]:
    """The distinct provenances of a file's header, all of which is as `store.write_scenes` writes it."""
    expect(type(header.get("source")) is str, "header: no source")
    found = header.get("provenance")
    expect(isinstance(found, list) and all(isinstance(one, dict) for one in found), "header: no provenance")
    assert isinstance(found, list)
    expect(all(type(text) is str for one in found for text in one.values()), "header: provenance: no texts")
    return found


def unpack_columns(arrays: Arrays, exponents: object, layout: Layout, expect: Expect) -> int:
    """Put the coordinates that `store` packed column by column in place of their parts; returns the bytes they take."""
    tables = layout.coordinates
    expect(isinstance(exponents, dict) and set(exponents) == set(tables), "exponents: not those of its coordinates")
    assert isinstance(exponents, dict)
    for name, count in tables.items():
        of_columns = exponents[name]
        expect(isinstance(of_columns, list) and len(of_columns) == count, f"exponents.{name}: expected {count}")
        columns = [_column(arrays, f"{name}.{column}", exponent, expect) for column, exponent in enumerate(of_columns)]
        expect(len({len(column) for column in columns}) == 1, f"{name}: columns of unequal length")
        arrays[name] = np.stack(columns, axis=1)
    return sum(arrays[name].nbytes for name in tables)


def _column(arrays: Arrays, name: str, exponent: object, expect: Expect) -> NDArray[np.float64]:
    def part(kind: str, dtype: str, axes: int = 1) -> NDArray[Any]:
        found = arrays.pop(f"{name}.{kind}", None)
        expect(found is not None and found.dtype.str == dtype and found.ndim == axes, f"{name}.{kind}: not as written")
        assert found is not None
        return found

    if exponent is None:
        return part("values", "<f8")
    expect(type(exponent) is int and 0 <= exponent < 53, f"exponents: {name}: expected 0 to 52")
    assert isinstance(exponent, int)
    parts = {"steps": part("steps", "|u1", 2), "large_at": part("large_at", "<u4"), "large": part("large", "<i8")}
    steps, large_at = parts["steps"], parts["large_at"]
    fits = 1 <= steps.shape[1] < 8 and len(large_at) == len(parts["large"]) and _below(large_at, len(steps))
    expect(fits, f"{name}: steps that do not fit together")
    return unpack_column(exponent, parts)


def texts_of(arrays: Arrays, expect: Expect) -> dict[str, list[str]]:
    """The lists of texts, taken out of ``arrays``."""
    return {name: _texts(name, arrays.pop(name, None), expect) for name in TEXTS}


def _texts(name: str, coded: NDArray[Any] | None, expect: Expect) -> list[str]:
    expect(coded is not None and coded.dtype == np.uint8 and coded.ndim == 1, f"{name}: no texts")
    assert coded is not None
    texts = parsed(coded.tobytes())
    expect(isinstance(texts, list) and all(type(text) is str for text in texts), f"{name}: no list of texts")
    assert isinstance(texts, list)
    return texts


def check(arrays: Arrays, texts: Mapping[str, Sequence[str]], provenances: int, layout: Layout, expect: Expect) -> None:
    """Raise CacheError unless all arrays fit together and what is scored is finite.

    Args:
        arrays: of the file, coordinates unpacked.
        texts: from `texts_of`.
        provenances: distinct ones in the header.
        layout: of the file.
        expect: of the file.
    """
    _check_kinds(arrays, layout, expect)
    scenes = len(texts["token"])
    rows = {name: len(array) for name, array in arrays.items()} | {name: len(value) for name, value in texts.items()}
    for name in layout.of_scenes:
        expect(rows[name] == scenes, f"{name}: {rows[name]} for {scenes} scenes")
    for name, of_scene in layout.counted.items():
        counts = arrays[f"{name}_count"]
        expect(len(counts) == scenes, f"{name}_count: {len(counts)} for {scenes} scenes")
        for array in of_scene:
            _check_counts(f"{name}_count", counts, rows[array], 0, expect)
    expect(_below(arrays["provenance"], provenances), "provenance: of none that is there")
    _check_map(arrays, rows, layout, expect)
    _check_tracks(arrays, texts, expect)
    if "follower" in layout.counted:
        _check_traffic(arrays, rows, expect)
    _check_values(arrays, texts, layout, expect)


def _check_kinds(arrays: Arrays, layout: Layout, expect: Expect) -> None:
    shapes: dict[str, tuple[str, tuple[int, ...]]] = {
        **{name: ("f8", shape) for name, shape in layout.floats.items()},
        **dict.fromkeys(layout.times, ("i8", ())),
        **dict.fromkeys((*layout.indexes, *(f"{name}_count" for name in layout.counted)), ("u", ())),
        **{name: ("u", shape) for name, shape in layout.tables.items()},
    }
    for name, (kind, shape) in shapes.items():
        expect(name in arrays, f"{name} is missing")
        array = arrays[name]
        fits = array.ndim > 0 and array.shape[1:] == shape
        fits &= array.dtype.str[1:].startswith(kind) or (array.size == 0 and kind != "u")
        expect(fits, f"{name} is {array.dtype} {array.shape}")
    frames = arrays.get("frame_count")
    fits = frames is not None and frames.ndim == 2 and frames.dtype.kind == "u" and frames.shape[1] <= MOST_FRAMES
    expect(fits, "frame_count: no counts of frames")


def _check_map(arrays: Arrays, rows: Mapping[str, int], layout: Layout, expect: Expect) -> None:
    polygons, lines = rows["polygon_token"], rows["centerline_count"]
    expect(rows["polygon_type"] == rows["polygon_ring_count"] == polygons, "polygon_type: not one for each polygon")
    expect(_below(arrays["polygon_type"], len(POLYGON_TYPES)), "polygon_type: unknown")
    _check_counts("polygon_ring_count", arrays["polygon_ring_count"], rows["ring_vertex_count"], 1, expect)
    _check_counts("ring_vertex_count", arrays["ring_vertex_count"], rows["vertices"], 3, expect)
    _check_counts("centerline_count", arrays["centerline_count"], rows["centerline"], 2, expect)
    expect(_below(arrays["scene_centerline"], lines), "scene_centerline: of no line that is there")
    of_ring = _offsets(arrays["ring_vertex_count"])
    vertices = np.diff(of_ring[_offsets(arrays["polygon_ring_count"])])
    for name in (name for name in ("scene_polygon", "light_polygon") if name in layout.counted):
        expect(_below(arrays[name], polygons), f"{name}: of no polygon that is there")
        total = _offsets(vertices[arrays[name]])[_offsets(arrays[f"{name}_count"])]
        expect(int(np.diff(total).max(initial=0)) <= MOST_VERTICES, f"{name}: over {MOST_VERTICES} vertices in a scene")


def _check_tracks(arrays: Arrays, texts: Mapping[str, Sequence[str]], expect: Expect) -> None:
    frames, objects, tracks = (arrays[name].astype(np.int64) for name in ("frame_count", "object_count", "track_count"))
    most = len(arrays["object_track"])
    in_frames = _below(arrays["frame_count"].ravel(), most + 1) and (frames.sum(axis=1) == objects).all()
    expect(bool(in_frames), "frame_count: not as many objects as the scene has")
    expect(bool((arrays["object_track"] < np.repeat(tracks, objects)).all()), "object_track: of no track of the scene")
    expect(_below(arrays["track_type"], len(OBJECT_TYPES)), "track_type: unknown")
    masks = arrays["track_mask"]
    keys = (frames.shape[1] - 1) // STEPS + 1
    expect(_below(masks, 1 << keys), "track_mask: of more key frames than there are")
    sightings = int(mask_lengths(masks).sum())
    expect(sightings == len(arrays["key_xy"]), f"key_xy: {len(arrays['key_xy'])} for {sightings} sightings")
    of_row = np.repeat(_offsets(tracks)[:-1], objects) + arrays["object_track"].astype(np.int64)
    scene = np.repeat(np.arange(len(tracks)), objects)
    for name, chosen in (("free_xy", masks == 0), ("free_size", arrays["track_size_varies"] > 0)):
        free = np.bincount(scene[chosen[of_row]], minlength=len(tracks))
        expect(
            bool((free == arrays[f"{name}_count"]).all()), f"{name}: not one for each object that is listed by itself"
        )
    for first, last in pairwise(_offsets(tracks).tolist()):
        expect(len(set(texts["track_token"][first:last])) == last - first, "track_token: twice in a scene")


def _check_traffic(arrays: Arrays, rows: Mapping[str, int], expect: Expect) -> None:
    expect(rows["track_present"] == rows["track_token"], "track_present: not one for each track")
    for name, of in (("vehicle", "track"), ("follower", "vehicle")):
        counts, index = arrays[f"{name}_count"], arrays["vehicle_track" if name == "vehicle" else name]
        limit = np.repeat(arrays[f"{of}_count"].astype(np.int64), counts.astype(np.int64))
        expect(bool((index < limit).all()), f"{name}: of no {of} of the scene")
    expect(_below(arrays["follower_count"], MOST_FOLLOWERS + 1), f"follower_count: over {MOST_FOLLOWERS} in a scene")
    expect(_below(arrays["line_count"], MOST_LINE_POINTS + 1), f"line_count: over {MOST_LINE_POINTS} points")
    _check_counts("line_count", arrays["line_count"], rows["line_points"], 2, expect)
    expect(_below(arrays["follower_line"], rows["line_count"]), "follower_line: of no line that is there")
    expect(bool((arrays["follower_limit"] > 0).all()), "follower_limit: no speed")


def _check_values(arrays: Arrays, texts: Mapping[str, Sequence[str]], layout: Layout, expect: Expect) -> None:
    for name in layout.floats:
        values = arrays[name]
        if name == "track_first_speed":  # what cannot move has none
            values = values[np.isin(arrays["track_type"], [OBJECT_TYPES.index(kind) for kind in AGENT_TYPES])]
        elif name == "centerline":  # the score reads no headings there
            values = values[:, :2]
        within = (np.abs(values) <= MOST_SIZE).all()  # NaN is not
        expect(bool(within), f"{name} holds NaN, infinite values or numbers beyond {MOST_SIZE:g}")
    for name in ("track_size", "free_size"):
        expect(bool((arrays[name] >= 0).all()), f"{name} holds a negative length or width")
    for name in (name for name in ("reference", "past") if name in layout.counted):
        counts, times = arrays[f"{name}_count"], arrays[f"{name}_times_us"]
        expect(bool((counts >= 2).all()), f"{name}_count: fewer than two states")
        inside = np.ones(len(times), dtype=bool)
        inside[_offsets(counts)[:-1]] = False  # the first of a scene follows none
        expect(bool((times[1:] > times[:-1])[inside[1:]].all()), f"{name}_times_us must increase within a scene")
        first, last = (times[places].astype(np.float64) for places in (_offsets(counts)[:-1], _offsets(counts)[1:] - 1))
        expect(bool((last - first <= LONGEST_US).all()), f"{name}_times_us: more than an hour in a scene")
    begins = arrays["reference_times_us"][_offsets(arrays["reference_count"])[:-1]].astype(np.float64)
    away = np.abs(begins - arrays["ego_time_us"].astype(np.float64))
    expect(bool((away <= REFERENCE_BEGINS_US).all()), "reference_times_us: the reference plan begins at another time")


def _check_counts(name: str, counts: NDArray[Any], rows: int, least: int, expect: Expect) -> None:
    """That unsigned ``counts``, each at least ``least``, are ``rows`` together."""
    fits = _below(counts, rows + 1) and (counts >= least).all() and int(counts.sum(dtype=np.int64)) == rows
    expect(bool(fits), f"{name}: they do not share out {rows} rows, at least {least} each")


def _below(values: NDArray[Any], limit: int) -> bool:
    """Whether no value of an unsigned array reaches ``limit``."""
    return values.size == 0 or int(values.max()) < limit


def _offsets(counts: NDArray[Any]) -> NDArray[np.int64]:
    result = np.zeros(len(counts) + 1, dtype=np.int64)
    np.cumsum(counts, out=result[1:])
    return result
