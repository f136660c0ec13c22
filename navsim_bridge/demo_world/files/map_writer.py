"""nuPlan GeoPackage maps written straight through SQLite, with every layer and column of the public files.

Bytes are a function of the network alone: GeoPackage's only clock (``last_change``) is fixed.
"""

from __future__ import annotations

import os
import sqlite3
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray
from pyproj import Transformer

from dpvla.files import write_json
from navsim_bridge.demo_world.config import LOCATIONS
from navsim_bridge.demo_world.roads import curves
from navsim_bridge.demo_world.roads.network import LANE_WIDTH, SIDEWALK, RoadNetwork
from navsim_bridge.files.roots import MAP_INDEX

Float = NDArray[np.float64]

_BOUNDARY_FIDS = "left_boundary_fid INTEGER, right_boundary_fid INTEGER"
_EDGES = "from_edge_fid INTEGER, to_edge_fid INTEGER"
LAYERS: dict[str, tuple[str, str]] = {
    "boundaries": (
        "LINESTRING",
        "boundary_segment_fids TEXT, has_reflectors INTEGER, boundary_type_fid INTEGER, creator_id TEXT",
    ),
    "baseline_paths": (
        "LINESTRING",
        "path_type_fid INTEGER, creator_id TEXT, lane_fid INTEGER, lane_connector_fid INTEGER, dubins_node_fids TEXT",
    ),
    "lanes_polygons": (
        "POLYGON",
        "lane_group_fid INTEGER, lane_fid INTEGER, lane_index INTEGER, creator_id TEXT, name TEXT, "
        "road_type_fid INTEGER, lane_type_fid INTEGER, "
        "width INTEGER, left_offset REAL, right_offset REAL, min_speed REAL, max_speed REAL, "
        f"stops INTEGER, {_BOUNDARY_FIDS}, speed_limit_mps REAL, left_has_reflectors INTEGER, "
        f"right_has_reflectors INTEGER, {_EDGES}",
    ),
    "lane_connectors": (
        "LINESTRING",
        "exit_lane_group_fid INTEGER, exit_lane_fid INTEGER, entry_lane_group_fid INTEGER, "
        "lane_group_connector_fid INTEGER, entry_lane_fid INTEGER, intersection_fid INTEGER, turn_type_fid INTEGER, "
        "bulb_fids TEXT, traffic_light_stop_line_fids TEXT, overlap INTEGER, creator_id TEXT, "
        "reflector_side_fid INTEGER, left_has_reflectors INTEGER, right_has_reflectors INTEGER, speed_limit_mps REAL",
    ),
    "gen_lane_connectors_scaled_width_polygons": (
        "POLYGON",
        f"baseline_path_fid INTEGER, lane_connector_fid INTEGER, {_EDGES}, {_BOUNDARY_FIDS}",
    ),
    "lane_groups_polygons": ("POLYGON", f"creator_id TEXT, {_BOUNDARY_FIDS}, {_EDGES}"),
    "lane_group_connectors": (
        "POLYGON",
        "intersection_fid INTEGER, from_lane_group_fid INTEGER, to_lane_group_fid INTEGER, creator_id TEXT, "
        f"{_EDGES}, {_BOUNDARY_FIDS}",
    ),
    "road_segments": ("POLYGON", "lane_group_fids TEXT"),
    "intersections": ("POLYGON", "creator_id TEXT, intersection_type_fid INTEGER, is_mini INTEGER"),
    "stop_polygons": (
        "POLYGON",
        "stop_polygon_type_fid INTEGER, lane_group_fid INTEGER, lane_fids TEXT, lane_connector_fids TEXT, "
        "traffic_light_fids TEXT, crosswalk_fids TEXT, precedence_area_fids TEXT, creator_id TEXT",
    ),
    "crosswalks": ("POLYGON", "intersection_fids TEXT, lane_fids TEXT, creator_id TEXT, is_marked INTEGER"),
    "walkways": ("POLYGON", "creator_id TEXT"),
    "carpark_areas": ("POLYGON", "heading REAL, creator_id TEXT"),
    "generic_drivable_areas": ("POLYGON", "creator_id TEXT"),
}
CREATOR = "dpvla demo world"
_FIXED_TIME = "2024-01-01T00:00:00.000Z"
_WGS84 = (
    'GEOGCS["WGS 84",DATUM["WGS_1984",SPHEROID["WGS 84",6378137,298.257223563,AUTHORITY["EPSG","7030"]],'
    'AUTHORITY["EPSG","6326"]],PRIMEM["Greenwich",0,AUTHORITY["EPSG","8901"]],'
    'UNIT["degree",0.0174532925199433,AUTHORITY["EPSG","9122"]],AUTHORITY["EPSG","4326"]]'
)
_TURN_TYPES = {"straight": 0, "left": 1, "right": 2}


