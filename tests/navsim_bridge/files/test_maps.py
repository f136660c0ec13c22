from __future__ import annotations

import shutil
import sqlite3
from pathlib import Path
from typing import Any

import numpy as np
import pyogrio
import pytest
import shapely

from navsim_bridge.files import maps
from navsim_bridge.files.map_tables import POLYGON_TABLES, MapFile, grid_arrays, rows_near
from navsim_bridge.files.maps import LAYERS, MapError, VectorMap, flatten, open_map, share_maps
from tests.navsim_bridge.conftest import LOCATION, VERSION, World


@pytest.fixture(scope="module")
def vector_map(world: World) -> VectorMap:
    return open_map(world.maps, LOCATION)


def test_a_map_is_read_once_per_process(world: World, vector_map: VectorMap) -> None:
    assert open_map(world.maps, LOCATION) is vector_map


def test_lanes_follow_each_other_and_touch(vector_map: VectorMap) -> None:
    for lane in vector_map.lanes.values():
        for i in lane.outgoing:
            assert lane.id in vector_map.lanes[i].incoming
            gap = vector_map.lanes[i].baseline[0, :2] - lane.baseline[-1, :2]
            assert np.linalg.norm(gap) < 0.5
    assert {lane.is_connector for lane in vector_map.lanes.values()} == {False, True}


def test_every_lane_lies_in_its_roadblock(vector_map: VectorMap) -> None:
    for block in vector_map.blocks.values():
        assert all(vector_map.lanes[i].block == block.id for i in block.lanes)
        for i in block.outgoing:
            assert block.id in vector_map.blocks[i].incoming


def test_base_lines_have_headings_towards_the_next_point(vector_map: VectorMap) -> None:
    line = next(iter(vector_map.lanes.values())).baseline
    step = line[1, :2] - line[0, :2]
    assert line[0, 2] == pytest.approx(np.arctan2(step[1], step[0]))
    assert line[-1, 2] == line[-2, 2]


def test_near_takes_a_square_not_a_disc(vector_map: VectorMap) -> None:
    block = vector_map.polygons["ROADBLOCK"][0]
    right, top = block.vertices.max(axis=0)
    corner = vector_map.near("ROADBLOCK", right + 9.9, top + 9.9, 10.0)
    x, y = right + 9.9, top + 9.9
    shape = vector_map.shapes("ROADBLOCK")[0]
    assert (block in corner) == shapely.box(x - 10, y - 10, x + 10, y + 10).intersects(shape)
    for radius in (30.0, 100.0):
        square = shapely.box(x - radius, y - radius, x + radius, y + radius)
        expected = [p for p, s in zip(vector_map.polygons["ROADBLOCK"], vector_map.shapes("ROADBLOCK"))
                    if s.intersects(square)]  # fmt: skip
        assert vector_map.near("ROADBLOCK", x, y, radius) == expected


def test_connectors_bring_their_lanes_but_not_their_own_polygon(vector_map: VectorMap, world: World) -> None:
    x, y, _ = world.records[0].pose
    layers = [p.layer for p in vector_map.drivable(x, y, 100.0)]
    assert "ROADBLOCK_CONNECTOR" not in layers
    assert {"ROADBLOCK", "LANE", "LANE_CONNECTOR", "INTERSECTION"} <= set(layers)


def test_flattened_polygons_can_be_taken_apart_again(vector_map: VectorMap, world: World) -> None:
    x, y, _ = world.records[0].pose
    polygons = vector_map.drivable(x, y, 100.0)
    rings, sizes, vertices = flatten(polygons)
    for i, polygon in enumerate(polygons):
        part = vertices[sizes[rings[i]] : sizes[rings[i + 1]]]
        np.testing.assert_array_equal(part, polygon.vertices)


def test_missing_files_layers_and_columns_are_named(tmp_path: Path, world: World) -> None:
    with pytest.raises(MapError, match="expected a version for sg-one-north"):
        open_map(world.maps, "sg-one-north")
    with pytest.raises(FileNotFoundError, match="no map index"):
        open_map(tmp_path, LOCATION)
    with pytest.raises(FileNotFoundError, match="no map"):
        VectorMap(tmp_path / "map.gpkg", LOCATION)
    path = tmp_path / "map.gpkg"
    path.write_bytes(b"not a map")
    with pytest.raises(MapError, match="not a readable GeoPackage"):
        VectorMap(path, LOCATION)
    source = world.maps / LOCATION / VERSION / "map.gpkg"
    meta, _, _, values = pyogrio.raw.read(source, layer="meta", read_geometry=False)
    path.unlink()
    pyogrio.raw.write(path, None, values, meta["fields"], layer="meta", driver="GPKG", geometry_type=None)
    with pytest.raises(MapError, match="no layer lanes_polygons; it has meta"):
        VectorMap(path, LOCATION)
    shutil.copy(source, path)
    _drop_column(path, "lanes_polygons", "lane_group_fid")
    with pytest.raises(MapError, match="layer lanes_polygons has no column lane_group_fid"):
        VectorMap(path, LOCATION)


