"""nuPlan GeoPackage maps, read without the devkit.

Geometries are stored in longitude and latitude; on load they are projected to the metric system that the file's
`meta` layer names. Ids are the table's row ids as strings, as in the devkit.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyogrio
import pyproj
import shapely
from numpy.typing import NDArray
from pyogrio.errors import DataLayerError, DataSourceError

from navsim_bridge.roots import MAP_INDEX

LAYERS = ("ROADBLOCK", "LANE", "LANE_CONNECTOR", "INTERSECTION", "CARPARK_AREA", "ROADBLOCK_CONNECTOR")
"""Polygon layers that `VectorMap` holds, named as the devkit names them."""

POLYGON_TABLES = {
    "ROADBLOCK": "lane_groups_polygons",
    "ROADBLOCK_CONNECTOR": "lane_group_connectors",
    "LANE": "lanes_polygons",
    "LANE_CONNECTOR": "gen_lane_connectors_scaled_width_polygons",
    "INTERSECTION": "intersections",
    "CARPARK_AREA": "carpark_areas",
}
COLUMNS = {
    "lanes_polygons": ("lane_group_fid", "speed_limit_mps"),
    "lane_connectors": ("exit_lane_fid", "entry_lane_fid", "lane_group_connector_fid", "speed_limit_mps"),
    "gen_lane_connectors_scaled_width_polygons": ("lane_connector_fid",),
    "lane_groups_polygons": (),
    "lane_group_connectors": ("from_lane_group_fid", "to_lane_group_fid"),
    "intersections": (),
    "carpark_areas": (),
    "baseline_paths": ("lane_fid", "lane_connector_fid"),
    "meta": ("key", "value"),
}
"""Layers and columns that must be there."""


class MapError(ValueError):
    """A map file that is not as the format says."""


@dataclass(frozen=True)
class Polygon:
    """One polygon as open rings (first vertex not repeated): outline first, then holes."""

    token: str
    layer: str  # name from LAYERS
    ring_sizes: tuple[int, ...]
    vertices: NDArray[np.float64]  # (vertex, 2) [m]


@dataclass(frozen=True)
class Lane:
    """A lane or lane connector."""

    id: str
    block: str  # roadblock or roadblock connector it lies in
    is_connector: bool
    speed_limit: float  # [m/s]; NaN where the map has none
    incoming: tuple[str, ...]  # lanes that lead here
    outgoing: tuple[str, ...]  # lanes that follow
    baseline: NDArray[np.float64]  # (point, 3) x, y [m], heading [rad] towards the next point


@dataclass(frozen=True)
class Block:
    """A roadblock (lane group) or roadblock connector (lane-group connector)."""

    id: str
    is_connector: bool
    lanes: tuple[str, ...]
    incoming: tuple[str, ...]
    outgoing: tuple[str, ...]


class VectorMap:
    """The part of one location's map that scoring and planning need, in memory with spatial indexes."""

    def __init__(self, path: Path | str, location: str) -> None:
        """Read the file; raises FileNotFoundError or MapError naming file, layer and column."""
        self.path, self.location = Path(path), location
        if not self.path.is_file():
            raise FileNotFoundError(f"no map {self.path}")
        self._project = self._projection()
        self.polygons: dict[str, tuple[Polygon, ...]] = {}  # layer -> polygons, in table order
        self._shapes: dict[str, NDArray[np.object_]] = {}
        for layer, table in POLYGON_TABLES.items():
            self._add_polygons(layer, table)
        self.lanes = self._read_lanes()
        self.blocks = self._read_blocks()

    @cached_property
    def _trees(self) -> dict[str, shapely.STRtree]:
        return {layer: shapely.STRtree(shapes) for layer, shapes in self._shapes.items()}

    def near(self, layer: str, x: float, y: float, radius: float) -> list[Polygon]:
        """Polygons of ``layer`` that touch the square of half-width ``radius`` around a point, in table order.

        A square, not a disc: that is what the devkit's proximity query takes.
        """
        square = shapely.box(x - radius, y - radius, x + radius, y + radius)
        found = np.sort(self._trees[layer].query(square, predicate="intersects"))
        return [self.polygons[layer][i] for i in found]

    def lanes_at(self, x: float, y: float) -> list[Lane]:
        """Lanes and connectors whose polygon holds the point, in table order."""
        point = shapely.Point(x, y)
        return [
            self.lanes[self.polygons[layer][i].token]
            for layer in ("LANE", "LANE_CONNECTOR")
            for i in np.sort(self._trees[layer].query(point, predicate="intersects"))
        ]

    def shapes(self, layer: str) -> NDArray[np.object_]:
        """shapely polygons of a layer, parallel to ``polygons[layer]``; for pictures."""
        return self._shapes[layer]

    def drivable(self, x: float, y: float, radius: float) -> list[Polygon]:
        """What the devkit's drivable-area map holds around a point.

        Roadblocks, their lanes, the lanes of roadblock connectors (not the connectors' own polygons),
        intersections and car parks. Lanes come with their roadblock even where they are further away.
        """
        blocks = self.near("ROADBLOCK", x, y, radius)
        connectors = self.near("ROADBLOCK_CONNECTOR", x, y, radius)
        lanes = [p for block in blocks for p in self._block_polygons[block.token]]
        links = [p for block in connectors for p in self._block_polygons[block.token]]
        areas = [p for layer in ("INTERSECTION", "CARPARK_AREA") for p in self.near(layer, x, y, radius)]
        return blocks + lanes + links + areas

    def read_table(self, table: str) -> tuple[NDArray[np.int64], NDArray[np.object_], dict[str, NDArray[Any]]]:
        """Any layer of the file: row ids, projected shapely geometries (None where the layer has none), columns."""
        meta, fids, geometry, values = self._read_raw(table, self.path)
        columns = dict(zip(meta["fields"].tolist(), values))
        missing = [name for name in COLUMNS.get(table, ()) if name not in columns]
        if missing:
            raise MapError(f"{self.path}: layer {table} has no column {missing[0]}; it has {', '.join(columns)}")
        shapes = np.full(len(fids), None, dtype=object) if geometry is None else shapely.from_wkb(geometry)
        shapes = shapely.transform(shapes, self._project) if geometry is not None and len(fids) else shapes
        return fids, shapes, columns

    @staticmethod
    def _read_raw(table: str, path: Path) -> Any:
        try:
            return pyogrio.raw.read(path, layer=table, return_fids=True, read_geometry=table != "meta")
        except DataLayerError:
            layers = ", ".join(pyogrio.list_layers(path)[:, 0].tolist())
            raise MapError(f"{path}: no layer {table}; it has {layers or 'none'}") from None
        except DataSourceError as error:
            raise MapError(f"{path}: not a readable GeoPackage ({error})") from None

    def _projection(self) -> Any:
        meta, _, _, values = self._read_raw("meta", self.path)
        columns = dict(zip(meta["fields"].tolist(), values))
        try:
            system = dict(zip(columns["key"], columns["value"]))["projectedCoordSystem"]
            project = pyproj.Transformer.from_crs("epsg:4326", system, always_xy=True)
        except KeyError as error:
            raise MapError(f"{self.path}: layer meta names no {error}") from None
        except pyproj.exceptions.CRSError as error:
            raise MapError(f"{self.path}: unknown coordinate system in layer meta: {error}") from None
        return lambda points: np.column_stack(project.transform(points[:, 0], points[:, 1]))

    def _add_polygons(self, layer: str, table: str) -> None:
        fids, shapes, columns = self.read_table(table)
        owners = self._ids(table, "lane_connector_fid", columns) if layer == "LANE_CONNECTOR" else list(map(str, fids))
        polygons, parts = [], []
        for owner, shape in zip(owners, shapes):
            for part in shapely.get_parts(shape):
                if part.geom_type != "Polygon" or part.is_empty:
                    raise MapError(f"{self.path}: layer {table}: object {owner} is a {part.geom_type}, not a polygon")
                polygons.append(_polygon(owner, layer, part))
                parts.append(part)
        self.polygons[layer] = tuple(polygons)
        self._shapes[layer] = np.array(parts, dtype=object)

    def _read_lanes(self) -> dict[str, Lane]:
        lane_ids, _, lanes = self.read_table("lanes_polygons")
        link_ids, _, links = self.read_table("lane_connectors")
        comes_from = self._ids("lane_connectors", "exit_lane_fid", links)
        goes_to = self._ids("lane_connectors", "entry_lane_fid", links)
        incoming: dict[str, list[str]] = {}
        outgoing: dict[str, list[str]] = {}
        for link, before, after in zip(map(str, link_ids), comes_from, goes_to):
            outgoing.setdefault(before, []).append(link)
            incoming.setdefault(after, []).append(link)
            incoming.setdefault(link, []).append(before)
            outgoing.setdefault(link, []).append(after)
        baselines = self._read_baselines()
        result: dict[str, Lane] = {}
        rows = (
            (lane_ids, self._ids("lanes_polygons", "lane_group_fid", lanes), lanes, False),
            (link_ids, self._ids("lane_connectors", "lane_group_connector_fid", links), links, True),
        )
        for ids, blocks, columns, is_connector in rows:
            for i, block, limit in zip(map(str, ids), blocks, columns["speed_limit_mps"]):
                if i not in baselines:
                    raise MapError(f"{self.path}: layer baseline_paths has no line for lane {i}")
                result[i] = Lane(
                    id=i,
                    block=block,
                    is_connector=is_connector,
                    speed_limit=float("nan") if limit is None else float(limit),
                    incoming=tuple(incoming.get(i, ())),
                    outgoing=tuple(outgoing.get(i, ())),
                    baseline=baselines[i],
                )
        return result

    def _read_baselines(self) -> dict[str, NDArray[np.float64]]:
        _, lines, columns = self.read_table("baseline_paths")
        owners: dict[str, NDArray[np.float64]] = {}
        for line, lane, link in zip(lines, columns["lane_fid"], columns["lane_connector_fid"]):
            owner = link if _is_null(lane) else lane
            if not _is_null(owner):
                owners[str(int(owner))] = with_headings(shapely.get_coordinates(line))
        return owners

    def _read_blocks(self) -> dict[str, Block]:
        lanes_of: dict[str, list[str]] = {}
        for lane in self.lanes.values():
            lanes_of.setdefault(lane.block, []).append(lane.id)
        block_ids, _, _ = self.read_table("lane_groups_polygons")
        link_ids, _, links = self.read_table("lane_group_connectors")
        before = self._ids("lane_group_connectors", "from_lane_group_fid", links)
        after = self._ids("lane_group_connectors", "to_lane_group_fid", links)
        blocks: dict[str, Block] = {}
        for i in map(str, block_ids):
            incoming = tuple(str(link) for link, to in zip(link_ids, after) if to == i)
            outgoing = tuple(str(link) for link, of in zip(link_ids, before) if of == i)
            blocks[i] = Block(i, False, tuple(lanes_of.get(i, ())), incoming, outgoing)
        for i, of, to in zip(map(str, link_ids), before, after):
            blocks[i] = Block(i, True, tuple(lanes_of.get(i, ())), (of,), (to,))
        return blocks

    @cached_property
    def _block_polygons(self) -> dict[str, list[Polygon]]:
        of: dict[str, list[Polygon]] = {block: [] for block in self.blocks}
        for layer in ("LANE", "LANE_CONNECTOR"):
            for polygon in self.polygons[layer]:
                of.setdefault(self.lanes[polygon.token].block, []).append(polygon)
        return of

    def _ids(self, table: str, column: str, columns: dict[str, NDArray[Any]]) -> list[str]:
        values = columns[column]
        empty = [i for i, value in enumerate(values) if _is_null(value)]
        if empty:
            raise MapError(f"{self.path}: layer {table}: {len(empty)} rows have no {column}")
        return [str(int(value)) for value in values]


