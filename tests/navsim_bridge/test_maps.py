import shutil

import numpy as np
import pyogrio
import pytest
import shapely

from navsim_bridge.maps import MapError, VectorMap, flatten, open_map
from tests.navsim_bridge.conftest import LOCATION, VERSION


@pytest.fixture(scope="module")
def vector_map(world):
    return open_map(world.maps, LOCATION)


def test_a_map_is_read_once_per_process(world, vector_map):
    assert open_map(world.maps, LOCATION) is vector_map


def test_lanes_follow_each_other_and_touch(vector_map):
    for lane in vector_map.lanes.values():
        for i in lane.outgoing:
            assert lane.id in vector_map.lanes[i].incoming
            gap = vector_map.lanes[i].baseline[0, :2] - lane.baseline[-1, :2]
            assert np.linalg.norm(gap) < 0.5
    assert {lane.is_connector for lane in vector_map.lanes.values()} == {False, True}


def test_every_lane_lies_in_its_roadblock(vector_map):
    for block in vector_map.blocks.values():
        assert all(vector_map.lanes[i].block == block.id for i in block.lanes)
        for i in block.outgoing:
            assert block.id in vector_map.blocks[i].incoming


def test_base_lines_have_headings_towards_the_next_point(vector_map):
    line = next(iter(vector_map.lanes.values())).baseline
    step = line[1, :2] - line[0, :2]
    assert line[0, 2] == pytest.approx(np.arctan2(step[1], step[0]))
    assert line[-1, 2] == line[-2, 2]


def test_near_takes_a_square_not_a_disc(vector_map):
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


def test_connectors_bring_their_lanes_but_not_their_own_polygon(vector_map, world):
    x, y, _ = world.records[0].pose
    layers = [p.layer for p in vector_map.drivable(x, y, 100.0)]
    assert "ROADBLOCK_CONNECTOR" not in layers
    assert {"ROADBLOCK", "LANE", "LANE_CONNECTOR", "INTERSECTION"} <= set(layers)


def test_flattened_polygons_can_be_taken_apart_again(vector_map, world):
    x, y, _ = world.records[0].pose
    polygons = vector_map.drivable(x, y, 100.0)
    rings, sizes, vertices = flatten(polygons)
    for i, polygon in enumerate(polygons):
        part = vertices[sizes[rings[i]] : sizes[rings[i + 1]]]
        np.testing.assert_array_equal(part, polygon.vertices)


def test_missing_files_layers_and_columns_are_named(tmp_path, world):
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
    with pytest.raises(MapError, match="no layer lane_groups_polygons; it has meta"):
        VectorMap(path, LOCATION)
    shutil.copy(source, path)
    _drop_column(path, "lanes_polygons", "lane_group_fid")
    with pytest.raises(MapError, match="layer lanes_polygons has no column lane_group_fid"):
        VectorMap(path, LOCATION)


def _drop_column(path, layer, column):
    meta, _, geometry, values = pyogrio.raw.read(path, layer=layer)
    keep = [i for i, name in enumerate(meta["fields"]) if name != column]
    pyogrio.raw.write(path, geometry, [values[i] for i in keep], meta["fields"][keep], layer=layer, driver="GPKG",
                      geometry_type="Polygon", crs=meta["crs"], append=False)  # fmt: skip