def test_layers_that_are_not_read_at_once_are_read_when_asked_for(vector_map: VectorMap) -> None:
    assert len(vector_map.polygons["CROSSWALK"]) == len(MapFile(vector_map.path).table("crosswalks").fids) > 0
    assert set(vector_map.polygons) == set(LAYERS)
    x, y = vector_map.polygons["CROSSWALK"][0].vertices[0]
    assert vector_map.at("CROSSWALK", x, y)[0] is vector_map.polygons["CROSSWALK"][0]
    for layer in POLYGON_TABLES:
        assert all(p.layer == layer and len(p.vertices) >= 3 for p in vector_map.polygons[layer])
    with pytest.raises(KeyError):
        vector_map.near("BUS_STOP", x, y, 10.0)


def test_lanes_are_numbered_from_the_left_and_know_their_speed_limit(vector_map: VectorMap) -> None:
    blocks = [block for block in vector_map.blocks.values() if not block.is_connector]
    for block in blocks:
        assert {vector_map.lanes[i].index for i in block.lanes} == set(range(len(block.lanes)))
    wide = next(block for block in blocks if len(block.lanes) > 1)
    of_index = {vector_map.lanes[i].index: vector_map.lanes[i] for i in wide.lanes}
    first, second = of_index[0], of_index[1]
    x, y, heading = first.baseline[0]
    across = (second.baseline[0, 1] - y) * np.cos(heading) - (second.baseline[0, 0] - x) * np.sin(heading)
    assert across < -2  # to the right
    assert all(5 < lane.speed_limit < 40 for lane in vector_map.lanes.values())
    assert all(lane.index is None for lane in vector_map.lanes.values() if lane.is_connector)


