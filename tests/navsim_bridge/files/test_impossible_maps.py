"""Maps that cannot be right are refused with one line that names layer and object; odd ones are counted and said."""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import shapely
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from dpvla.files import FileError
from navsim_bridge.files import maps
from navsim_bridge.files.maps import MapError, VectorMap, map_path, open_map, share_maps, use_shared_maps
from navsim_bridge.metric_cache import build_metric_cache
from navsim_bridge.splits.scene_filter import SceneFilter, Split
from tests.navsim_bridge.conftest import LOCATION, VERSION, World

Points = NDArray[np.float64]
HEADER = 40
"""Bytes of a GeoPackage's shape before its WKB: two, version, flags, system and an envelope."""


@pytest.fixture
def path(world: World, tmp_path: Path) -> Path:
    """A copy of the map, which may be changed."""
    copy = tmp_path / LOCATION / VERSION / "map.gpkg"
    copy.parent.mkdir(parents=True)
    shutil.copy(world.maps / LOCATION / VERSION / "map.gpkg", copy)
    shutil.copy(world.maps / maps.MAP_INDEX, tmp_path)
    return copy


def change(path: Path, statement: str, *values: object) -> None:
    with closing(sqlite3.connect(path)) as connection:
        for (trigger,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
            connection.execute(f'DROP TRIGGER "{trigger}"')  # they call functions that only GDAL has
        assert connection.execute(statement, values).rowcount > 0
        connection.commit()


def reshape(path: Path, layer: str, place: int, points: Callable[[Points], Points]) -> int:
    """Give an object of ``layer`` what ``points`` makes of its own (point, 2) [degrees]; its id."""
    with closing(sqlite3.connect(path)) as connection:
        fid, blob = connection.execute(f"SELECT fid, geom FROM {layer} ORDER BY fid LIMIT 1 OFFSET {place}").fetchone()
    shape = shapely.from_wkb(blob[HEADER:])
    kind = shapely.Polygon if shape.geom_type == "Polygon" else shapely.LineString
    change(
        path,
        f"UPDATE {layer} SET geom = ? WHERE fid = ?",
        blob[:HEADER] + shapely.to_wkb(kind(points(shapely.get_coordinates(shape)))),
        fid,
    )
    return int(fid)


def first(path: Path, layer: str) -> int:
    with closing(sqlite3.connect(path)) as connection:
        return int(connection.execute(f"SELECT min(fid) FROM {layer}").fetchone()[0])


@pytest.mark.parametrize(("layer", "column", "value"), [
    ("lanes_polygons", "lane_group_fid", "text"), ("lanes_polygons", "lane_index", b"\x01\x02"),
    ("lanes_polygons", "speed_limit_mps", "fast"), ("lane_connectors", "exit_lane_fid", "7x"),
    ("lane_connectors", "lane_group_connector_fid", "text"), ("lane_group_connectors", "to_lane_group_fid", "7,8"),
    ("baseline_paths", "lane_fid", "text"), ("lanes_polygons", "lane_group_fid", 1.5),
    ("lanes_polygons", "speed_limit_mps", -5.0), ("lane_connectors", "entry_lane_fid", 1e300),
    ("gen_lane_connectors_scaled_width_polygons", "lane_connector_fid", "text"),
])  # fmt: skip
def test_text_in_a_column_of_numbers_is_named(path: Path, layer: str, column: str, value: object) -> None:
    fid = first(path, layer)
    change(path, f"UPDATE {layer} SET {column} = ? WHERE fid = {fid}", value)
    with pytest.raises(
        MapError, match=rf"map.gpkg: layer {layer}: object {fid}: {column} is .*, not a (whole number|speed)"
    ):
        VectorMap(path, LOCATION)


def nan(points: Points) -> Points:
    points[1, 1] = np.nan
    return points


def null_island(points: Points) -> Points:
    points[1] = 0
    return points


def off_the_earth(points: Points) -> Points:
    points[1] = 400.0, 95.0
    return points


@pytest.mark.parametrize("layer", ["lanes_polygons", "intersections", "baseline_paths"])
@pytest.mark.parametrize(
    ("points", "message"),
    [(nan, "no place on the earth"), (null_island, "km from the middle of the map"), (off_the_earth, "a vertex is")],
)
def test_a_vertex_that_cannot_be_is_refused_with_layer_and_object(
    path: Path, layer: str, points: Callable[[Points], Points], message: str
) -> None:
    fid = reshape(path, layer, 1, points)
    with pytest.raises(MapError, match=f"map.gpkg: layer {layer}: object {fid}: .*{message}"):
        VectorMap(path, LOCATION)


@pytest.mark.parametrize("layer", ["lanes_polygons", "lane_groups_polygons", "baseline_paths"])
def test_an_empty_layer_of_roads_is_refused(path: Path, layer: str) -> None:
    change(path, f"DELETE FROM {layer}")
    with pytest.raises(MapError, match=f"layer {layer} is empty; get nuPlan's map again"):
        VectorMap(path, LOCATION)


@pytest.mark.parametrize(("statement", "message"), [
    ("UPDATE meta SET value = 'epsg:4326' WHERE key LIKE 'proj%'", "'epsg:4326' is no coordinate system in meters"),
    ("UPDATE meta SET value = 'epsg:2263' WHERE key LIKE 'proj%'", "'epsg:2263' is no coordinate system in meters"),
    ("UPDATE meta SET value = NULL WHERE key LIKE 'proj%'", "unknown coordinate system in layer meta: None"),
    ("UPDATE gpkg_geometry_columns SET srs_id = -1 WHERE table_name = 'intersections'", "layer intersections"),
])  # fmt: skip
def test_a_system_that_does_not_fit_is_refused(path: Path, statement: str, message: str) -> None:
    change(path, statement)
    with pytest.raises(MapError, match=message):
        VectorMap(path, LOCATION)


def test_what_is_no_whole_geopackage_is_refused_at_once(path: Path) -> None:
    whole = path.read_bytes()
    for content, message in (
        (b"", "no SQLite file, 0 bytes"),
        (whole[:50], "no SQLite file"),
        (b"PK" + whole[2:], "no SQLite file"),
        (whole[: len(whole) // 2], "is cut off: "),
        (whole[:5000] + bytes(3000) + whole[8000:], "is damaged|no layer|cannot be read"),
    ):
        path.write_bytes(content)
        with pytest.raises(MapError, match=rf"map\.gpkg:? .*({message})"):
            VectorMap(path, LOCATION)
    path.write_bytes(whole)
    left = path.with_name("map.gpkg-wal")
    left.write_bytes(b"changes")
    with pytest.raises(MapError, match=r"map\.gpkg-wal beside it holds changes"):
        VectorMap(path, LOCATION)
    left.unlink()
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(FileError, match=r"map\.gpkg is a FIFO"):
        VectorMap(path, LOCATION)
    path.unlink()
    path.mkdir()
    with pytest.raises(FileError, match=r"map\.gpkg is a folder"):
        VectorMap(path, LOCATION)


def refusal(path: Path) -> str:
    """What reading says; nothing where all is well."""
    try:
        found = VectorMap(path, LOCATION)
    except ValueError as error:
        return str(error)
    assert len(found.lanes) > 0 and all(np.isfinite(found.layer(layer)["xy"]).all() for layer in maps.LAYERS)
    return ""


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damage_anywhere_is_refused_in_words_or_does_no_harm(path: Path, world: World, data: st.DataObject) -> None:
    whole = (world.maps / LOCATION / VERSION / "map.gpkg").read_bytes()
    at = data.draw(st.integers(0, len(whole) - 1))
    path.write_bytes(whole[:at] + data.draw(st.binary(min_size=1, max_size=64)) + whole[at + 64 :])
    said = refusal(path)
    assert not said or ("map.gpkg" in said and "\n" not in said)


@pytest.mark.parametrize(("content", "message"), [
    ("", "not valid JSON"), ("[]", "must hold a JSON object"), ("{}", "expected a version for us-nv-las-vegas-strip"),
    ('{"us-nv-las-vegas-strip": "9"}', "expected a version"),
    ('{"us-nv-las-vegas-strip": {"version": 9}}', "expected a version"),
    ('{"us-nv-las-vegas-strip": {"version": null}}', "expected a version"),
    ('{"us-nv-las-vegas-strip": {"version": "../../x"}}', "leads out of its folder"),
    ('{"us-nv-las-vegas-strip": {"version": "/etc"}}', "no map .*|leads out"),
])  # fmt: skip
def test_an_index_of_another_kind_is_refused(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / maps.MAP_INDEX).write_text(content)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        map_path(tmp_path, LOCATION)


def test_lanes_of_an_unknown_roadblock_are_said_and_scenes_near_them_counted(
    path: Path, world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    x, y, _ = world.records[0].pose
    whole = open_map(world.maps, LOCATION)
    lane = next(p.token for p in whole.near("LANE", x, y, 50.0) if p.token not in world.records[0].route)
    change(path, f"UPDATE lanes_polygons SET lane_group_fid = 4242424 WHERE fid = {lane}")
    changed = VectorMap(path, LOCATION)
    assert f"1 lanes are of roadblocks that the map does not have, first {lane};" in capsys.readouterr().err
    assert changed.odd_around((), x, y, 100.0) == ("stray_lanes",)
    assert changed.odd_around((), x + 5000, y, 100.0) == () == whole.odd_around((), x, y, 100.0)


def bow(points: Points) -> Points:
    (west, south), (east, north) = points.min(axis=0), points.max(axis=0)
    return np.array([[west, south], [east, north], [east, south], [west, north]])


def test_polygons_that_cross_themselves_are_said_and_scenes_near_them_counted(
    path: Path, world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    x, y, _ = world.records[0].pose
    whole = open_map(world.maps, LOCATION)
    tokens = [p.token for p in whole.polygons["INTERSECTION"]]  # by id
    place = tokens.index(whole.near("INTERSECTION", x, y, 60.0)[0].token)
    fid = reshape(path, "intersections", place, bow)
    two = Split("two", "mini", SceneFilter(frame_interval=4, max_scenes=2))
    cache = build_metric_cache(world.root, tmp_path, two, tmp_path / "cache", progress=False)
    said = capsys.readouterr().err
    assert f"1 polygons of layer INTERSECTION cross themselves, first {fid};" in said
    assert cache.index["odd"] == {"crossing_polygons": 2}
    assert "2 of 2 scenes have map polygons that cross themselves" in said
    assert {p.token for p in VectorMap(path, LOCATION).polygons["INTERSECTION"] if p.crosses} == {str(fid)}


def test_a_lane_and_a_connector_of_one_id_are_refused_where_they_are_used(path: Path) -> None:
    lane = first(path, "lanes_polygons")
    change(path, f"UPDATE lane_connectors SET fid = {lane} WHERE fid = {first(path, 'lane_connectors')}")
    changed = VectorMap(path, LOCATION)
    with pytest.raises(MapError, match=f"lane {lane} and a connector have the same id"):
        changed.lanes[str(lane)]


@pytest.fixture
def shared(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """What `share_maps` has written."""
    folder = tmp_path / "shared"
    share_maps(tmp_path, [LOCATION], folder)
    monkeypatch.setattr(maps, "_SHARED", {})
    use_shared_maps(tmp_path, folder)
    maps._kept_map.cache_clear()
    yield folder / LOCATION
    maps._kept_map.cache_clear()


def test_shared_files_that_are_damaged_or_of_another_map_are_refused(shared: Path, path: Path, tmp_path: Path) -> None:
    open_map(tmp_path, LOCATION)
    for name in ("graph/lane.id.npy", "LANE/xy.npy"):
        whole = (shared / name).read_bytes()
        for content in (whole[:-1], whole[:-8] + bytes(8), b""):
            maps._kept_map.cache_clear()
            (shared / name).write_bytes(content)
            with pytest.raises(FileError, match=f"{name} is damaged"):
                open_map(tmp_path, LOCATION)
        (shared / name).write_bytes(whole)
    maps._kept_map.cache_clear()
    os.utime(path, ns=(0, 0))
    with pytest.raises(MapError, match=r"was not made from .*map\.gpkg as it is now"):
        open_map(tmp_path, LOCATION)
    (shared / "manifest.json").unlink()
    with pytest.raises(MapError, match="was not written to its end"):
        open_map(tmp_path, LOCATION)


@pytest.mark.parametrize(("table", "column"), [
    ("lanes_polygons", "lane_group_fid"), ("lane_connectors", "exit_lane_fid"),
    ("lane_group_connectors", "to_lane_group_fid"),
])  # fmt: skip
def test_references_that_all_lead_nowhere_are_refused_and_one_is_said(
    path: Path, capsys: pytest.CaptureFixture[str], table: str, column: str
) -> None:
    fid = first(path, table)
    change(path, f"UPDATE {table} SET {column} = 987654321 WHERE fid = {fid}")
    VectorMap(path, LOCATION)
    assert f"layer {table}: 1 of " in (said := capsys.readouterr().err) and f"first object {fid}: {column} is" in said
    change(path, f"UPDATE {table} SET {column} = 987654321")
    with pytest.raises(MapError, match=f"layer {table}: object {fid}: {column} is 987654321, which the map does not"):
        VectorMap(path, LOCATION)


@pytest.mark.parametrize("layer", ["lanes_polygons", "baseline_paths"])
def test_shapes_without_extent_are_refused(path: Path, layer: str) -> None:
    fid = reshape(path, layer, 0, lambda points: points * 0 + points[0])
    with pytest.raises(MapError, match=f"layer {layer}: object {fid}.* (without area|no line of any length)"):
        VectorMap(path, LOCATION)


def test_a_view_in_the_place_of_a_layer_is_refused(path: Path) -> None:
    change(path, "UPDATE meta SET value = value")  # drops the triggers
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("ALTER TABLE intersections RENAME TO kept")
        connection.execute("CREATE VIEW intersections AS WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 "
                           "FROM n) SELECT i AS fid, geom FROM n, kept")  # fmt: skip
        connection.commit()
    with pytest.raises(MapError, match="layer intersections is a view, not a table"):
        VectorMap(path, LOCATION)
