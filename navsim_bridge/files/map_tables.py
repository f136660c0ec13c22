"""nuPlan GeoPackages as flat arrays: what `maps.VectorMap` is a view of.

Geometries are stored in longitude and latitude; they are projected to the metric system that the file's `meta` layer
names. The row id of a table is the id of the object. A reference to another object may be empty, and then leads
nowhere, as in the devkit. Arrays, not objects, so that processes can share a city through memory-mapped files.
"""

from __future__ import annotations

import sqlite3
import sys
from collections.abc import Callable, Iterable
from contextlib import closing
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyogrio
import pyproj
import shapely
from numpy.typing import NDArray
from pyogrio.errors import DataLayerError

from dpvla.files import open_regular, short

Arrays = dict[str, NDArray[Any]]
Ids = NDArray[np.int64]

NONE = -1
"""Stands for an empty reference."""
CELL = 100.0
"""Side [m] of the cells of the spatial index."""
FASTEST = 200.0
"""Speed limit [m/s]."""
UTM = (1e6, 1e7)
"""Meters east and north that no place has in the system of its zone."""
EXTENT = 1e5
"""Meters from the middle of a map that nothing in it exceeds: a location is a part of a city."""

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
"""Columns that must be there, of the tables that need any; all but those of ``meta`` hold numbers."""


class MapError(ValueError):
    """A map file that is not as the format says."""


AGAIN = "get nuPlan's map again"


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
        found = [_identifier(value) for value in values.tolist()]
        wrong = next((row for row, value in enumerate(found) if value is None), None)
        if wrong is not None:
            raise self.error(wrong, f"{column} is {short(values[wrong])}, not the id of an object")
        return np.array(found, dtype=np.int64)

    def reals(self, column: str) -> NDArray[np.float64]:
        """Numbers of a column, NaN where it is empty."""
        values = self.columns[column]
        found = [np.nan if value is None else value for value in values.tolist()]
        wrong = next((row for row, v in enumerate(found) if not isinstance(v, (int, float)) or np.isinf(v)), None)
        if wrong is not None:
            raise self.error(wrong, f"{column} is {short(values[wrong])}, not a number")
        return np.array(found, dtype=np.float64)

    def check_references(self, column: str, ids: Ids) -> None:
        """Say on stderr how many lead to no object of ``ids``; MapError where all do."""
        values = self.references(column)
        lost = np.flatnonzero((values != NONE) & ~np.isin(values, ids))
        if not len(lost):
            return
        first = f"object {self.fids[lost[0]]}: {column} is {values[lost[0]]}"
        if len(lost) == np.count_nonzero(values != NONE):
            raise MapError(f"{self.path}: layer {self.name}: {first}, which the map does not have, as of all; {AGAIN}")
        print(
            f"{self.path}: layer {self.name}: {len(lost)} of {len(values)} objects lead to what the map does not have, "
            f"first {first}",
            file=sys.stderr,
        )

    def require_rows(self) -> Table:
        """The table itself; MapError where it has no row."""
        if not len(self.fids):
            raise MapError(f"{self.path}: layer {self.name} is empty; {AGAIN}")
        return self

    def error(self, row: int, what: str) -> MapError:
        """What to raise of an object."""
        return MapError(f"{self.path}: layer {self.name}: object {self.fids[row]}: {what}; {AGAIN}")