@dataclass(frozen=True)
class MapIds:
    """Map object ids of a network's parts; unique over the whole map."""

    lane_groups: tuple[int, ...]  # per carriageway
    lanes: dict[tuple[int, int], int]  # (carriageway, lane)
    connectors: tuple[int, ...]
    group_connectors: dict[tuple[int, int], int]  # (from carriageway, to carriageway)
    intersections: tuple[int, ...]


@dataclass
class _Tables:
    """Rows per layer as (fid, geometry in local meters, column values)."""

    rows: dict[str, list[tuple[int, Float, dict[str, Any]]]] = field(default_factory=lambda: {k: [] for k in LAYERS})
    next_fid: int = 1000

    def new_fid(self) -> int:
        self.next_fid += 1
        return self.next_fid

    def add(self, layer: str, geometry: Float, fid: int | None = None, **values: Any) -> int:
        fid = self.new_fid() if fid is None else fid
        self.rows[layer].append((fid, geometry, values))
        return fid


def assign_ids(network: RoadNetwork) -> MapIds:
    """Give every lane, lane group, connector and junction its id, the same at every call."""
    start = 10_000 * (network.location.index + 1)
    take = iter(range(start, start + 9_000)).__next__
    groups = tuple(take() for _ in network.carriageways)
    lanes = {(c.index, k): take() for c in network.carriageways for k in range(c.lanes)}
    connectors = tuple(take() for _ in network.connectors)
    pairs = dict.fromkeys((c.source[0], c.target[0]) for c in network.connectors)
    return MapIds(groups, lanes, connectors, {p: take() for p in pairs}, tuple(take() for _ in network.nodes))


def write_map(network: RoadNetwork, maps_root: Path) -> Path:
    """Write ``<maps_root>/<location>/<version>/map.gpkg`` and return its path."""
    location = network.location
    path = maps_root / location.name / location.version / "map.gpkg"
    tables = _tabulate(network, assign_ids(network))
    projection = Transformer.from_crs(location.epsg, 4326, always_xy=True)

    def to_degrees(points: Float) -> Float:
        x, y = projection.transform(points[:, 0] + location.origin[0], points[:, 1] + location.origin[1])
        return np.stack([x, y], axis=-1)

    _replace_file(path, lambda temporary: _write_geopackage(temporary, tables, to_degrees, location.epsg))
    return path


def write_map_index(maps_root: Path) -> Path:
    """Write ``nuplan-maps-v1.0.json``, which names the version of each location."""
    return write_json(maps_root / MAP_INDEX, {loc.name: {"version": loc.version, "layers": {}} for loc in LOCATIONS})


def _tabulate(network: RoadNetwork, ids: MapIds) -> _Tables:
    tables = _Tables(next_fid=10_000 * (network.location.index + 1) + 9_000)
    stop_lines = _add_carriageways(network, ids, tables)
    _add_connectors(network, ids, tables, stop_lines)
    for node in network.nodes:
        kind = 2 if node.signalled else 0
        tables.add("intersections", node.outline, ids.intersections[node.index], creator_id=CREATOR,
                   intersection_type_fid=kind, is_mini=0)  # fmt: skip
    for crossing in network.crosswalks:
        node_fid = str(ids.intersections[crossing.node]) if crossing.node >= 0 else ""
        tables.add("crosswalks", crossing.outline, intersection_fids=node_fid, lane_fids="", creator_id=CREATOR,
                   is_marked=1)  # fmt: skip
    for outline, heading in network.car_parks:
        tables.add("carpark_areas", outline, heading=heading, creator_id=CREATOR)
        along = np.array([np.cos(heading), np.sin(heading)])
        tables.add("generic_drivable_areas", outline + along * 0.0, creator_id=CREATOR)
    return tables


