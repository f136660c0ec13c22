"""Hand-made maps of a few lanes, written as GeoPackages and read back."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray
from pyproj import Transformer

from navsim_bridge.demo_world.files.map_writer import LAYERS, _Tables, _write_geopackage
from navsim_bridge.files.maps import VectorMap

EPSG = 32611
ORIGIN = np.array([664_000.0, 3_999_000.0])
WIDTH = 3.5
Point = tuple[float, float]


class TinyMap:
    """Roads and junctions in meters from `ORIGIN`; ids are the caller's numbers."""

    def __init__(self) -> None:
        self._tables = _Tables(next_fid=90_000)
        self._lines: dict[int, list[Point]] = {}
        self._group_of: dict[int, int] = {}

    def road(self, block: int, lanes: dict[int, list[Point]], limit: float | None = 10.0) -> None:
        """A roadblock and its lanes, each along a line."""
        for lane, line in lanes.items():
            self._lines[lane], self._group_of[lane] = line, block
            self._add("lanes_polygons", _band(line), lane, lane_group_fid=block, lane_fid=lane, speed_limit_mps=limit)
            self._base_line(line, lane_fid=lane)
        self._add("lane_groups_polygons", _hull(lanes.values()), block)

    def junction(
        self,
        block: int,
        links: dict[int, tuple[int, int]],
        lines: dict[int, list[Point]] | None = None,
        area: Sequence[Point] | None = None,
    ) -> None:
        """A roadblock connector with ``links``: connector -> lane it comes from, lane it goes to.

        A connector is straight unless ``lines`` has its line; ``area`` is the roadblock connector's polygon.
        """
        of = {i: (lines or {}).get(i, [self._lines[a][-1], self._lines[b][0]]) for i, (a, b) in links.items()}
        for i, (a, b) in links.items():
            self._add("lane_connectors", _dense(of[i]), i, exit_lane_fid=a, entry_lane_fid=b,
                      lane_group_connector_fid=block, traffic_light_stop_line_fids="",
                      speed_limit_mps=8.0)  # fmt: skip
            self._add("gen_lane_connectors_scaled_width_polygons", _band(of[i]), lane_connector_fid=i)
            self._base_line(of[i], lane_connector_fid=i)
        a, b = next(iter(links.values()))
        outline = _hull(of.values()) if area is None else np.array(area)
        self._add("lane_group_connectors", outline, block, from_lane_group_fid=self._group_of[a],
                  to_lane_group_fid=self._group_of[b])  # fmt: skip

    def write(self, folder: Path) -> VectorMap:
        transformer = Transformer.from_crs(EPSG, 4326, always_xy=True)

        def to_degrees(points: NDArray[np.float64]) -> NDArray[np.float64]:
            return np.column_stack(transformer.transform(*(points + ORIGIN).T))

        path = folder / "map.gpkg"
        _write_geopackage(path, self._tables, to_degrees, EPSG)
        return VectorMap(path, "tiny")

    def _base_line(self, line: list[Point], **owner: int) -> None:
        self._add("baseline_paths", _dense(line), **owner)

    def _add(self, layer: str, geometry: NDArray[np.float64], fid: int | None = None, **values: Any) -> None:
        names = [column.split()[0] for column in LAYERS[layer][1].split(", ")]
        self._tables.add(layer, geometry, fid, **{**dict.fromkeys(names), **values})


def chain(*blocks: tuple[float, float]) -> TinyMap:
    """A straight one-lane street along x: roadblock i+1 = lane 11+i from x to x, linked by junctions 101, 102, ...

    The connector of junction 100 + i is 200 + i.
    """
    tiny = TinyMap()
    for i, (start, stop) in enumerate(blocks, start=1):
        tiny.road(i, {10 + i: [(start, 0), (stop, 0)]})
    for i in range(1, len(blocks)):
        tiny.junction(100 + i, {200 + i: (10 + i, 11 + i)})
    return tiny


def _dense(line: list[Point]) -> NDArray[np.float64]:
    """Points at most 2 m apart."""
    return np.array(shapely.segmentize(shapely.LineString(line), 2.0).coords)


def _band(line: list[Point]) -> NDArray[np.float64]:
    area = shapely.LineString(line).buffer(WIDTH / 2, cap_style="flat", join_style="mitre")
    return np.array(area.exterior.coords)[:-1]


def _hull(lines: Any) -> NDArray[np.float64]:
    whole = shapely.convex_hull(shapely.MultiPolygon([shapely.Polygon(_band(line)) for line in lines]))
    return np.array(whole.exterior.coords)[:-1]