def open_map(maps_root: Path | str, location: str) -> VectorMap:
    """The map of a location, read once per process.

    Raises FileNotFoundError when the index or the map is missing, MapError when the location is not in the index.
    """
    return _kept_map(Path(maps_root).resolve(), location)


@lru_cache(maxsize=8)
def _kept_map(root: Path, location: str) -> VectorMap:
    index = root / MAP_INDEX
    if not index.is_file():
        raise FileNotFoundError(f"no map index {index}; --maps-root should hold it")
    try:
        version = json.loads(index.read_text(encoding="utf-8"))[location]["version"]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise MapError(f"{index}: expected a version for {location} ({type(error).__name__}: {error})") from None
    return VectorMap(root / location / version / "map.gpkg", location)


def with_headings(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """(point, 3): the points of a line with the heading towards the next one; the last repeats its neighbour's."""
    steps = np.diff(points[:, :2], axis=0)
    headings = np.arctan2(steps[:, 1], steps[:, 0])
    return np.column_stack([points[:, :2], np.append(headings, headings[-1])])


def flatten(polygons: Sequence[Polygon]) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """Ring offsets of the polygons, vertex offsets of the rings, vertices: the layout of `MetricScene`."""
    rings = np.cumsum([0] + [len(p.ring_sizes) for p in polygons], dtype=np.int64)
    sizes = np.cumsum([0] + [size for p in polygons for size in p.ring_sizes], dtype=np.int64)
    return rings, sizes, np.concatenate([p.vertices for p in polygons]) if polygons else np.zeros((0, 2))


def _polygon(token: str, layer: str, shape: shapely.Polygon) -> Polygon:
    rings = [shapely.get_coordinates(ring)[:-1] for ring in (shape.exterior, *shape.interiors)]
    return Polygon(token, layer, tuple(len(ring) for ring in rings), np.concatenate(rings))


def _is_null(value: Any) -> bool:
    return value is None or bool(value != value)