def _add_carriageways(network: RoadNetwork, ids: MapIds, tables: _Tables) -> dict[int, int]:
    """Lane groups, lanes, borders, walkways and stop lines; returns the stop line's fid per carriageway."""
    stop_lines: dict[int, int] = {}
    for c in network.carriageways:
        borders = [_add_boundary(tables, curves.offset(c.line, c.left_margin), 2)]
        borders += [_add_boundary(tables, curves.offset(c.line, -k * LANE_WIDTH), 0) for k in range(1, c.lanes)]
        borders.append(_add_boundary(tables, curves.offset(c.line, c.right_edge), 2))
        group = ids.lane_groups[c.index]
        tables.add("lane_groups_polygons", c.polygon(), group, creator_id=CREATOR, left_boundary_fid=borders[0],
                   right_boundary_fid=borders[-1], from_edge_fid=0, to_edge_fid=0)  # fmt: skip
        for k in range(c.lanes):
            fid = ids.lanes[c.index, k]
            area = curves.band(c.line, -k * LANE_WIDTH, -(k + 1) * LANE_WIDTH)
            tables.add("lanes_polygons", area, fid, lane_group_fid=group, lane_fid=fid, lane_index=k,
                       creator_id=CREATOR, name=c.street_name, road_type_fid=0, lane_type_fid=0,
                       width=round(LANE_WIDTH), left_offset=-k * LANE_WIDTH, right_offset=-(k + 1) * LANE_WIDTH,
                       min_speed=0.0, max_speed=c.speed_limit, stops=0, left_boundary_fid=borders[k],
                       right_boundary_fid=borders[k + 1], speed_limit_mps=c.speed_limit, left_has_reflectors=0,
                       right_has_reflectors=0, from_edge_fid=0, to_edge_fid=0)  # fmt: skip
            tables.add("baseline_paths", c.lane_line(k), path_type_fid=0, creator_id=CREATOR, lane_fid=fid,
                       lane_connector_fid=None, dubins_node_fids="")  # fmt: skip
        tables.add("walkways", curves.band(c.line, c.right_edge, c.right_edge - SIDEWALK), creator_id=CREATOR)
        if network.nodes[c.to_node].signalled:
            stop_lines[c.index] = tables.add(
                "stop_polygons", _stop_area(c.line, c.right_edge), stop_polygon_type_fid=2, lane_group_fid=group,
                lane_fids=",".join(str(ids.lanes[c.index, k]) for k in range(c.lanes)), lane_connector_fids="",
                traffic_light_fids="", crosswalk_fids="", precedence_area_fids="", creator_id=CREATOR,
            )  # fmt: skip
    for street in sorted({c.street for c in network.carriageways}):
        sides = [c for c in network.carriageways if c.street == street]
        left = sides[0].left_margin if len(sides) == 1 else -sides[0].right_edge
        groups = ",".join(str(ids.lane_groups[c.index]) for c in sides)
        tables.add("road_segments", curves.band(sides[0].line, left, sides[0].right_edge), lane_group_fids=groups)
    return stop_lines


