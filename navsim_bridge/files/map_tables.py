"""nuPlan GeoPackages as flat arrays: what `maps.VectorMap` is a view of.

Geometries are stored in longitude and latitude; they are projected to the metric system that the file's `meta` layer
names. The row id of a table is the id of the object. A reference to another object may be empty, and then leads
nowhere, as in the devkit. Arrays, not objects, so that processes can share a city through memory-mapped files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyogrio
import pyproj
import shapely
from numpy.typing import NDArray
from pyogrio.errors import DataLayerError, DataSourceError

Arrays = dict[str, NDArray[Any]]
Ids = NDArray[np.int64]

NONE = -1
"""Stands for an empty reference."""
CELL = 100.0
"""Side [m] of the cells of the spatial index."""

POLYGON_TABLES = {
    "ROADBLOCK": "lane_groups_polygons",
    "ROADBLOCK_CONNECTOR": "lane_group_connectors",
    "LANE": "lanes_polygons",
    "LANE_CONNECTOR": "gen_lane_connectors_scaled_width_polygons",
    "INTERSECTION": "intersections",
    "CARPARK_AREA": "carpark_areas",
    "STOP_LINE": "stop_polygons",
    "CROSSWALK": "crosswalks",
    "WALKWAYS": "walkways",
    "ROAD_SEGMENT": "road_segments",
    "GENERIC_DRIVABLE_AREA": "generic_drivable_areas",
}
"""Layers of polygons, named as the devkit names them where it does, and their tables."""

COLUMNS = {
    "lanes_polygons": ("lane_group_fid", "lane_index", "speed_limit_mps"),
    "lane_connectors": ("exit_lane_fid", "entry_lane_fid", "lane_group_connector_fid", "speed_limit_mps"),
    "gen_lane_connectors_scaled_width_polygons": ("lane_connector_fid",),
    "lane_group_connectors": ("from_lane_group_fid", "to_lane_group_fid", "intersection_fid"),
    "baseline_paths": ("lane_fid", "lane_connector_fid"),
    "meta": ("key", "value"),
}  # fmt: skip
"""Columns that must be there, of the tables that need any."""


class MapError(ValueError):
    """A map file that is not as the format says."""


@dataclass(frozen=True)
class Table:
    """One layer of the file."""

    path: Path
    name: str
    fids: Ids  # (row,)
    shapes: NDArray[np.object_]  # (row,) projected shapely geometries; None where the layer has none
    columns: dict[str, NDArray[Any]]

    def references(self, column: str) -> Ids:
        """Ids that a column refers to, `NONE` where it is empty."""
        values = self.columns[column]
        if values.dtype.kind in "iu":
            return values.astype(np.int64)
        return np.array([NONE if _is_null(value) else int(value) for value in values], dtype=np.int64)

    def reals(self, column: str) -> NDArray[np.float64]:
        """Numbers of a column, NaN where it is empty."""
        values = self.columns[column]
        return np.array([np.nan if value is None else value for value in values], dtype=np.float64)


class MapFile:
    """A GeoPackage whose layers can be read one by one."""

    def __init__(self, path: Path | str) -> None:
        """Look up the coordinate system; raises FileNotFoundError or MapError naming file, layer and column."""
        self.path = Path(path)
        if not self.path.is_file():
            raise FileNotFoundError(f"no map {self.path}")
        meta = self.table("meta")
        try:
            self._system = pyproj.CRS(dict(zip(meta.columns["key"], meta.columns["value"]))["projectedCoordSystem"])
        except KeyError as error:
            raise MapError(f"{self.path}: layer meta names no {error}") from None
        except pyproj.exceptions.CRSError as error:
            raise MapError(f"{self.path}: unknown coordinate system in layer meta: {error}") from None

    def table(self, name: str) -> Table:
        """Any layer; raises MapError when it or one of its `COLUMNS` is missing."""
        try:
            read = pyogrio.raw.read(self.path, layer=name, return_fids=True, read_geometry=name != "meta")
        except DataLayerError:
            layers = ", ".join(pyogrio.list_layers(self.path)[:, 0].tolist())
            raise MapError(f"{self.path}: no layer {name}; it has {layers or 'none'}") from None
        except DataSourceError as error:
            raise MapError(f"{self.path}: not a readable GeoPackage ({error})") from None
        meta, fids, geometry, values = read
        columns = dict(zip(meta["fields"].tolist(), values))
        for column in COLUMNS.get(name, ()):
            if column not in columns:
                raise MapError(f"{self.path}: layer {name} has no column {column}; it has {', '.join(columns)}")
        shapes = np.full(len(fids), None, dtype=object)
        if geometry is not None and len(fids):
            if meta["crs"] is None:
                raise MapError(f"{self.path}: layer {name} names no coordinate system")
            shapes = shapely.transform(shapely.from_wkb(geometry), _projection(meta["crs"], self._system))
        return Table(self.path, name, fids, shapes, columns)

    def polygons(self, layer: str) -> Arrays:
        """The arrays of a layer of `POLYGON_TABLES`, see `polygon_arrays`."""
        table = self.table(POLYGON_TABLES[layer])
        if layer == "LANE_CONNECTOR":  # the polygon's own id is of no use; one of no connector is never looked at
            owners = table.references("lane_connector_fid")
            return polygon_arrays(table, owners, table.shapes[owners != NONE])
        return polygon_arrays(table, table.fids, table.shapes)

    def graph(self) -> Arrays:
        """Lanes, connectors, base lines and roadblocks.

        Lanes stand before connectors, roadblocks before roadblock connectors, each in table order. `lane.x` is
        parallel to `lane.id`, `block.x` to `block.id`; links are stored as `_grouped` rows.
        """
        lanes, links = self.table("lanes_polygons"), self.table("lane_connectors")
        groups, group_links = self.table("lane_groups_polygons"), self.table("lane_group_connectors")
        lane_id, block_id = np.append(lanes.fids, links.fids), np.append(groups.fids, group_links.fids)
        block = np.append(lanes.references("lane_group_fid"), links.references("lane_group_connector_fid"))
        before, after = links.references("exit_lane_fid"), links.references("entry_lane_fid")
        from_group = group_links.references("from_lane_group_fid")
        to_group = group_links.references("to_lane_group_fid")
        return {
            "lane.id": lane_id,
            "lane.lanes": np.array([len(lanes.fids)]),
            "lane.block": block,
            "lane.speed_limit": np.append(lanes.reals("speed_limit_mps"), links.reals("speed_limit_mps")),
            "lane.index": np.append(lanes.references("lane_index"), np.full(len(links.fids), NONE)),
            **_grouped("lane.incoming", lane_id, [(after, links.fids), (links.fids, before)]),
            **_grouped("lane.outgoing", lane_id, [(before, links.fids), (links.fids, after)]),
            **self._baselines(lane_id),
            "block.id": block_id,
            "block.groups": np.array([len(groups.fids)]),
            "block.intersection": np.append(
                np.full(len(groups.fids), NONE), group_links.references("intersection_fid")
            ),
            **_grouped("block.lane", block_id, [(block, lane_id)]),
            **_grouped("block.incoming", block_id, [(to_group, group_links.fids), (group_links.fids, from_group)]),
            **_grouped("block.outgoing", block_id, [(from_group, group_links.fids), (group_links.fids, to_group)]),
        }

    def _baselines(self, lane_id: Ids) -> Arrays:
        table = self.table("baseline_paths")
        owner = table.references("lane_fid")
        owner = np.where(owner == NONE, table.references("lane_connector_fid"), owner)
        points, line = shapely.get_coordinates(table.shapes, return_index=True)
        bounds = np.searchsorted(line, np.arange(len(owner) + 1))
        row = _first_row(owner, lane_id)
        return {
            "baseline.points": lines_with_headings(points, bounds),
            "lane.baseline": np.where(row[:, None] >= 0, np.stack([bounds[row], bounds[row + 1]], axis=1), NONE)
            if len(owner)
            else np.full((len(lane_id), 2), NONE),
        }


def polygon_arrays(table: Table, owners: Ids, shapes: NDArray[np.object_]) -> Arrays:
    """Polygons as open rings (first vertex not repeated), outline first, with bounds and a spatial index.

    A shape of several parts becomes several polygons of one id; empty owners are left out.

    Returns:
        id (polygon,), ring (polygon + 1,) offsets of rings, vertex (ring + 1,) offsets of vertices, xy (vertex, 2),
        bounds (polygon, 4) and the grid, see `grid_arrays`.
    """
    owners = owners[owners != NONE]
    parts, of = shapely.get_parts(shapes, return_index=True)
    kinds = shapely.get_type_id(parts)
    wrong = np.flatnonzero((kinds != shapely.GeometryType.POLYGON) | shapely.is_empty(parts))
    missing = np.setdiff1d(np.arange(len(owners)), of)
    if len(wrong) or len(missing):
        row = int(of[wrong[0]] if len(wrong) else missing[0])
        kind = parts[wrong[0]].geom_type if len(wrong) else "empty shape"
        raise MapError(f"{table.path}: layer {table.name}: object {owners[row]} is a {kind}, not a polygon")
    rings, polygon = shapely.get_rings(parts, return_index=True)
    points, ring = shapely.get_coordinates(rings, return_index=True)
    sizes = np.bincount(ring, minlength=len(rings))
    open_points = np.ones(len(points), dtype=bool)
    open_points[np.cumsum(sizes) - 1] = False
    bounds = shapely.bounds(parts).reshape(-1, 4)
    return {
        "id": owners[of],
        "ring": np.searchsorted(polygon, np.arange(len(parts) + 1)).astype(np.int64),
        "vertex": np.concatenate([[0], np.cumsum(sizes - 1)]).astype(np.int64),
        "xy": points[open_points],
        "bounds": bounds,
        **grid_arrays(bounds),
    }


def grid_arrays(bounds: NDArray[np.float64]) -> Arrays:
    """Index of boxes (row, 4): for each cell of a grid the rows that touch it.

    Returns:
        grid (4,): corner x, y [m] and number of columns and rows of cells; cell (cells + 1,) offsets of cell_row;
        cell_row: rows, ascending within a cell.
    """
    if len(bounds) == 0:
        return {"grid": np.zeros(4), "cell": np.zeros(1, np.int64), "cell_row": np.zeros(0, np.int64)}
    corner = np.floor(bounds[:, :2].min(axis=0) / CELL) * CELL
    low = ((bounds[:, :2] - corner) // CELL).astype(np.int64)
    high = ((bounds[:, 2:] - corner) // CELL).astype(np.int64)
    width, height = (high.max(axis=0) + 1).tolist()
    counts = (high - low + 1).prod(axis=1)
    row = np.repeat(np.arange(len(bounds)), counts)
    nth = np.arange(len(row)) - np.repeat(np.cumsum(counts) - counts, counts)
    columns = (high - low + 1)[row, 0]
    cell = (low[row, 1] + nth // columns) * width + low[row, 0] + nth % columns
    order = np.argsort(cell, kind="stable")
    return {
        "grid": np.array([*corner, width, height], dtype=np.float64),
        "cell": np.searchsorted(cell[order], np.arange(width * height + 1)).astype(np.int64),
        "cell_row": row[order],
    }


def rows_near(arrays: Arrays, box: tuple[float, float, float, float]) -> Ids:
    """Ascending rows of `grid_arrays` whose box touches ``box`` (x and y from, x and y to)."""
    x, y, width, height = arrays["grid"].tolist()
    bounds, cells = arrays["bounds"], arrays["cell"]
    left, right = max(0, int((box[0] - x) // CELL)), min(int(width) - 1, int((box[2] - x) // CELL))
    low, high = max(0, int((box[1] - y) // CELL)), min(int(height) - 1, int((box[3] - y) // CELL))
    if left > right or low > high:
        return np.zeros(0, dtype=np.int64)
    lines = [line * int(width) for line in range(low, high + 1)]
    found = [arrays["cell_row"][cells[line + left] : cells[line + right + 1]] for line in lines]
    rows = np.unique(np.concatenate(found))
    near = bounds[rows]
    touches = (near[:, 0] <= box[2]) & (near[:, 2] >= box[0]) & (near[:, 1] <= box[3]) & (near[:, 3] >= box[1])
    return np.asarray(rows[touches], dtype=np.int64)


def _grouped(name: str, owners: Ids, pairs: Iterable[tuple[Ids, Ids]]) -> Arrays:
    """For each owner the values whose key it is, in order: `name` holds them, `name.at` (owner, 2) where."""
    key, value = (np.concatenate(parts) for parts in zip(*pairs))
    order = np.argsort(np.where(value == NONE, NONE, key), kind="stable")
    key, value = np.where(value == NONE, NONE, key)[order], value[order]
    at = np.stack([np.searchsorted(key, owners, "left"), np.searchsorted(key, owners, "right")], axis=1)
    return {name: value, f"{name}.at": at}


def _first_row(keys: Ids, wanted: Ids) -> Ids:
    """The first row of ``keys`` that holds each wanted id, `NONE` where none does."""
    order = np.argsort(keys, kind="stable")
    at = np.searchsorted(keys[order], wanted)
    found = np.append(order, 0)[at]
    return np.where(np.append(keys, NONE)[np.where(at < len(keys), found, len(keys))] == wanted, found, NONE)


def lines_with_headings(points: NDArray[np.float64], bounds: Ids) -> NDArray[np.float64]:
    """Points of many lines (offsets ``bounds``) with the heading towards the next; the last repeats its neighbor's."""
    steps = np.diff(points, axis=0)
    headings = np.append(np.arctan2(steps[:, 1], steps[:, 0]), 0.0)[: len(points)]
    last = bounds[1:] - 1
    headings[last] = headings[last - 1]
    return np.column_stack([points, headings])


@lru_cache(maxsize=16)
def _projection(source: str, target: pyproj.CRS) -> Callable[[NDArray[np.float64]], NDArray[np.float64]]:
    project = pyproj.Transformer.from_crs(source, target, always_xy=True)
    return lambda points: np.column_stack(project.transform(points[:, 0], points[:, 1]))


def _is_null(value: Any) -> bool:
    return value is None or bool(value != value)
