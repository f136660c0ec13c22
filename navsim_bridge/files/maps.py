"""The vector map of one location: lanes, roadblocks and polygons, with spatial queries; the devkit is not needed.

What scoring and planning need is read at once, as flat arrays (`map_tables`); other layers when they are first asked
for. Objects such as `Lane` are cut out of the arrays on demand and kept. Several processes share one city through
files that they map into memory (`share_maps`).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray

from dpvla.files import inside, naming, read_json, short, write_json
from dpvla.manifest import check_manifest, write_manifest
from navsim_bridge.files.map_tables import AGAIN, NONE, Arrays, MapError, MapFile, rows_near
from navsim_bridge.files.on_demand import ById, ByRow
from navsim_bridge.files.ragged import ranges
from navsim_bridge.files.roots import MAP_INDEX

LAYERS = ("ROADBLOCK", "LANE", "LANE_CONNECTOR", "INTERSECTION", "CARPARK_AREA", "ROADBLOCK_CONNECTOR")
"""Layers of polygons that are read with the map; the others of `map_tables.POLYGON_TABLES` when asked for."""
_GRAPH = "graph"
_SOURCE = "source.json"


@dataclass(frozen=True)
class Polygon:
    """One polygon as open rings (first vertex not repeated): outline first, then holes."""

    token: str
    layer: str  # name from map_tables.POLYGON_TABLES
    ring_sizes: tuple[int, ...]
    vertices: NDArray[np.float64]  # (vertex, 2) [m]
    crosses: bool = False  # itself, see `map_tables.polygon_arrays`

    def shape(self) -> shapely.Polygon:
        """The same for shapely."""
        rings = np.split(self.vertices, np.cumsum(self.ring_sizes)[:-1])
        return shapely.Polygon(rings[0], rings[1:])


@dataclass(frozen=True)
class Lane:
    """A lane or lane connector."""

    id: str
    block: str  # roadblock or roadblock connector it lies in; '' where the map names none
    is_connector: bool
    speed_limit: float  # [m/s]; NaN where the map has none
    incoming: tuple[str, ...]  # lanes that lead here
    outgoing: tuple[str, ...]  # lanes that follow
    baseline: NDArray[np.float64]  # (point, 3) x, y [m], heading [rad] towards the next point
    index: int | None = None  # place in its roadblock, 0 is leftmost; connectors have none


@dataclass(frozen=True)
class Roadblock:
    """A roadblock (lane group) or roadblock connector (lane-group connector)."""

    id: str
    is_connector: bool
    lanes: tuple[str, ...]
    incoming: tuple[str, ...]
    outgoing: tuple[str, ...]
    intersection: str | None = None  # of a connector


class VectorMap:
    """One location's map. The file is read on construction, or arrays that another process has put into files."""

    def __init__(self, path: Path | str, location: str, shared: Path | None = None) -> None:
        """Read the map.

        Args:
            path: GeoPackage.
            location: its name.
            shared: folder that `share_maps` wrote for this location, to be mapped instead of reading the file.

        Raises:
            FileNotFoundError, MapError: naming file, layer and column.
            FileError: a file of ``shared`` is damaged, or made from another map.
        """
        self.path, self.location = Path(path), location
        self._shared = shared
        if shared is not None:
            self._check_shared(shared)
        self._graph = self._arrays(_GRAPH, lambda file: file.graph())
        self._layers = {layer: self._arrays(layer, self._layer_reader(layer)) for layer in LAYERS}
        self._rows: dict[str, dict[str, list[int]]] = {}  # layer -> id -> its polygons
        g = self._graph
        self._doubtful = {"lane": _repeated(g["lane.id"]), "block": _repeated(g["block.id"])}
        stray = (g["lane.block"] != NONE) & ~np.isin(g["lane.block"], g["block.id"])
        self._stray = frozenset(map(str, g["lane.id"][stray].tolist()))
        """Lanes of roadblocks that the map does not have."""
        if shared is None:
            self._say_what_is_odd()
        self.polygons: Mapping[str, Sequence[Polygon]] = _Layers(self)
        """Layer -> its polygons, in table order."""
        self.lanes: Mapping[str, Lane] = ById(self._graph["lane.id"], self._lane)
        """Id -> lane or lane connector; lanes first, each in table order."""
        self.blocks: Mapping[str, Roadblock] = ById(self._graph["block.id"], self._block)
        """Id -> roadblock or roadblock connector; roadblocks first, each in table order."""

    def near(self, layer: str, x: float, y: float, radius: float) -> list[Polygon]:
        """Polygons of ``layer`` that touch the square of half-width ``radius`` around a point, in table order.

        A square, not a disc: that is what the devkit's proximity query takes.
        """
        arrays = self.layer(layer)
        box = (x - radius, y - radius, x + radius, y + radius)
        rows = rows_near(arrays, box)
        bounds = arrays["bounds"][rows]
        inside = np.array(((bounds[:, :2] >= box[:2]) & (bounds[:, 2:] <= box[2:])).all(axis=1))
        square = shapely.box(*box)
        shapely.prepare(square)
        inside[~inside] = shapely.intersects(square, self._cut_shapes(arrays, rows[~inside]))
        polygons = self.polygons[layer]
        return [polygons[row] for row in rows[inside].tolist()]

    def at(self, layer: str, x: float, y: float) -> list[Polygon]:
        """Polygons of ``layer`` that hold the point, edges included, in table order."""
        arrays = self.layer(layer)
        rows = rows_near(arrays, (x, y, x, y))
        rows = rows[shapely.intersects_xy(self._cut_shapes(arrays, rows), x, y)]
        polygons = self.polygons[layer]
        return [polygons[row] for row in rows.tolist()]

    def lanes_at(self, x: float, y: float) -> list[Lane]:
        """Lanes and connectors whose polygon holds the point, in table order."""
        return [self.lanes[polygon.token] for layer in ("LANE", "LANE_CONNECTOR") for polygon in self.at(layer, x, y)]

    def shapes(self, layer: str) -> NDArray[np.object_]:
        """shapely polygons of a layer, parallel to ``polygons[layer]``; for pictures."""
        arrays = self.layer(layer)
        return self._cut_shapes(arrays, np.arange(len(arrays["id"])))

    def drivable(self, x: float, y: float, radius: float) -> list[Polygon]:
        """What the devkit's drivable-area map holds around a point.

        Roadblocks, their lanes, the lanes of roadblock connectors (not the connectors' own polygons),
        intersections and car parks. Lanes come with their roadblock even where they are further away.
        """
        blocks = self.near("ROADBLOCK", x, y, radius)
        connectors = self.near("ROADBLOCK_CONNECTOR", x, y, radius)
        lanes = [p for block in (*blocks, *connectors) for i in self.blocks[block.token].lanes for p in self.areas(i)]
        areas = [p for layer in ("INTERSECTION", "CARPARK_AREA") for p in self.near(layer, x, y, radius)]
        return blocks + lanes + areas

    def odd_around(self, polygons: Iterable[Polygon], x: float, y: float, radius: float) -> tuple[str, ...]:
        """Causes (of `odd.ODD`) for which a scene there is odd; ``polygons`` are its own."""
        stray = self._stray and any(
            p.token in self._stray for layer in ("LANE", "LANE_CONNECTOR") for p in self.near(layer, x, y, radius)
        )
        found = {"crossing_polygons": any(p.crosses for p in polygons), "stray_lanes": stray}
        return tuple(cause for cause, is_there in found.items() if is_there)

    def _say_what_is_odd(self) -> None:
        for layer, arrays in self._layers.items():
            crossing = arrays["id"][arrays["crosses"]]
            if len(crossing):
                print(
                    f"{self.path}: {len(crossing)} polygons of layer {layer} cross themselves, first {crossing[0]}; "
                    "scenes near them are counted",
                    file=sys.stderr,
                )
        if self._stray:
            print(
                f"{self.path}: {len(self._stray)} lanes are of roadblocks that the map does not have, first "
                f"{min(self._stray, key=int)}; as in the devkit they belong to none, and scenes near them are counted",
                file=sys.stderr,
            )

    def areas(self, lane: str) -> tuple[Polygon, ...]:
        """The polygons (nearly always one) of a lane or connector; raises MapError when the map has none."""
        layer = "LANE_CONNECTOR" if self.lanes[lane].is_connector else "LANE"
        polygons = self.polygons_of(layer, lane)
        if not polygons:
            raise MapError(f"{self.path}: lane {lane} has no polygon in layer {layer}")
        return polygons

    def polygons_of(self, layer: str, token: str) -> tuple[Polygon, ...]:
        """The polygons of an object of ``layer``; none where there is no such object."""
        if layer not in self._rows:
            rows = self._rows[layer] = {}
            for row, i in enumerate(self.layer(layer)["id"].tolist()):
                rows.setdefault(str(i), []).append(row)
        return tuple(self.polygons[layer][row] for row in self._rows[layer].get(token, ()))

    def layer(self, layer: str) -> Arrays:
        """The arrays of a layer, see `map_tables.polygon_arrays`."""
        if layer not in self._layers:
            self._layers[layer] = self._layer_reader(layer)(self._file)
        return self._layers[layer]

    def share(self, folder: Path) -> None:
        """Write the arrays to ``folder``, for other processes to map; its manifest last."""
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / _SOURCE, self._source())
        for group, arrays in ((_GRAPH, self._graph), *self._layers.items()):
            (folder / group).mkdir(parents=True, exist_ok=True)
            for name, array in arrays.items():
                path = folder / group / f"{name}.npy"
                with naming(path):
                    np.save(path, array, allow_pickle=False)
        write_manifest(folder)

    def _source(self) -> dict[str, Any]:
        found = self.path.stat()
        return {"location": self.location, "bytes": found.st_size, "modified_ns": found.st_mtime_ns}

    def _check_shared(self, folder: Path) -> None:
        if not check_manifest(folder):
            raise MapError(f"{folder} was not written to its end; start again")
        if read_json(folder / _SOURCE) != self._source():
            raise MapError(f"{folder} was not made from {self.path} as it is now; start again")

    @cached_property
    def _file(self) -> MapFile:
        return MapFile(self.path)

    @staticmethod
    def _layer_reader(layer: str) -> Callable[[MapFile], Arrays]:
        return lambda file: file.polygons(layer)

    def _arrays(self, group: str, read: Callable[[MapFile], Arrays]) -> Arrays:
        if self._shared is None:
            return read(self._file)
        files = (self._shared / group).glob("*.npy")
        return {f.stem: np.asarray(np.load(f, mmap_mode="r", allow_pickle=False)) for f in files}

    def _polygon(self, layer: str, row: int) -> Polygon:
        a = self.layer(layer)
        ends = a["vertex"][a["ring"][row] : a["ring"][row + 1] + 1]
        return Polygon(str(a["id"][row]), layer, tuple(np.diff(ends).tolist()), a["xy"][ends[0] : ends[-1]],
                       bool(a["crosses"][row]))  # fmt: skip

    @staticmethod
    def _cut_shapes(arrays: Arrays, rows: NDArray[np.int64]) -> NDArray[np.object_]:
        """shapely polygons of some rows."""
        firsts, lasts = arrays["ring"][rows], arrays["ring"][rows + 1]
        rings = ranges(firsts, lasts - firsts)
        sizes = np.diff(arrays["vertex"])[rings] if len(rings) else np.zeros(0, dtype=np.int64)
        points = arrays["xy"][ranges(arrays["vertex"][rings], sizes)]
        lines = shapely.linearrings(points, indices=np.repeat(np.arange(len(rings)), sizes))
        return np.asarray(shapely.polygons(lines, indices=np.repeat(np.arange(len(rows)), lasts - firsts)))

    def _links(self, name: str, row: int) -> tuple[str, ...]:
        first, last = self._graph[f"{name}.at"][row]
        return tuple(map(str, self._graph[name][first:last].tolist()))

    def _lane(self, row: int) -> Lane:
        g = self._graph
        first, last = g["lane.baseline"][row]
        index = int(g["lane.index"][row])
        lane = str(g["lane.id"][row])
        if first == NONE:
            raise MapError(f"{self.path}: layer baseline_paths has no line for lane {lane}")
        if last - first < 2:
            raise MapError(f"{self.path}: layer baseline_paths: the line of lane {lane} has no length")
        self._require_one("lane", lane)
        return Lane(
            id=lane,
            block=_reference(g["lane.block"][row]) or "",
            is_connector=bool(row >= g["lane.lanes"][0]),
            speed_limit=float(g["lane.speed_limit"][row]),
            incoming=self._links("lane.incoming", row),
            outgoing=self._links("lane.outgoing", row),
            baseline=g["baseline.points"][first:last],
            index=None if index == NONE else index,
        )

    def _block(self, row: int) -> Roadblock:
        g = self._graph
        self._require_one("block", str(g["block.id"][row]))
        return Roadblock(
            id=str(g["block.id"][row]),
            is_connector=bool(row >= g["block.groups"][0]),
            lanes=self._links("block.lane", row),
            incoming=self._links("block.incoming", row),
            outgoing=self._links("block.outgoing", row),
            intersection=_reference(g["block.intersection"][row]),
        )

    def _require_one(self, kind: str, token: str) -> None:
        """Raise MapError for an id that a lane and a connector (or a roadblock and one) have both."""
        if token in self._doubtful[kind]:
            raise MapError(f"{self.path}: {kind} {token} and a connector have the same id; {AGAIN}")