class MapFile:
    """A GeoPackage whose layers can be read one by one."""

    def __init__(self, path: Path | str) -> None:
        """Check that the file is whole, and look up its coordinate system.

        Raises:
            FileNotFoundError: no such file.
            FileError: something else than a file.
            MapError: no GeoPackage, cut off, damaged or still being written, or of no metric system.
        """
        self.path = Path(path)
        if not self.path.exists():
            raise FileNotFoundError(f"no map {self.path}")
        self._middle: NDArray[np.float64] | None = None  # (2,) x, y of the layer that was read first
        self._first = ""
        self._require_whole()
        meta = self.table("meta")
        named = dict(zip(meta.columns["key"].tolist(), meta.columns["value"].tolist()))
        if "projectedCoordSystem" not in named:
            raise MapError(f"{self.path}: layer meta names no 'projectedCoordSystem'; {AGAIN}")
        system = named["projectedCoordSystem"]
        try:
            self._system = pyproj.CRS(system)
        except pyproj.exceptions.CRSError:
            raise MapError(f"{self.path}: unknown coordinate system in layer meta: {short(system)}; {AGAIN}") from None
        if not self._system.is_projected or any(axis.unit_name != "metre" for axis in self._system.axis_info):
            raise MapError(f"{self.path}: layer meta: {short(system)} is no coordinate system in meters; {AGAIN}")

    def _require_whole(self) -> None:
        with open_regular(self.path) as file:
            header, size = file.read(100), file.seek(0, 2)
        if header[:16] != b"SQLite format 3\0" or len(header) < 100:
            raise MapError(f"{self.path}: not a readable GeoPackage (no SQLite file, {size} bytes); {AGAIN}")
        for suffix in ("-wal", "-journal"):
            left = self.path.with_name(self.path.name + suffix)
            if left.exists() and left.stat().st_size:
                raise MapError(
                    f"{self.path}: {left.name} beside it holds changes that were not written to it: let the program "
                    f"that writes it end, or delete both and {AGAIN}"
                )
        page = int.from_bytes(header[16:18], "big")
        expected = (65536 if page == 1 else page) * int.from_bytes(header[28:32], "big")
        if header[24:28] == header[92:96] and size < expected:
            raise MapError(f"{self.path} is cut off: {size} of {expected} bytes; {AGAIN}")
        try:
            with closing(self._database()) as database:
                (found,) = database.execute("PRAGMA quick_check(1)").fetchone()
        except sqlite3.Error as error:
            found = str(error)
        if found != "ok":
            raise MapError(f"{self.path} is damaged ({short(found)}); {AGAIN}")

    def _database(self) -> sqlite3.Connection:
        """The file as SQLite sees it, for reading."""
        return sqlite3.connect(f"{self.path.resolve().as_uri()}?mode=ro&immutable=1", uri=True)

    def table(self, name: str) -> Table:
        """Any layer; raises MapError when it or one of its `COLUMNS` is missing."""
        self._refuse_view(name)
        try:
            read = pyogrio.raw.read(self.path, layer=name, return_fids=True, read_geometry=name != "meta")
        except DataLayerError:
            layers = ", ".join(pyogrio.list_layers(self.path)[:, 0].tolist())
            raise MapError(f"{self.path}: no layer {name}; it has {layers[:200] or 'none'}") from None
        except (RuntimeError, ValueError, OSError) as error:  # whatever GDAL says
            raise MapError(f"{self.path}: layer {name} cannot be read ({short(str(error))}); {AGAIN}") from None
        meta, fids, geometry, values = read
        columns = dict(zip(meta["fields"].tolist(), values))
        for column in COLUMNS.get(name, ()):
            if column not in columns:
                raise MapError(f"{self.path}: layer {name} has no column {column}; it has {', '.join(columns)}")
        table = Table(self.path, name, fids, np.full(len(fids), None, dtype=object), columns)
        self._check_columns(table)
        if geometry is None or not len(fids):
            return table
        if meta["crs"] is None:
            raise MapError(f"{self.path}: layer {name} names no coordinate system; {AGAIN}")
        return replace(table, shapes=self._projected(table, geometry, meta["crs"]))

    def _refuse_view(self, name: str) -> None:
        """Raise MapError for a layer that is computed, which may have no end."""
        with closing(self._database()) as database:
            kind = database.execute("SELECT type FROM sqlite_master WHERE name = ?", (name,)).fetchone()
        if kind not in (None, ("table",)):
            raise MapError(f"{self.path}: layer {name} is a {kind[0]}, not a table; {AGAIN}")

    def _check_columns(self, table: Table) -> None:
        """Raise MapError where GDAL has read fewer rows than there are, or text as the number 0."""
        name = table.name
        with closing(self._database()) as database:
            (rows,) = database.execute(f'SELECT count(*) FROM "{name}"').fetchone()
            if rows != len(table.fids):
                raise MapError(f"{self.path}: layer {name}: {len(table.fids)} of {rows} objects can be read; {AGAIN}")
            for column in COLUMNS.get(name, ()) if name != "meta" else ():
                found = database.execute(
                    f'SELECT rowid, substr("{column}", 1, 80) FROM "{name}" WHERE typeof("{column}") = \'blob\' OR '
                    f"(typeof(\"{column}\") = 'text' AND \"{column}\" GLOB '*[^-+.0-9eE]*') OR {_unfit(column)} LIMIT 1"
                ).fetchone()
                if found is not None:
                    what = f"{column} is {short(found[1])}, not {_meaning(column)}"
                    raise MapError(f"{self.path}: layer {name}: object {found[0]}: {what}; {AGAIN}")

    def _projected(self, table: Table, geometry: NDArray[np.object_], crs: str) -> NDArray[np.object_]:
        """(row,) shapes in meters. Raises MapError for one that cannot be read, is not finite, or is far away."""
        with np.errstate(invalid="ignore"):  # of NaN, which is looked for below
            shapes = shapely.from_wkb(geometry, on_invalid="ignore")
        unread = np.flatnonzero(shapely.is_missing(shapes) & np.array([wkb is not None for wkb in geometry]))
        if len(unread):
            raise table.error(int(unread[0]), "its shape cannot be read")
        try:
            shapes = shapely.transform(shapes, _projection(crs, self._system))
        except pyproj.exceptions.ProjError:
            raise MapError(f"{self.path}: layer {table.name} has no usable coordinate system; {AGAIN}") from None
        points, row = shapely.get_coordinates(shapes, return_index=True)
        if not len(points):
            return shapes
        wrong = ~np.isfinite(points).all(axis=1)
        if wrong.any():
            raise table.error(int(row[np.argmax(wrong)]), "a vertex is no place on the earth")
        if self._middle is None:
            self._middle, self._first = np.median(points, axis=0), table.name
            if (np.abs(self._middle) > UTM).any():
                raise MapError(
                    f"{self.path}: layer {table.name} lies outside of the coordinate system that layer meta names; "
                    f"{AGAIN}"
                )
        away = np.abs(points - self._middle).max(axis=1)
        if away.max() > EXTENT:
            far = int(np.argmax(away))
            how_far = f"{away[far] / 1000:.0f} km from the middle of the map, by layer {self._first}"
            raise table.error(int(row[far]), f"a vertex is {how_far}")
        return shapes

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
        lanes, links = self.table("lanes_polygons").require_rows(), self.table("lane_connectors").require_rows()
        groups, group_links = (
            self.table(layer).require_rows() for layer in ("lane_groups_polygons", "lane_group_connectors")
        )
        lane_id, block_id = np.append(lanes.fids, links.fids), np.append(groups.fids, group_links.fids)
        block = np.append(lanes.references("lane_group_fid"), links.references("lane_group_connector_fid"))
        before, after = links.references("exit_lane_fid"), links.references("entry_lane_fid")
        from_group = group_links.references("from_lane_group_fid")
        to_group = group_links.references("to_lane_group_fid")
        for table, column, ids in (
            (lanes, "lane_group_fid", groups.fids),
            (links, "lane_group_connector_fid", group_links.fids),
            (links, "exit_lane_fid", lanes.fids),
            (links, "entry_lane_fid", lanes.fids),
            (group_links, "from_lane_group_fid", groups.fids),
            (group_links, "to_lane_group_fid", groups.fids),
            (group_links, "intersection_fid", self.table(POLYGON_TABLES["INTERSECTION"]).fids),
        ):
            table.check_references(column, ids)
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
        table = self.table("baseline_paths").require_rows()
        kinds = shapely.get_type_id(table.shapes)
        lines = (shapely.GeometryType.LINESTRING, shapely.GeometryType.MULTILINESTRING)
        wrong = np.flatnonzero(~np.isin(kinds, lines) | ~(shapely.length(table.shapes) > 0))
        if len(wrong):
            raise table.error(int(wrong[0]), "its shape is no line of any length")
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
        bounds (polygon, 4), crosses (polygon,) whether it crosses itself or lies outside of its outline, and the grid,
        see `grid_arrays`.
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
    flat = np.flatnonzero((bounds[:, :2] == bounds[:, 2:]).any(axis=1))
    if len(flat):
        owner = owners[of[flat[0]]]
        raise MapError(f"{table.path}: layer {table.name}: object {owner} is a polygon without area; {AGAIN}")
    return {
        "id": owners[of],
        "ring": np.searchsorted(polygon, np.arange(len(parts) + 1)).astype(np.int64),
        "vertex": np.concatenate([[0], np.cumsum(sizes - 1)]).astype(np.int64),
        "xy": points[open_points],
        "bounds": bounds,
        "crosses": _crosses(parts),
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


def _unfit(column: str) -> str:
    """SQL for numbers that the column cannot hold."""
    if column.endswith("_mps"):
        return f'NOT ("{column}" BETWEEN 0 AND {FASTEST:g})'
    return f'(typeof("{column}") = \'real\' AND (abs("{column}") > 1e15 OR "{column}" <> CAST("{column}" AS INTEGER)))'


def _meaning(column: str) -> str:
    return f"a speed of 0 to {FASTEST:g} m/s" if column.endswith("_mps") else "a whole number"


def _crosses(parts: NDArray[np.object_]) -> NDArray[np.bool_]:
    """(part,) whether it is no valid polygon, other than by touching itself."""
    crosses = ~shapely.is_valid(parts)
    rows = np.flatnonzero(crosses)
    reasons = shapely.is_valid_reason(parts[rows]).tolist()
    crosses[rows] = [not reason.startswith("Ring Self-intersection") for reason in reasons]
    return np.asarray(crosses, dtype=bool)


def _identifier(value: Any) -> int | None:
    """The id that a column holds, `NONE` where it is empty; None for anything else."""
    if value is None or value == "" or (isinstance(value, float) and np.isnan(value)):
        return NONE
    if isinstance(value, str):
        return int(value) if value.isascii() and value.isdecimal() and len(value) < 19 else None
    whole = isinstance(value, (int, float)) and abs(value) < 2**62 and value == int(value)
    return int(value) if whole else None
