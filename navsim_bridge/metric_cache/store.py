"""Many `MetricScene`s in one file: flat arrays with offsets, nothing lost and little stored twice.

All scenes of a file have the same number of object frames, and either all have the inputs of NAVSIM v2 or none, and
of these either all or none have those of traffic.

Scenes of one log share most map polygons and lines, so each distinct one is stored once. Objects are stored as
`tracks` codes them; sizes once per track where they do not change; text as UTF-8; indexes in as few bytes as they
need; columns of coordinates as `fixed_point` packs them. What is read back equals what was written, bit by bit.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpvla.files import short
from dpvla.plan import NUM_POSES
from navsim_bridge.files.ragged import ranges
from navsim_bridge.metric_cache import contents
from navsim_bridge.metric_cache.container import CacheError, Expect, map_arrays, write_arrays
from navsim_bridge.metric_cache.fixed_point import pack_column
from navsim_bridge.metric_cache.tracks import KeyFrames, code, constant_sizes, mask_lengths, positions
from navsim_bridge.metric_cache.traffic_table import TrafficTable, pack_traffic
from navsim_bridge.pdm.epdms_scene import lights_as_map
from navsim_bridge.pdm.metric_scene import (
    EPDMS_FRAMES,
    OBJECT_TYPES,
    POLYGON_TYPES,
    EPDMSInputs,
    MetricScene,
)

FORMAT = 3
"""Version of the layout; files of another version are refused."""
SUFFIX = ".scenes"


def write_scenes(path: Path | str, scenes: Sequence[MetricScene], source: str) -> int:
    """Write ``scenes`` atomically; returns the CRC-32 of the file.

    ``source`` identifies what they were made from; `SceneFile.source` gives it back.

    Raises:
        ValueError: scenes made by different rules.
    """
    for scene in scenes:
        if _kind(scene) != _kind(scenes[0]):
            raise ValueError(
                f"scene {scene.token} was made by other rules than scene {scenes[0].token}: one file holds scenes "
                "of one metric"
            )
    arrays = _pack(scenes)
    has_v2, has_traffic, _ = _kind(scenes[0]) if scenes else (False, False, 0)
    exponents = _pack_columns(arrays, contents.layout_of(has_v2, has_traffic).coordinates)
    header = {
        "format": FORMAT,
        "epdms": has_v2,  # what the format calls the inputs of v2
        "traffic": has_traffic,
        "source": source,
        "provenance": _distinct([s.provenance for s in scenes])[0],
        "exponents": exponents,
    }
    return write_arrays(path, header, arrays)


def _kind(scene: MetricScene) -> tuple[bool, bool, int]:
    """Whether it has the inputs of v2 and of traffic, and its frames: what scenes of a file have in common."""
    return scene.v2 is not None, scene.v2 is not None and scene.v2.traffic is not None, len(scene.frame_offsets)


class SceneFile:
    """The scenes of one file, memory-mapped; `MetricScene`s are cut out on demand."""

    def __init__(self, path: Path | str, expected_crc: int | None = None) -> None:
        """Check every byte; raises CacheError naming the file when it is damaged or of another format."""
        self.path = Path(path)
        header, self._arrays, self.crc = map_arrays(self.path, expected_crc)
        if header.get("format") != FORMAT:
            found = short(header.get("format"))
            raise CacheError(f"{self.path}: format {found}, expected {FORMAT}; make the cache again")
        expect = Expect(self.path)
        self._provenance = contents.provenances_of(header, expect)
        self.source, self._layout = header["source"], contents.layout_in(header, expect)
        self._has_v2 = bool(header["epdms"])
        self.num_bytes = contents.unpack_columns(self._arrays, header.get("exponents"), self._layout, expect)
        self._texts = contents.texts_of(self._arrays, expect)  # the rest is mapped
        contents.check(self._arrays, self._texts, len(self._provenance), self._layout, expect)
        self._num_frames = self._arrays["frame_count"].shape[1]
        self._index()

    def _index(self) -> None:
        a = self._arrays
        self.tokens = self._texts["token"]
        self._polygon_types = [POLYGON_TYPES[code] for code in a["polygon_type"].tolist()]
        self._track_types = [OBJECT_TYPES[code] for code in a["track_type"].tolist()]
        self._rings_per_polygon = a["polygon_ring_count"].astype(np.int64)
        self._polygon_rings = _offsets(self._rings_per_polygon)
        self._vertices_per_ring = a["ring_vertex_count"].astype(np.int64)
        self._ring_vertices = _offsets(self._vertices_per_ring)
        self._mask = a["track_mask"].astype(np.int64)
        self._first_key = _offsets(mask_lengths(self._mask))
        self._key_frames = KeyFrames.of(self._mask, self._num_frames)
        self._resized = a["track_size_varies"].astype(bool)
        # where each scene's part of an array begins and ends
        counted = self._layout.counted
        self._parts = {name: _offsets(a[f"{name}_count"].astype(np.int64)).tolist() for name in counted}
        self._traffic = TrafficTable(a) if "follower" in counted else None
        self._centerlines = _offsets(a["centerline_count"].astype(np.int64)).tolist()

    @property
    def provenances(self) -> list[dict[str, str]]:
        """Provenance of every scene."""
        return [self._provenance[i] for i in self._arrays["provenance"].tolist()]

    @property
    def has_traffic(self) -> bool:
        """Whether its scenes hold what vehicles need to react."""
        return self._traffic is not None

    def scene(self, row: int) -> MetricScene:
        """The scene at ``row`` of ``tokens``. Its arrays may be read-only; none keeps the file mapped."""
        a = self._arrays

        def part(name: str) -> slice:
            offsets = self._parts[name]
            return slice(offsets[row], offsets[row + 1])

        polygons = a["scene_polygon"][part("scene_polygon")]
        ring_of_polygon, vertex_of_ring, vertices = self._rings(polygons)
        tracks, reference, chosen = part("track"), part("reference"), polygons.tolist()
        line = int(a["scene_centerline"][row])
        frame_counts = a["frame_count"][row]
        object_track = a["object_track"][part("object")].astype(np.int64)
        return MetricScene(
            token=self.tokens[row],
            log_name=self._texts["log_name"][row],
            ego_state=_own(a["ego_state"][row]),
            ego_time_us=int(a["ego_time_us"][row]),
            reference_states=a["reference_states"][reference],
            reference_times_us=_own(a["reference_times_us"][reference]),
            polygon_tokens=tuple(self._texts["polygon_token"][i] for i in chosen),
            polygon_types=tuple(self._polygon_types[i] for i in chosen),
            polygon_ring_offsets=ring_of_polygon,
            ring_offsets=vertex_of_ring,
            vertices=vertices,
            route_lane_ids=tuple(self._texts["route_lane"][part("route_lane")]),
            centerline=a["centerline"][self._centerlines[line] : self._centerlines[line + 1]],
            frame_offsets=_offsets(frame_counts),
            object_track=object_track,
            object_boxes=self._boxes(part, object_track + tracks.start, frame_counts),
            track_tokens=tuple(self._texts["track_token"][tracks]),
            track_types=tuple(self._track_types[tracks]),
            track_first_speed=_own(a["track_first_speed"][tracks]),
            provenance=self._provenance[int(a["provenance"][row])],
            v2=self._inputs(row, part) if self._has_v2 else None,
        )

    def _rings(self, polygons: NDArray[Any]) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
        """Ring offsets, vertex offsets and vertices of rows of the polygon table."""
        ring_counts = self._rings_per_polygon[polygons]
        rings = ranges(self._polygon_rings[polygons], ring_counts)
        vertex_counts = self._vertices_per_ring[rings]
        vertices = self._arrays["vertices"][ranges(self._ring_vertices[rings], vertex_counts)]
        return _offsets(ring_counts), _offsets(vertex_counts), vertices

    def _inputs(self, row: int, part: Callable[[str], slice]) -> EPDMSInputs:
        a, lights = self._arrays, part("light_polygon")
        polygons = a["light_polygon"][lights]
        ring_of_light, vertex_of_ring, vertices = self._rings(polygons)
        return EPDMSInputs(
            human_plan=_own(a["human_plan"][row]) if a["has_human"][row] else None,
            past_states=a["past_states"][part("past")],
            past_times_us=_own(a["past_times_us"][part("past")]),
            light_tokens=tuple(self._texts["polygon_token"][i] for i in polygons.tolist()),
            light_ring_offsets=ring_of_light,
            ring_offsets=vertex_of_ring,
            vertices=vertices,
            light_red=np.ascontiguousarray(a["light_red"][lights].T).astype(bool),
            traffic=self._traffic.inputs(part("track"), part("vehicle"), part("follower")) if self._traffic else None,
        )

    def _boxes(
        self, part: Callable[[str], slice], track: NDArray[np.int64], frame_counts: NDArray[np.integer]
    ) -> NDArray[np.float64]:
        a = self._arrays
        boxes = np.empty((len(track), 5))
        mask = self._mask[track]
        coded = mask > 0
        frame = np.repeat(np.arange(self._num_frames), frame_counts)
        if coded.all():
            boxes[:, :2] = positions(self._key_frames, a["key_xy"], self._first_key[track], mask, frame)
        else:
            of = track[coded]
            boxes[coded, :2] = positions(self._key_frames, a["key_xy"], self._first_key[of], mask[coded], frame[coded])
            boxes[~coded, :2] = a["free_xy"][part("free_xy")]
        boxes[:, 2] = a["object_heading"][part("object")]
        boxes[:, 3:] = a["track_size"][track]
        resized = self._resized[track]
        if resized.any():
            boxes[resized, 3:] = a["free_size"][part("free_size")]
        return boxes


def _own(view: NDArray[Any]) -> NDArray[Any]:
    """What a scene keeps of the mapped file: its view would hold that open, and one descriptor for each log."""
    copy = view.copy()
    copy.flags.writeable = False
    return copy


def _pack(scenes: Sequence[MetricScene]) -> dict[str, NDArray[Any]]:
    lights = [lights_as_map(s, s.v2) for s in scenes if s.v2 is not None]  # polygons of the map, too
    polygon_rows, polygon_table = _polygon_table([*scenes, *lights])
    polygon_rows, light_rows = polygon_rows[: len(scenes)], polygon_rows[len(scenes) :]
    lines: dict[bytes, int] = {}
    scene_line = [lines.setdefault(np.asarray(s.centerline, dtype=np.float64).tobytes(), len(lines)) for s in scenes]

    def joined(values: Iterable[Any], columns: int = 0) -> NDArray[Any]:
        parts = list(values)
        shape = (0, columns) if columns else (0,)
        return np.concatenate([np.zeros(shape, dtype=np.asarray(parts[0]).dtype), *parts]) if parts else np.zeros(shape)

    num_frames = len(scenes[0].frame_offsets) - 1 if scenes else 0
    objects = [_object_arrays(s, num_frames) for s in scenes]
    inputs = [s.v2 for s in scenes if s.v2 is not None]
    further = {
        "human_plan": np.array([np.zeros((NUM_POSES, 3)) if v.human_plan is None else v.human_plan for v in inputs]),
        "has_human": np.array([v.human_plan is not None for v in inputs], dtype=np.uint8),
        "past_states": joined((np.asarray(v.past_states, dtype=np.float64) for v in inputs), 11),
        "past_times_us": joined(np.asarray(v.past_times_us, dtype=np.int64) for v in inputs),
        "past_count": _small([len(v.past_states) for v in inputs]),
        "light_polygon": _small([row for rows in light_rows for row in rows]),
        "light_polygon_count": _small([len(rows) for rows in light_rows]),
        "light_red": joined((np.asarray(v.light_red, dtype=np.uint8).T for v in inputs), EPDMS_FRAMES),
    }
    traffic = [v.traffic for v in inputs if v.traffic is not None]
    return {
        **(further if inputs else {}),
        **(pack_traffic(traffic) if traffic else {}),
        **polygon_table,
        "token": _text(s.token for s in scenes),
        "log_name": _text(s.log_name for s in scenes),
        "ego_state": np.array([s.ego_state for s in scenes], dtype=np.float64).reshape(-1, 11),
        "ego_time_us": np.array([s.ego_time_us for s in scenes], dtype=np.int64),
        "reference_states": joined((s.reference_states for s in scenes), 3),
        "reference_times_us": joined(np.asarray(s.reference_times_us, dtype=np.int64) for s in scenes),
        "reference_count": _small([len(s.reference_states) for s in scenes]),
        "scene_polygon": _small([row for rows in polygon_rows for row in rows]),
        "scene_polygon_count": _small([len(rows) for rows in polygon_rows]),
        "route_lane": _text(v for s in scenes for v in s.route_lane_ids),
        "route_lane_count": _small([len(s.route_lane_ids) for s in scenes]),
        "centerline": np.frombuffer(b"".join(lines), dtype=np.float64).reshape(-1, 3),
        "centerline_count": _small([len(line) // 24 for line in lines]),
        "scene_centerline": _small(scene_line),
        "frame_count": _small([np.diff(s.frame_offsets) for s in scenes]).reshape(len(scenes), num_frames),
        "object_count": _small([len(s.object_track) for s in scenes]),
        "object_track": _small(joined(s.object_track for s in scenes)),
        "object_heading": joined(np.asarray(s.object_boxes, dtype=np.float64)[:, 2] for s in scenes),
        "track_token": _text(v for s in scenes for v in s.track_tokens),
        "track_type": _small([OBJECT_TYPES.index(t) for s in scenes for t in s.track_types]),
        "track_first_speed": joined(np.asarray(s.track_first_speed, dtype=np.float64) for s in scenes),
        "track_count": _small([len(s.track_tokens) for s in scenes]),
        "track_mask": joined(o["track_mask"] for o in objects).astype(np.uint16),
        "track_size": joined((o["track_size"] for o in objects), 2),
        "track_size_varies": joined(o["track_size_varies"] for o in objects).astype(np.uint8),
        "key_xy": joined((o["key_xy"] for o in objects), 2),
        "free_xy": joined((o["free_xy"] for o in objects), 2),
        "free_xy_count": _small([len(o["free_xy"]) for o in objects]),
        "free_size": joined((o["free_size"] for o in objects), 2),
        "free_size_count": _small([len(o["free_size"]) for o in objects]),
        "provenance": _small(_distinct([s.provenance for s in scenes])[1]),
    }


def _pack_columns(arrays: dict[str, NDArray[Any]], names: Iterable[str]) -> dict[str, list[int | None]]:
    """Replace coordinates by packed columns where that is possible; the exponents say where."""
    exponents: dict[str, list[int | None]] = {}
    for name in names:
        table = arrays.pop(name)
        exponents[name] = []
        for column in range(table.shape[1]):
            values = np.ascontiguousarray(table[:, column])
            packed = pack_column(values) if column < 2 else None
            exponents[name].append(packed[0] if packed else None)
            for part, array in packed[1].items() if packed else [("values", values)]:
                arrays[f"{name}.{column}.{part}"] = array
    return exponents


def _object_arrays(scene: MetricScene, num_frames: int) -> dict[str, NDArray[Any]]:
    """Positions and sizes of one scene's boxes; those of tracks that cannot be coded are listed row by row."""
    boxes = np.asarray(scene.object_boxes, dtype=np.float64)
    track, count = np.asarray(scene.object_track, dtype=np.int64), len(scene.track_tokens)
    frame = np.repeat(np.arange(num_frames), np.diff(scene.frame_offsets))
    if count == 0:
        mask, key_xy = np.zeros(0, dtype=np.uint16), np.zeros((0, 2))
    else:
        mask, key_xy = code(frame, track, boxes[:, :2], count, num_frames)
    constant, size = constant_sizes(track, boxes[:, 3:], count)
    return {
        "track_mask": mask,
        "key_xy": key_xy,
        "free_xy": boxes[mask[track] == 0, :2],
        "track_size": size,
        "track_size_varies": ~constant,
        "free_size": boxes[~constant[track], 3:],
    }