class _Layers(Mapping[str, Sequence[Polygon]]):
    """Polygons by layer; a layer that is not read with the map is read when first asked for."""

    def __init__(self, of: VectorMap) -> None:
        self._of = of
        self._made: dict[str, ByRow[Polygon]] = {}

    def __getitem__(self, layer: str) -> ByRow[Polygon]:
        if layer not in self._made:
            self._made[layer] = ByRow(len(self._of.layer(layer)["id"]), lambda row: self._of._polygon(layer, row))
        return self._made[layer]

    def __iter__(self) -> Iterator[str]:
        return iter(LAYERS)

    def __len__(self) -> int:
        return len(LAYERS)


def open_map(maps_root: Path | str, location: str) -> VectorMap:
    """The map of a location, read once per process, or mapped where `use_shared_maps` names a folder that has it.

    Raises FileNotFoundError when the index or the map is missing, MapError when the location is not in the index.
    """
    return _kept_map(Path(maps_root).resolve(), location)


def map_path(maps_root: Path | str, location: str) -> Path:
    """The file of a location's map; errors as `open_map`."""
    root = Path(maps_root).resolve()
    index = root / MAP_INDEX
    if not index.exists():
        raise FileNotFoundError(f"no map index {index}; --maps-root should hold it")
    of_location = read_json(index).get(location)
    version = of_location.get("version") if isinstance(of_location, dict) else None
    if not isinstance(version, str):
        raise MapError(f"{index}: expected a version for {location}, found {short(of_location)}; get nuPlan's maps")
    path = inside(root / location, f"{version}/map.gpkg", follow=True)
    if not path.exists():
        raise FileNotFoundError(f"no map {path}; get nuPlan's maps")
    return path