def _add_connectors(network: RoadNetwork, ids: MapIds, tables: _Tables, stop_lines: dict[int, int]) -> None:
    members: dict[tuple[int, int], list[Float]] = {}
    sides: dict[tuple[int, int], tuple[int, int]] = {}
    for c in network.connectors:
        fid = ids.connectors[c.index]
        pair = (c.source[0], c.target[0])
        half = 0.5 * LANE_WIDTH
        left = _add_boundary(tables, curves.offset(c.line, half), 0)
        right = _add_boundary(tables, curves.offset(c.line, -half), 0)
        limit = min(network.carriageways[i].speed_limit for i in pair)
        tables.add("lane_connectors", c.line, fid, exit_lane_group_fid=ids.lane_groups[pair[0]],
                   exit_lane_fid=ids.lanes[c.source], entry_lane_group_fid=ids.lane_groups[pair[1]],
                   lane_group_connector_fid=ids.group_connectors[pair], entry_lane_fid=ids.lanes[c.target],
                   intersection_fid=ids.intersections[c.node], turn_type_fid=_TURN_TYPES[c.turn], bulb_fids="",
                   traffic_light_stop_line_fids=str(stop_lines.get(pair[0], "")), overlap=0, creator_id=CREATOR,
                   reflector_side_fid=0, left_has_reflectors=0, right_has_reflectors=0,
                   speed_limit_mps=limit)  # fmt: skip
        path = tables.add("baseline_paths", c.line, path_type_fid=0, creator_id=CREATOR, lane_fid=None,
                          lane_connector_fid=fid, dubins_node_fids="")  # fmt: skip
        area = curves.band(c.line, half, -half)
        tables.add("gen_lane_connectors_scaled_width_polygons", area, baseline_path_fid=path, lane_connector_fid=fid,
                   from_edge_fid=0, to_edge_fid=0, left_boundary_fid=left, right_boundary_fid=right)  # fmt: skip
        members.setdefault(pair, []).append(area)
        sides[pair] = (sides.get(pair, (left, right))[0], right)
    for pair, areas in members.items():
        whole = shapely.convex_hull(shapely.multipolygons([shapely.Polygon(a) for a in areas]))
        tables.add("lane_group_connectors", np.asarray(whole.exterior.coords)[:-1], ids.group_connectors[pair],
                   intersection_fid=ids.intersections[network.carriageways[pair[0]].to_node],
                   from_lane_group_fid=ids.lane_groups[pair[0]], to_lane_group_fid=ids.lane_groups[pair[1]],
                   creator_id=CREATOR, from_edge_fid=0, to_edge_fid=0, left_boundary_fid=sides[pair][0],
                   right_boundary_fid=sides[pair][1])  # fmt: skip


def _add_boundary(tables: _Tables, line: Float, kind: int) -> int:
    return tables.add("boundaries", line, boundary_segment_fids="", has_reflectors=0, boundary_type_fid=kind,
                      creator_id=CREATOR)  # fmt: skip


def _stop_area(line: Float, right_edge: float) -> Float:
    heading = float(curves.headings(line)[-1])
    along, right = np.array([np.cos(heading), np.sin(heading)]), np.array([np.sin(heading), -np.cos(heading)])
    near, far = line[-1] - along * 1.0, line[-1]
    return np.stack([near, near - right * right_edge, far - right * right_edge, far])