def test_connectors_name_their_intersection_and_lie_in_it(vector_map: VectorMap) -> None:
    outlines = dict(zip((p.token for p in vector_map.polygons["INTERSECTION"]), vector_map.shapes("INTERSECTION")))
    for block in vector_map.blocks.values():
        assert (block.intersection is not None) == block.is_connector
        for i in block.lanes if block.is_connector else ():
            middle = vector_map.lanes[i].baseline[len(vector_map.lanes[i].baseline) // 2]
            assert outlines[str(block.intersection)].covers(shapely.Point(middle[:2]))


def test_objects_are_found_by_their_exact_id_only(vector_map: VectorMap) -> None:
    token = next(iter(vector_map.lanes))
    assert token in vector_map.lanes
    assert vector_map.lanes[token] is vector_map.lanes[token]
    foreign: tuple[Any, ...] = (f"0{token}", f"-{token}", "lane", "", "9" * 18, int(token))
    for key in foreign:
        assert key not in vector_map.lanes
        with pytest.raises(KeyError):
            vector_map.lanes[key]


def test_empty_references_lead_nowhere(world: World, tmp_path: Path, vector_map: VectorMap) -> None:
    link = next(lane for lane in vector_map.lanes.values() if lane.is_connector)
    emptied = ("exit_lane_fid", "lane_group_connector_fid", "speed_limit_mps")
    values = ", ".join(f"{column} = NULL" for column in emptied)
    path = _edited(world, tmp_path, f"UPDATE lane_connectors SET {values} WHERE fid = {link.id}")
    changed = VectorMap(path, LOCATION)
    lane = changed.lanes[link.id]
    assert (lane.incoming, lane.block, np.isnan(lane.speed_limit)) == ((), "", True)
    assert lane.outgoing == link.outgoing
    assert link.id not in changed.lanes[link.incoming[0]].outgoing
    assert link.id not in changed.blocks[link.block].lanes


def test_a_lane_without_line_or_polygon_is_named_when_it_is_needed(
    world: World, tmp_path: Path, vector_map: VectorMap
) -> None:
    link = next(lane for lane in vector_map.lanes.values() if lane.is_connector)
    path = _edited(world, tmp_path, f"DELETE FROM baseline_paths WHERE lane_connector_fid = {link.id}")
    with pytest.raises(MapError, match=f"baseline_paths has no line for lane {link.id}"):
        VectorMap(path, LOCATION).lanes[link.id]
    path = _edited(
        world, tmp_path, f"DELETE FROM gen_lane_connectors_scaled_width_polygons WHERE lane_connector_fid = {link.id}"
    )
    changed = VectorMap(path, LOCATION)
    x, y, _ = link.baseline[0]
    with pytest.raises(MapError, match=f"lane {link.id} has no polygon in layer LANE_CONNECTOR"):
        changed.drivable(x, y, 100.0)


def test_the_coordinate_system_comes_from_the_file(world: World, tmp_path: Path, vector_map: VectorMap) -> None:
    other = VectorMap(_edited(world, tmp_path, "UPDATE meta SET value = 'epsg:32612' WHERE key LIKE 'proj%'"), LOCATION)
    moved = other.polygons["LANE"][0].vertices - vector_map.polygons["LANE"][0].vertices
    assert (np.abs(moved[:, 0]) > 100_000).all()
    with pytest.raises(MapError, match="unknown coordinate system in layer meta"):
        VectorMap(_edited(world, tmp_path, "UPDATE meta SET value = 'mars' WHERE key LIKE 'proj%'"), LOCATION)
    with pytest.raises(MapError, match="layer meta names no 'projectedCoordSystem'"):
        VectorMap(_edited(world, tmp_path, "DELETE FROM meta"), LOCATION)


def test_the_index_finds_what_looking_at_every_box_finds() -> None:
    rng = np.random.default_rng(0)
    corner = rng.uniform(-2000, 2000, (300, 2))
    bounds = np.hstack([corner, corner + rng.exponential(150, (300, 2))])
    arrays = {"bounds": bounds, **grid_arrays(bounds)}
    found = 0
    for _ in range(200):
        low = rng.uniform(-2500, 2500, 2)
        box = (*low, *(low + rng.exponential(200, 2)))
        expected = np.flatnonzero((bounds[:, :2] <= box[2:]).all(axis=1) & (bounds[:, 2:] >= box[:2]).all(axis=1))
        np.testing.assert_array_equal(rows_near(arrays, box), expected)
        found += len(expected)
    assert found > 200
    nothing = np.zeros((0, 4))
    assert len(rows_near({"bounds": nothing, **grid_arrays(nothing)}, (0, 0, 1, 1))) == 0


def test_a_shared_map_is_the_map(
    world: World, tmp_path: Path, vector_map: VectorMap, monkeypatch: pytest.MonkeyPatch
) -> None:
    share_maps(world.maps, [LOCATION], tmp_path)
    monkeypatch.setattr(maps, "_SHARED", {})
    maps.use_shared_maps(world.maps, tmp_path)
    maps._kept_map.cache_clear()
    with monkeypatch.context() as patched:
        patched.setattr(maps, "MapFile", None)  # nothing reads the GeoPackage
        shared = open_map(world.maps, LOCATION)
    maps._kept_map.cache_clear()
    x, y, _ = world.records[0].pose
    for area, same in zip(shared.drivable(x, y, 100.0), vector_map.drivable(x, y, 100.0)):
        assert (area.token, area.layer, area.ring_sizes) == (same.token, same.layer, same.ring_sizes)
        np.testing.assert_array_equal(area.vertices, same.vertices)
    assert list(shared.blocks.items()) == list(vector_map.blocks.items())
    for mine, theirs in zip(shared.lanes.values(), vector_map.lanes.values()):
        assert (mine.id, mine.incoming) == (theirs.id, theirs.incoming)
        np.testing.assert_array_equal(mine.baseline, theirs.baseline)
    assert len(shared.polygons["CROSSWALK"]) == len(vector_map.polygons["CROSSWALK"])  # from the GeoPackage


def _edited(world: World, folder: Path, statement: str) -> Path:
    path = folder / "edited.gpkg"
    shutil.copy(world.maps / LOCATION / VERSION / "map.gpkg", path)
    connection = sqlite3.connect(path)
    for (trigger,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
        connection.execute(f'DROP TRIGGER "{trigger}"')  # they call functions that only GDAL has
    assert connection.execute(statement).rowcount > 0
    connection.commit()
    connection.close()
    return path


def _drop_column(path: Path, layer: str, column: str) -> None:
    meta, _, geometry, values = pyogrio.raw.read(path, layer=layer)
    keep = [i for i, name in enumerate(meta["fields"]) if name != column]
    pyogrio.raw.write(path, geometry, [values[i] for i in keep], meta["fields"][keep], layer=layer, driver="GPKG",
                      geometry_type="Polygon", crs=meta["crs"], append=False)  # fmt: skip