def share_maps(maps_root: Path | str, locations: Iterable[str], folder: Path) -> None:
    """Read maps and write their arrays below ``folder``, for processes that call `use_shared_maps` with it.

    A city takes about half of its GeoPackage's size there and, since the processes map the same files, once in
    memory however many they are.
    """
    for location in locations:
        VectorMap(map_path(maps_root, location), location).share(folder / location)


def use_shared_maps(maps_root: Path | str, folder: Path) -> None:
    """Let `open_map` of this process map what `share_maps` wrote."""
    _SHARED[Path(maps_root).resolve()] = folder


_SHARED: dict[Path, Path] = {}


@lru_cache(maxsize=8)
def _kept_map(root: Path, location: str) -> VectorMap:
    shared = _SHARED[root] / location if root in _SHARED else None
    return VectorMap(map_path(root, location), location, shared if shared and shared.is_dir() else None)


def flatten(polygons: Sequence[Polygon]) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """Ring offsets of the polygons, vertex offsets of the rings, vertices: the layout of `MetricScene`."""
    rings = np.cumsum([0] + [len(p.ring_sizes) for p in polygons], dtype=np.int64)
    sizes = np.cumsum([0] + [size for p in polygons for size in p.ring_sizes], dtype=np.int64)
    return rings, sizes, np.concatenate([p.vertices for p in polygons]) if polygons else np.zeros((0, 2))


def refuse_crossing(polygons: Iterable[Polygon]) -> None:
    """Raise MapError for a polygon that crosses itself, where it is to be intersected with others."""
    for polygon in polygons:
        if polygon.crosses:
            raise MapError(f"the map's polygon of {polygon.layer} {polygon.token} crosses itself; {AGAIN}")


def _repeated(ids: NDArray[np.int64]) -> frozenset[str]:
    values, counts = np.unique(ids, return_counts=True)
    return frozenset(map(str, values[counts > 1].tolist()))


def _reference(value: Any) -> str | None:
    return None if value == NONE else str(value)
