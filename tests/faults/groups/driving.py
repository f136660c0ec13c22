"""What is read of a drive: logs, maps, images, splits, lists of tokens, the demo world."""

from __future__ import annotations

import io
import json
import pickle
import random
import sqlite3
import struct
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

from tests.faults.case import Call, Case, a_file, at, only
from tests.faults.mutants import files, pickles, texts
from tests.faults.sample import ROOTS, WORLD

LOG = "2021.06.24.08.00.05_veh-35_00100_00111"
LOG_FILE = f"world/navsim_logs/test/{LOG}.pkl"
OTHER_LOG = Path("world/navsim_logs/trainval/2021.06.08.08.00.05_veh-35_00100_00111.pkl")
LOCATION = "us-ma-boston"
MAP_FILE = f"world/maps/{LOCATION}/9.12.1817/map.gpkg"
IMAGE_FOLDER = f"world/sensor_blobs/test/{LOG}/CAM_F0"
DRIVE = ("world/navsim_logs/test", "world/maps/nuplan-maps-v1.0.json", f"world/maps/{LOCATION}", "world/splits")
CACHE = Call(
    "cache_metrics",
    (*ROOTS, "--split", "navtest_all", "--workers", "1", "--out", "out"),
    DRIVE,
    ("out/*.scenes",),
    ("out", "out/**/*"),
)
HUMAN = Call(
    "evaluate",
    (*ROOTS, "--split", "navtest_all", "--agent", "human", "--out", "out"),
    DRIVE,
    ("out/scores.csv",),
    ("out", "out/**/*"),
)
PACK = Call(
    "pack_images",
    ("--data-root", "world", "--split", "navtest_all", "--size", "48x24", "--workers", "1", "--out", "out"),
    ("world/navsim_logs/test", "world/sensor_blobs/test", "world/splits"),
    ("out/*.npy",),
    ("out", "out/**/*"),
)


def log(samples: Path) -> Iterator[Case]:
    """Logs: no checksum, so that a changed number is another number; what is tried cannot be right."""
    read = (samples / LOG_FILE).read_bytes()
    frames = pickle.loads(read)

    def case(name: str, words: tuple[str, ...], content: bytes | Callable[[], bytes], call: Call = CACHE) -> Case:
        change = pickles.written(content)
        return Case("log", name, call, lambda place: change(place / LOG_FILE), (LOG, *words))

    for name, change in files.befallen(1, 0):
        yield Case("log", name, CACHE, at(LOG_FILE, change), (LOG, "navsim_logs/test"))
    for name, value in pickles.values():
        yield case(f"is_{name}", (), pickles.whole(value))
        token = frames[5]["token"]
        yield case(f"holds_{name}", ("token",), partial(pickles.in_place_of, read, token, value))
    draw = random.Random(2)
    for keys in (
        *texts.paths_of(frames[5], 1),
        *((("anns", key)) for key in frames[5]["anns"]),
        *(("cams", "CAM_F0", key) for key in frames[5]["cams"]["CAM_F0"]),
    ):
        name = "_".join(map(str, keys))
        call = PACK if keys[0] == "cams" else HUMAN if keys[0] in ("driving_command", "ego_dynamic_state") else CACHE
        yield case(f"no_{name}", (str(keys[-1]),), partial(_changed, frames, keys, None, drop=True), call)
        for word, value in draw.sample(pickles.WRONG_NUMBERS, 6):
            if not isinstance(value, str) or not isinstance(_at(frames[5], keys), str):
                yield case(f"{name}_{word}", (str(keys[-1]),), partial(_changed, frames, keys, value), call)
    for name, words, change_frames in _wrong_drives():
        yield case(name, words, partial(_driven, read, change_frames))
    for name, content in (
        ("nothing", None),
        ("number", 7),
        ("text", "frames"),
        ("mapping", {"frames": frames}),
        ("list_of_lists", [[frame] for frame in frames]),
        ("empty", []),
        ("of_numbers", [1, 2, 3]),
    ):
        yield case(f"is_{name}", (), pickles.plain(content))
    for name, path in (
        ("outside", "../../../../../../etc/passwd"),
        ("absolute", "/etc/passwd"),
        ("nul", "a\0b"),
        ("long", "x/" * 3000),
    ):
        yield case(
            f"image_{name}",
            ("CAM_F0", "data_path"),
            partial(_changed, frames, ("cams", "CAM_F0", "data_path"), path),
            PACK,
        )
        yield case(f"location_{name}", ("map_location",), partial(_changed_all, frames, "map_location", path))
        yield case(f"log_name_{name}", ("log_name",), partial(_changed_all, frames, "log_name", path))