def _replace_file(path: Path, write: Callable[[Path], None]) -> None:
    """SQLite writes by path, so write beside the target and rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for left in path.parent.glob(f".{path.name}.*"):  # by a process that was killed, SQLite's journal as well
        left.unlink()
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    os.close(descriptor)
    temporary = Path(name)
    try:
        write(temporary)
        temporary.chmod(0o644)
        os.replace(temporary, path)
    except sqlite3.Error as error:
        raise OSError(f"{path} cannot be written ({error}): is there room?") from None
    finally:
        for left in (temporary, temporary.with_name(f"{temporary.name}-journal")):
            left.unlink(missing_ok=True)


def _write_geopackage(path: Path, tables: _Tables, to_degrees: Callable[[Float], Float], epsg: int) -> None:
    connection = sqlite3.connect(path)
    try:
        run = connection.execute
        run("PRAGMA application_id = 1196444487")  # "GPKG"
        run("PRAGMA user_version = 10300")
        run(
            "CREATE TABLE gpkg_spatial_ref_sys (srs_name TEXT NOT NULL, srs_id INTEGER NOT NULL PRIMARY KEY, "
            "organization TEXT NOT NULL, organization_coordsys_id INTEGER NOT NULL, definition TEXT NOT NULL, "
            "description TEXT)"
        )
        run(
            "CREATE TABLE gpkg_contents (table_name TEXT NOT NULL PRIMARY KEY, data_type TEXT NOT NULL, "
            "identifier TEXT UNIQUE, description TEXT DEFAULT '', last_change DATETIME NOT NULL, min_x DOUBLE, "
            "min_y DOUBLE, max_x DOUBLE, max_y DOUBLE, srs_id INTEGER)"
        )
        run(
            "CREATE TABLE gpkg_geometry_columns (table_name TEXT NOT NULL PRIMARY KEY, column_name TEXT NOT NULL, "
            "geometry_type_name TEXT NOT NULL, srs_id INTEGER NOT NULL, z TINYINT NOT NULL, m TINYINT NOT NULL)"
        )
        for row in (
            ("Undefined Cartesian", -1, "NONE", -1, "undefined", ""),
            ("Undefined geographic", 0, "NONE", 0, "undefined", ""),
            ("WGS 84", 4326, "EPSG", 4326, _WGS84, ""),
        ):
            run("INSERT INTO gpkg_spatial_ref_sys VALUES (?, ?, ?, ?, ?, ?)", row)
        for layer, (kind, columns) in LAYERS.items():
            _write_layer(connection, layer, kind, columns, tables.rows[layer], to_degrees)
        run("CREATE TABLE meta (fid INTEGER PRIMARY KEY AUTOINCREMENT NOT NULL, key TEXT, value TEXT)")
        run("INSERT INTO meta (key, value) VALUES ('geographicCoordSystem', 'epsg:4326')")
        run("INSERT INTO meta (key, value) VALUES ('projectedCoordSystem', ?)", (f"epsg:{epsg}",))
        run(
            "INSERT INTO gpkg_contents VALUES ('meta', 'attributes', 'meta', '', ?, NULL, NULL, NULL, NULL, NULL)",
            (_FIXED_TIME,),
        )
        connection.commit()
    finally:
        connection.close()


def _write_layer(
    connection: sqlite3.Connection, layer: str, kind: str, columns: str,
    rows: Iterable[tuple[int, Float, dict[str, Any]]], to_degrees: Callable[[Float], Float],
) -> None:  # fmt: skip
    names = [column.split()[0] for column in columns.split(", ")]
    connection.execute(
        f'CREATE TABLE "{layer}" (fid INTEGER PRIMARY KEY AUTOINCREMENT NOT NULL, geom {kind}, {columns})'
    )
    statement = f'INSERT INTO "{layer}" (fid, geom, {", ".join(names)}) VALUES ({", ".join("?" * (len(names) + 2))})'
    bounds = []
    for fid, geometry, values in rows:
        if set(values) != set(names):
            raise ValueError(f"map layer {layer}: columns {sorted(set(values) ^ set(names))} do not match")
        points = to_degrees(geometry)
        shape = shapely.LineString(points) if kind == "LINESTRING" else shapely.Polygon(points)
        low, high = points.min(axis=0), points.max(axis=0)
        bounds.append((low, high))
        connection.execute(statement, [fid, _blob(shape, low, high), *(values[name] for name in names)])
    extent: list[float | None] = [None] * 4
    if bounds:
        low, high = np.min([b[0] for b in bounds], axis=0), np.max([b[1] for b in bounds], axis=0)
        extent = [*map(float, low), *map(float, high)]
    connection.execute(
        "INSERT INTO gpkg_contents VALUES (?, 'features', ?, '', ?, ?, ?, ?, ?, 4326)",
        (layer, layer, _FIXED_TIME, *extent),
    )
    connection.execute("INSERT INTO gpkg_geometry_columns VALUES (?, 'geom', ?, 4326, 0, 0)", (layer, kind))


def _blob(shape: shapely.Geometry, low: Float, high: Float) -> bytes:
    """GeoPackage geometry: magic, version 0, flags (little endian, xy envelope), SRS id, envelope, WKB."""
    envelope = np.array([low[0], high[0], low[1], high[1]], "<f8").tobytes()
    header = b"GP" + bytes([0, 3]) + np.array(4326, "<i4").tobytes() + envelope
    return header + shapely.to_wkb(shape, byte_order=1, output_dimension=2)
