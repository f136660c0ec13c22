"""Many `MetricScene`s in one file: flat arrays with offsets in an uncompressed .npz, no pickle.

Scenes of one log share most map polygons, so each distinct polygon is stored once.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpvla.files import write_atomically
from navsim_bridge.pdm.metric_scene import NUM_FRAMES, OBJECT_TYPES, POLYGON_TYPES, MetricScene

FORMAT = 1
"""Version of the layout; files of another version are refused."""


class CacheError(ValueError):
    """A metric cache that cannot be used; the message says which file or token and what to do."""


def write_scenes(path: Path | str, scenes: Sequence[MetricScene], source: str) -> str:
    """Write ``scenes`` atomically; returns the SHA-256 of the file.

    ``source`` identifies what they were made from; `stored_source` reads it back.
    """
    arrays = _pack(scenes)
    header = {"format": FORMAT, "source": source, "provenance": _distinct([s.provenance for s in scenes])[0]}
    arrays["header"] = np.frombuffer(json.dumps(header).encode(), dtype=np.uint8)
    write_atomically(path, lambda file: np.savez(file, **arrays))  # type: ignore[arg-type]
    return file_hash(path)


def file_hash(path: Path | str) -> str:
    """SHA-256 of a file."""
    with open(path, "rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


def stored_source(path: Path | str) -> str | None:
    """``source`` of a scene file; None when there is no whole file of this format."""
    try:
        with np.load(path, allow_pickle=False) as file:
            header = json.loads(file["header"].tobytes())
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    return header["source"] if header.get("format") == FORMAT else None


class SceneFile:
    """The scenes of one file, in memory as flat arrays; `MetricScene`s are cut out on demand."""

    def __init__(self, path: Path | str) -> None:
        """Read and check the file; raises CacheError naming it when it is damaged or of another format."""
        self.path = Path(path)
        try:
            with np.load(self.path, allow_pickle=False) as file:  # the zip layer checks every array's CRC
                self._arrays = {name: file[name] for name in file.files}
            header = json.loads(self._arrays.pop("header").tobytes())
            found = header.get("format")
            if found != FORMAT:
                raise CacheError(f"{self.path}: format {found}, expected {FORMAT}; make the cache again")
            self._provenance: list[dict[str, str]] = header["provenance"]
            self._index()
        except FileNotFoundError:
            raise CacheError(f"{self.path} is missing; run tools/cache_metrics.py again") from None
        except CacheError:
            raise
        except (OSError, ValueError, KeyError, EOFError, IndexError, zipfile.BadZipFile) as error:
            raise CacheError(
                f"{self.path} is damaged ({type(error).__name__}: {error}); delete it and run tools/cache_metrics.py "
                "again"
            ) from error

    def _index(self) -> None:
        a = self._arrays
        self.tokens: list[str] = a["token"].tolist()
        self.num_bytes = sum(array.nbytes for array in a.values())
        self._polygon_tokens = a["polygon_token"].tolist()
        self._polygon_types = [POLYGON_TYPES[code] for code in a["polygon_type"].tolist()]
        self._track_tokens = a["track_token"].tolist()
        self._track_types = [OBJECT_TYPES[code] for code in a["track_type"].tolist()]
        self._route_lanes = a["route_lane"].tolist()
        self._log_names = a["log_name"].tolist()
        self._rings_per_polygon = np.diff(a["polygon_rings"])
        self._vertices_per_ring = np.diff(a["ring_vertices"])

    def scene(self, row: int) -> MetricScene:
        """The scene at ``row`` of ``tokens``. Its arrays may be views of the file's: do not write to them."""
        a = self._arrays

        def part(name: str) -> slice:
            offsets = a[f"{name}_offsets"]
            return slice(int(offsets[row]), int(offsets[row + 1]))

        polygons = a["scene_polygon"][part("scene_polygon")]
        ring_counts = self._rings_per_polygon[polygons]
        rings = _ranges(a["polygon_rings"][polygons], ring_counts)
        vertex_counts = self._vertices_per_ring[rings]
        vertices = a["vertices"][_ranges(a["ring_vertices"][rings], vertex_counts)]
        objects, tracks, reference = part("objects"), part("tracks"), part("reference")
        chosen = polygons.tolist()
        return MetricScene(
            token=self.tokens[row],
            log_name=self._log_names[row],
            ego_state=a["ego_state"][row],
            ego_time_us=int(a["ego_time_us"][row]),
            reference_states=a["reference_states"][reference],
            reference_times_us=a["reference_times_us"][reference],
            polygon_tokens=tuple(self._polygon_tokens[i] for i in chosen),
            polygon_types=tuple(self._polygon_types[i] for i in chosen),
            polygon_ring_offsets=_offsets(ring_counts),
            ring_offsets=_offsets(vertex_counts),
            vertices=vertices,
            route_lane_ids=tuple(self._route_lanes[part("route_lanes")]),
            centerline=a["centerline"][part("centerline")],
            frame_offsets=a["frame_offsets"][row],
            object_track=a["object_track"][objects],
            object_boxes=a["object_boxes"][objects],
            track_tokens=tuple(self._track_tokens[tracks]),
            track_types=tuple(self._track_types[tracks]),
            track_first_speed=a["track_first_speed"][tracks],
            provenance=self._provenance[int(a["provenance"][row])],
        )