def _polygon_table(scenes: Sequence[MetricScene]) -> tuple[list[list[int]], dict[str, NDArray[Any]]]:
    """Rows of each scene's polygons in a table of distinct polygons, and the table."""
    rows: dict[tuple[str, str, tuple[int, ...], bytes], int] = {}
    of_scene: list[list[int]] = []
    for s in scenes:
        sizes, mine = np.diff(s.ring_offsets).tolist(), []
        rings, bounds = s.polygon_ring_offsets.tolist(), s.ring_offsets.tolist()
        for i, (token, kind) in enumerate(zip(s.polygon_tokens, s.polygon_types)):
            first, last = rings[i], rings[i + 1]
            content = s.vertices[bounds[first] : bounds[last]].tobytes()
            mine.append(rows.setdefault((token, kind, tuple(sizes[first:last]), content), len(rows)))
        of_scene.append(mine)
    return of_scene, {
        "polygon_token": _text(key[0] for key in rows),
        "polygon_type": _small([POLYGON_TYPES.index(key[1]) for key in rows]),
        "polygon_ring_count": _small([len(key[2]) for key in rows]),
        "ring_vertex_count": _small([size for key in rows for size in key[2]]),
        "vertices": np.frombuffer(b"".join(key[3] for key in rows), dtype=np.float64).reshape(-1, 2),
    }


def _text(values: Iterable[str]) -> NDArray[np.uint8]:
    """Strings as the UTF-8 bytes of a JSON list."""
    return np.frombuffer(json.dumps(list(values), ensure_ascii=False, separators=(",", ":")).encode(), dtype=np.uint8)


def _small(values: Any) -> NDArray[np.integer]:
    """Numbers from 0 in the smallest unsigned type that holds them."""
    array = np.asarray(values, dtype=np.int64)
    return array.astype(np.min_scalar_type(int(array.max(initial=0))))


def _distinct(values: Sequence[dict[str, str]]) -> tuple[list[dict[str, str]], list[int]]:
    seen: dict[str, int] = {}
    index = [seen.setdefault(json.dumps(v, sort_keys=True), len(seen)) for v in values]
    return [json.loads(v) for v in seen], index


def _offsets(counts: Sequence[int] | NDArray[np.integer]) -> NDArray[np.int64]:
    result = np.zeros(len(counts) + 1, dtype=np.int64)
    np.cumsum(counts, out=result[1:])
    return result