def _at(frame: Any, keys: tuple[Any, ...]) -> Any:
    for key in keys:
        frame = frame[key]
    return frame


def _changed(frames: list[dict[str, Any]], keys: tuple[Any, ...], value: Any, drop: bool = False) -> bytes:
    """All frames from 3 on, so that no scene is without, with another value."""
    frames = pickle.loads(pickle.dumps(frames))
    for frame in frames[3:]:
        holder = _at(frame, keys[:-1])
        if drop:
            holder.pop(keys[-1])
        else:
            holder[keys[-1]] = value
    return pickles.plain(frames)


def _changed_all(frames: list[dict[str, Any]], key: str, value: Any) -> bytes:
    return pickles.plain([{**frame, key: value} for frame in frames])


Frames = list[dict[str, Any]]


def _driven(read: bytes, change: Callable[[Frames], Frames]) -> bytes:
    return pickles.plain(change(pickle.loads(read)))


def _wrong_drives() -> Iterator[tuple[str, tuple[str, ...], Callable[[Frames], Frames]]]:
    """Drives that cannot have been driven so."""

    def every(key: str, change: Callable[[int, Any], Any]) -> Callable[[Frames], Frames]:
        return lambda frames: [{**frame, key: change(i, frame[key])} for i, frame in enumerate(frames)]

    def annotated(change: Callable[[dict[str, Any]], None]) -> Callable[[Frames], Frames]:
        def apply(frames: Frames) -> Frames:
            for frame in frames:
                change(frame["anns"])
            return frames

        return apply

    def row_set(index: int, row: Any) -> Callable[[str], Callable[[dict[str, Any]], None]]:
        def of(key: str) -> Callable[[dict[str, Any]], None]:
            return lambda anns: anns[key].__setitem__(index, row)

        return of

    yield "frame_dropped", ("timestamp", "frame"), lambda frames: frames[:6] + frames[7:]
    yield "frame_twice", ("timestamp", "frame", "token"), lambda frames: frames[:7] + frames[6:]
    yield "frames_reversed", ("timestamp",), lambda frames: frames[::-1]
    yield "frames_swapped", ("timestamp",), lambda frames: [*frames[:5], frames[6], frames[5], *frames[7:]]
    yield "time_gap", ("timestamp",), every("timestamp", lambda i, t: t + (i > 8) * 11 * 86400 * 10**6)
    yield "time_small_gap", ("timestamp",), every("timestamp", lambda i, t: t + (i > 8) * 10**6)
    yield "time_zero", ("timestamp",), every("timestamp", lambda i, t: 0)
    yield "time_negative", ("timestamp",), every("timestamp", lambda i, t: -t)
    yield "time_in_seconds", ("timestamp",), every("timestamp", lambda i, t: t // 10**6)
    yield "time_huge", ("timestamp",), every("timestamp", lambda i, t: t + 2**70)
    yield "time_float", ("timestamp",), every("timestamp", lambda i, t: t + 0.5)
    yield (
        "ego_jumps",
        ("ego2global_translation", "m/s"),
        every("ego2global_translation", lambda i, p: p + np.array([200.0, 0, 0]) * (i > 8)),
    )
    yield (
        "ego_at_300_m_s",
        ("ego2global_translation", "ego_dynamic_state", "m/s"),
        every("ego2global_translation", lambda i, p: p + np.array([150.0, 0, 0]) * i),
    )
    yield "ego_state_300_m_s", ("ego_dynamic_state", "m/s"), every("ego_dynamic_state", lambda i, s: [300.0, *s[1:]])
    yield "ego_state_nan", ("ego_dynamic_state",), every("ego_dynamic_state", lambda i, s: [float("nan"), *s[1:]])
    yield "ego_state_short", ("ego_dynamic_state",), every("ego_dynamic_state", lambda i, s: s[:3])
    yield "rotation_zero", ("ego2global_rotation",), every("ego2global_rotation", lambda i, q: q * 0)
    yield "rotation_long", ("ego2global_rotation",), every("ego2global_rotation", lambda i, q: q * 7)
    yield "rotation_nan", ("ego2global_rotation",), every("ego2global_rotation", lambda i, q: q * np.nan)
    yield "command_two", ("driving_command",), every("driving_command", lambda i, c: np.array([1, 1, 0, 0]))
    yield "command_five", ("driving_command",), every("driving_command", lambda i, c: np.array([1, 0, 0, 0, 0]))
    yield "command_negative", ("driving_command",), every("driving_command", lambda i, c: np.array([0, -1, 0, 0]))
    yield "roadblock_unknown", ("roadblock",), every("roadblock_ids", lambda i, r: ["999999999"])
    yield "roadblock_numbers", ("roadblock",), every("roadblock_ids", lambda i, r: [1.5])
    yield "lights_texts", ("traffic_lights",), every("traffic_lights", lambda i, lights: ["red"])
    yield "lights_unknown_lane", ("traffic_lights",), every("traffic_lights", lambda i, lights: [("lane", True)])
    yield "token_everywhere_the_same", ("token",), every("token", lambda i, t: "4163af3b51248aff")
    yield "location_changes", ("map_location",), every("map_location", lambda i, m: m if i < 8 else "sg-one-north")
    yield "boxes_nan", ("gt_boxes",), annotated(row_set(0, np.nan)("gt_boxes"))
    yield "boxes_infinite", ("gt_boxes",), annotated(row_set(0, np.inf)("gt_boxes"))
    yield (
        "box_of_no_size",
        ("gt_boxes",),
        annotated(lambda a: a["gt_boxes"].__setitem__((slice(None), slice(3, 6)), 0.0)),
    )
    yield "box_negative", ("gt_boxes",), annotated(lambda a: a["gt_boxes"].__setitem__((0, 3), -4.0))
    yield "box_of_a_kilometer", ("gt_boxes",), annotated(lambda a: a["gt_boxes"].__setitem__((0, 3), 1000.0))
    yield "one_box_less", ("anns", "gt_"), annotated(lambda a: a.update(gt_boxes=a["gt_boxes"][1:]))
    yield "one_track_less", ("anns", "track_tokens"), annotated(lambda a: a.update(track_tokens=a["track_tokens"][1:]))
    yield (
        "track_twice",
        ("track_tokens", "track"),
        annotated(lambda a: a["track_tokens"].__setitem__(1, a["track_tokens"][0])),
    )
    yield (
        "name_unknown",
        ("gt_names",),
        annotated(lambda a: a.update(gt_names=np.array(["dragon"] * len(a["gt_names"])))),
    )
    yield "velocity_nan", ("gt_velocity_3d",), annotated(row_set(0, np.nan)("gt_velocity_3d"))
    yield "velocity_300", ("gt_velocity_3d", "m/s"), annotated(row_set(0, 300.0)("gt_velocity_3d"))


def map_(samples: Path) -> Iterator[Case]:
    """Maps: GeoPackages, and the file that lists them."""
    near = (LOCATION, "map.gpkg")
    for name, change in files.befallen(3, 0, Path("world/maps/nuplan-maps-v1.0.json")):
        yield Case("map", name, CACHE, at(MAP_FILE, change), near)
    for name, words, change_table in _wrong_tables(samples / MAP_FILE):
        yield Case("map", name, CACHE, partial(_in_map, change=change_table), (LOCATION, *words))
    index = samples / "world/maps/nuplan-maps-v1.0.json"
    for name, change in files.befallen(4, 0):
        yield Case("map", f"index_{name}", CACHE, at(f"world/maps/{index.name}", change), (index.name, "maps"))
    for name, words, change in texts.changes(index, 2, 5, 2, most=12):
        yield Case("map", f"index_{name}", CACHE, at(f"world/maps/{index.name}", change), (index.name, *words))
    for name, version in (("outside", "../../../.."), ("absolute", "/etc"), ("number", 9)):
        yield Case("map", f"version_{name}", CACHE, partial(_version, version=version), (index.name, LOCATION))


def _version(place: Path, version: object) -> None:
    path = place / "world/maps/nuplan-maps-v1.0.json"
    content = json.loads(path.read_text())
    content[LOCATION]["version"] = version
    path.write_text(json.dumps(content))


def _in_map(place: Path, change: Callable[[sqlite3.Connection], object]) -> None:
    connection = sqlite3.connect(place / MAP_FILE)
    try:
        change(connection)
        connection.commit()
    finally:
        connection.close()


Change = Callable[[sqlite3.Connection], object]


def _wrong_tables(path: Path) -> Iterator[tuple[str, tuple[str, ...], Change]]:
    """What SQL can do to a map."""

    def sql(text: str, *values: object) -> Change:
        return lambda connection: connection.execute(text, values)

    polygons = (
        "lanes_polygons",
        "lane_groups_polygons",
        "lane_group_connectors",
        "intersections",
        "gen_lane_connectors_scaled_width_polygons",
        "carpark_areas",
    )
    for table in (*polygons, "baseline_paths", "lane_connectors", "meta"):
        yield f"no_{table}", (table,), partial(_without_table, table=table)
        yield f"empty_{table}", (table,), sql(f"DELETE FROM {table}")
    for table in (*polygons, "baseline_paths"):
        for name, change in _SHAPES:
            yield f"{table}_{name}", (table,), partial(_shapes, table=table, change=change)
    references = {
        "lanes_polygons": ("lane_group_fid", "lane_index", "speed_limit_mps"),
        "lane_connectors": ("exit_lane_fid", "entry_lane_fid", "lane_group_connector_fid", "speed_limit_mps"),
        "gen_lane_connectors_scaled_width_polygons": ("lane_connector_fid",),
        "lane_group_connectors": ("from_lane_group_fid", "to_lane_group_fid", "intersection_fid"),
        "baseline_paths": ("lane_fid", "lane_connector_fid"),
    }
    for table, columns in references.items():
        for column in columns:
            yield f"{table}_no_{column}", (table, column), sql(f"ALTER TABLE {table} RENAME COLUMN {column} TO other")
            yield f"{table}_{column}_text", (table, column), sql(f"UPDATE {table} SET {column} = 'text'")
            yield f"{table}_{column}_blob", (table, column), sql(f"UPDATE {table} SET {column} = X'00ff'")
            yield f"{table}_{column}_huge", (table, column), sql(f"UPDATE {table} SET {column} = 1e300")
            if column.endswith("_fid"):
                yield f"{table}_{column}_unknown", (table, column), sql(f"UPDATE {table} SET {column} = 987654321")
                yield f"{table}_{column}_fraction", (table, column), sql(f"UPDATE {table} SET {column} = 1.5")
    yield "speed_negative", ("speed_limit_mps",), sql("UPDATE lanes_polygons SET speed_limit_mps = -5")
    yield "speed_infinite", ("speed_limit_mps",), sql("UPDATE lanes_polygons SET speed_limit_mps = 9e999")
    yield "meta_other_system", ("meta",), sql("UPDATE meta SET value = 'EPSG:4326'")
    yield "meta_nonsense", ("meta",), sql("UPDATE meta SET value = 'nonsense'")
    yield "meta_null", ("meta",), sql("UPDATE meta SET value = NULL")
    yield "meta_far_zone", ("meta",), sql("UPDATE meta SET value = replace(value, '32619', '32701')")
    yield "a_view_without_end", ("lanes_polygons",), _endless_view
    yield "a_trigger", (), sql("CREATE TRIGGER t AFTER INSERT ON meta BEGIN DELETE FROM meta; END")


def _without_table(connection: sqlite3.Connection, table: str) -> None:
    connection.execute(f"DROP TABLE {table}")
    for listing in ("gpkg_contents", "gpkg_geometry_columns"):
        connection.execute(f"DELETE FROM {listing} WHERE table_name = ?", (table,))


def _endless_view(connection: sqlite3.Connection) -> None:
    """In the place of a table one that has rows for ever."""
    connection.execute("ALTER TABLE lanes_polygons RENAME TO kept")
    connection.execute(
        "CREATE VIEW lanes_polygons AS WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) "
        "SELECT i AS fid, geom, lane_group_fid, lane_index, speed_limit_mps FROM n, kept"
    )


Shape = Callable[[bytes], bytes | None]
"""From the coordinates of a geometry's first ring to others (little-endian doubles); None: no geometry at all."""


def _shapes(connection: sqlite3.Connection, table: str, change: Callable[[bytes], bytes | None]) -> None:
    rows = connection.execute(f"SELECT fid, geom FROM {table}").fetchall()
    for number, geometry in rows:
        connection.execute(f"UPDATE {table} SET geom = ? WHERE fid = ?", (change(geometry), number))


def _coordinates(change: Callable[[np.ndarray], np.ndarray]) -> Callable[[bytes], bytes]:
    """On the points (point, 2) of the first part of a geometry as GeoPackage has it: its header, then WKB."""

    def on(geometry: bytes) -> bytes:
        envelope = {0: 0, 1: 32, 2: 48, 3: 48, 4: 64}[(geometry[3] >> 1) & 7]
        begin = 8 + envelope
        (kind,) = struct.unpack_from("<I", geometry, begin + 1)
        at = begin + 5 + (4 if kind == 3 else 0)
        (count,) = struct.unpack_from("<I", geometry, at)
        points = np.frombuffer(geometry, "<f8", 2 * count, at + 4).reshape(-1, 2).copy()
        new = change(points).astype("<f8")
        return geometry[:at] + struct.pack("<I", len(new)) + new.tobytes() + geometry[at + 4 + 16 * count :]

    return on


def _set(row: int, value: Any) -> Callable[[np.ndarray], np.ndarray]:
    def change(points: np.ndarray) -> np.ndarray:
        points[row] = value
        return points

    return change


def _crossed(points: np.ndarray) -> np.ndarray:
    """A ring that crosses itself."""
    if len(points) > 4:
        points[[1, 2]] = points[[2, 1]]
    return points


_SHAPES: tuple[tuple[str, Callable[[bytes], bytes | None]], ...] = (
    ("nan_vertex", _coordinates(_set(1, np.nan))),
    ("infinite_vertex", _coordinates(_set(1, np.inf))),
    ("vertex_at_zero", _coordinates(_set(1, 0.0))),
    ("vertex_beyond_the_pole", _coordinates(_set(1, (0.0, 123.0)))),
    ("crosses_itself", _coordinates(_crossed)),
    ("one_point", _coordinates(lambda points: points[:1])),
    ("no_points", _coordinates(lambda points: points[:0])),
    ("all_one_point", _coordinates(lambda points: points * 0 + points[0])),
    ("other_continent", _coordinates(lambda points: points * np.array([-1.0, 1.0]))),
    ("cut", lambda geometry: geometry[: len(geometry) // 2]),
    ("null", lambda geometry: None),
    ("not_a_geometry", lambda geometry: b"geometry"),
    (
        "count_lies",
        lambda geometry: geometry[: _count_at(geometry)] + b"\xff\xff\xff\x7f" + geometry[_count_at(geometry) + 4 :],
    ),
)


def _count_at(geometry: bytes) -> int:
    envelope = {0: 0, 1: 32, 2: 48, 3: 48, 4: 64}[(geometry[3] >> 1) & 7]
    return 8 + envelope + 5 + (4 if struct.unpack_from("<I", geometry, 8 + envelope + 1)[0] == 3 else 0)


def image(samples: Path) -> Iterator[Case]:
    """Camera images."""
    pristine = only(samples, f"{IMAGE_FOLDER}/*.jpg")
    words = ("CAM_F0", pristine.name)

    accepted = {
        "bmp": "pictures of this format are read as well",
        "tiff": "pictures of this format are read as well",
        "header_says_higher": "libjpeg fills up what the data of a JPEG lack, and tells no caller",
    }

    def case(name: str, change: files.Change) -> Case:
        mutate = partial(_befall, path=pristine.relative_to(samples), change=change)
        return Case("image", name, PACK, mutate, words, accepted.get(name, ""))

    for name, change in files.befallen(6, 0):
        yield case(name, change)
    for name, picture in _pictures(pristine):
        yield case(name, pickles.written(picture))


def _befall(place: Path, path: Path, change: files.Change) -> None:
    change(place / path)


def _pictures(pristine: Path) -> Iterator[tuple[str, bytes]]:
    jpeg, picture = pristine.read_bytes(), Image.open(pristine).convert("RGB")

    def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
        file = io.BytesIO()
        image.save(file, kind, **options)
        return file.getvalue()

    def with_size(width: int, height: int) -> bytes:
        at = next(i for i in range(2, len(jpeg)) if jpeg[i] == 0xFF and jpeg[i + 1] in (0xC0, 0xC1, 0xC2))
        return jpeg[: at + 5] + struct.pack(">HH", height, width) + jpeg[at + 9 :]

    yield "gif", saved(picture, "GIF")
    yield "bmp", saved(picture, "BMP")
    yield "tiff", saved(picture, "TIFF")
    yield "svg", b"<svg xmlns='http://www.w3.org/2000/svg'><image href='file:///etc/passwd'/></svg>"
    yield "of_one_pixel", saved(picture.resize((1, 1)), "JPEG")
    yield "header_says_huge", with_size(65000, 65000)
    yield "header_says_nothing", with_size(0, 0)
    yield "header_says_higher", with_size(picture.width, picture.height * 4)
    yield "postscript", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\nquit\n"
    yield "png_bomb", _png_bomb()


def _png_bomb() -> bytes:
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = zlib.compress(bytes(20_001 * 3_000), 1)
    head = struct.pack(">IIBBBBB", 20_000, 20_000, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


SPLIT = "world/splits/navtest_all.yaml"


def split(samples: Path) -> Iterator[Case]:
    """Splits in the devkit's scene-filter schema."""
    words = ("navtest_all",)
    for name, change in files.befallen(7, 0):
        yield Case("split", name, CACHE, at(SPLIT, change), words)
    for name, keys, change in texts.changes(samples / SPLIT, 2, 8, 4):
        accepted = "without it windows follow each other" if name == "no_scene_filter.frame_interval" else ""
        yield Case("split", name, CACHE, at(SPLIT, change), (*words, *keys), accepted)
    for name, key, value in (
        ("log_outside", "log_names", ["../trainval/" + OTHER_LOG.stem]),
        ("log_absolute", "log_names", ["/etc/passwd"]),
        ("log_empty_name", "log_names", [""]),
        ("no_logs", "log_names", []),
        ("log_unknown", "log_names", ["2021.01.01.00.00.00_veh-00_00000_00001"]),
        ("tokens_unknown", "tokens", ["0123456789abcdef"]),
        ("tokens_numbers", "tokens", [12345]),
        ("no_tokens", "tokens", []),
        ("history_huge", "num_history_frames", 10**9),
        ("future_huge", "num_future_frames", 10**9),
        ("future_short", "num_future_frames", 2),
        ("interval_huge", "frame_interval", 10**12),
        ("history_zero", "num_history_frames", 0),
    ):
        yield Case(
            "split",
            name,
            CACHE,
            partial(_in_split, key=key, value=value),
            (*words, key),
            "windows that begin so far apart leave a log's first" if name == "interval_huge" else "",
        )
    for name, folder in (
        ("folder_outside", "../navsim_logs/test"),
        ("folder_absolute", "/etc"),
        ("folder_empty", ""),
        ("folder_unknown", "valley"),
    ):
        yield Case("split", name, CACHE, partial(_in_split, key="", value=folder), (*words, "data_split", "valley"))


def _in_split(place: Path, key: str, value: object) -> None:
    path = place / SPLIT
    content = yaml.safe_load(path.read_text())
    if key:
        content["scene_filter"][key] = value
    else:
        content["data_split"] = value
    path.write_text(yaml.safe_dump(content))


LISTED = Call(
    "cache_metrics",
    (*ROOTS, "--split", "list.csv", "--data-split", "test", "--workers", "1", "--out", "out"),
    (*DRIVE, "list.csv"),
    ("out/*.scenes",),
    ("out", "out/**/*"),
)


def token_list(samples: Path) -> Iterator[Case]:
    """Splits as lists of tokens."""
    for name, change in files.befallen(9, 0):
        yield Case(
            "token list",
            name,
            LISTED,
            at("list.csv", change),
            ("list.csv", "split list"),
        )
    read = (samples / "list.csv").read_text()
    first = read.split()[1]
    for name, text in {
        "no_header": read.partition("\n")[2],
        "other_header": read.replace("token", "scene", 1),
        "only_header": "token\n",
        "token_twice": read + first + "\n",
        "token_empty": read + '""\n',
        "token_outside": read + "../../etc/passwd\n",
        "token_unknown": read + "0123456789abcdef\n",
        "token_long": read + "x" * 200_000 + "\n",
        "quote_open": read + '"abc\n',
        "nul": read + "a\0b\n",
        "one_column_more": read.replace(first, f"{first},x"),
        "header_twice": "token,token\na,b\n",
        "upper_case": read.upper().replace("TOKEN", "token"),
        "semicolons": read.replace("\n", ";x\n"),
        "spreadsheet_number": read.replace(first, "1.23457E+15"),
    }.items():
        change = pickles.written(text.encode())
        yield Case(
            "token list",
            name,
            LISTED,
            at("list.csv", change),
            ("list.csv", "split list"),
        )
    yield Case(
        "token list",
        "latin_1",
        LISTED,
        lambda place: (place / "list.csv").write_bytes(b"token\n\xe4\n"),
        ("list.csv", "split list"),
    )
    yield Case(
        "token list",
        "utf16",
        LISTED,
        lambda place: (place / "list.csv").write_bytes(read.encode("utf-16")),
        ("list.csv", "split list"),
    )


MAKE = Call(
    "make_demo_world",
    ("--root", "world", *WORLD),
    ("world",),
    ("world/**/*.pkl", "world/**/*.jpg", "world/**/*.gpkg", "world/splits/*"),
    ("world", "world/**/*"),
)


def demo_world(samples: Path) -> Iterator[Case]:
    """A demo world that is there already."""
    for name, change in files.befallen(10, 0):
        yield Case("demo world", name, MAKE, at("world/world.json", change), ("world",))
    for name, words, change in texts.changes(samples / "world/world.json", 2, 11, 1, most=15):
        yield Case(
            "demo world",
            name,
            MAKE,
            at("world/world.json", change),
            ("world.json", *words),
        )
    yield Case(
        "demo world",
        "is_a_file",
        MAKE,
        at("world", a_file),
        ("world",),
    )
    yield Case("demo world", "is_somebody_elses", MAKE, lambda place: (place / "world/world.json").unlink(), ("world",))