def _pack(scenes: Sequence[MetricScene]) -> dict[str, NDArray[Any]]:
    polygon_rows, table = _polygon_table(scenes)

    def joined(values: Callable[[MetricScene], NDArray[Any]], empty: tuple[int, ...] = (0,)) -> NDArray[Any]:
        return np.concatenate([values(s) for s in scenes]) if scenes else np.zeros(empty)

    def offsets(values: Callable[[MetricScene], Any]) -> NDArray[np.int64]:
        return _offsets([len(values(s)) for s in scenes])

    def strings(values: Callable[[MetricScene], Sequence[str]]) -> NDArray[np.str_]:
        return np.array([v for s in scenes for v in values(s)], dtype=np.str_)

    return {
        **table,
        "token": strings(lambda s: (s.token,)),
        "log_name": strings(lambda s: (s.log_name,)),
        "ego_state": np.array([s.ego_state for s in scenes], dtype=np.float64).reshape(-1, 11),
        "ego_time_us": np.array([s.ego_time_us for s in scenes], dtype=np.int64),
        "reference_states": joined(lambda s: s.reference_states, (0, 3)),
        "reference_times_us": joined(lambda s: s.reference_times_us),
        "reference_offsets": offsets(lambda s: s.reference_states),
        "scene_polygon": np.array([row for rows in polygon_rows for row in rows], dtype=np.int64),
        "scene_polygon_offsets": _offsets([len(rows) for rows in polygon_rows]),
        "route_lane": strings(lambda s: s.route_lane_ids),
        "route_lanes_offsets": offsets(lambda s: s.route_lane_ids),
        "centerline": joined(lambda s: s.centerline, (0, 3)),
        "centerline_offsets": offsets(lambda s: s.centerline),
        "frame_offsets": np.array([s.frame_offsets for s in scenes], dtype=np.int64).reshape(-1, NUM_FRAMES + 1),
        "object_track": joined(lambda s: s.object_track),
        "object_boxes": joined(lambda s: s.object_boxes, (0, 5)),
        "objects_offsets": offsets(lambda s: s.object_track),
        "track_token": strings(lambda s: s.track_tokens),
        "track_type": np.array([OBJECT_TYPES.index(t) for s in scenes for t in s.track_types], dtype=np.int64),
        "track_first_speed": joined(lambda s: s.track_first_speed),
        "tracks_offsets": offsets(lambda s: s.track_tokens),
        "provenance": np.array(_distinct([s.provenance for s in scenes])[1], dtype=np.int64),
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
        "polygon_token": np.array([key[0] for key in rows], dtype=np.str_),
        "polygon_type": np.array([POLYGON_TYPES.index(key[1]) for key in rows], dtype=np.int64),
        "polygon_rings": _offsets([len(key[2]) for key in rows]),
        "ring_vertices": _offsets([size for key in rows for size in key[2]]),
        "vertices": np.frombuffer(b"".join(key[3] for key in rows), dtype=np.float64).reshape(-1, 2),
    }


def _distinct(values: Sequence[dict[str, str]]) -> tuple[list[dict[str, str]], list[int]]:
    seen: dict[str, int] = {}
    index = [seen.setdefault(json.dumps(v, sort_keys=True), len(seen)) for v in values]
    return [json.loads(v) for v in seen], index


def _offsets(counts: Sequence[int] | NDArray[np.int64]) -> NDArray[np.int64]:
    result = np.zeros(len(counts) + 1, dtype=np.int64)
    np.cumsum(counts, out=result[1:])
    return result


def _ranges(starts: NDArray[np.int64], counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """``starts[0], starts[0] + 1, ...`` for ``counts[0]`` numbers, then the same for the next."""
    ends = np.cumsum(counts)
    return np.repeat(starts - ends + counts, counts) + np.arange(ends[-1] if len(ends) else 0)
