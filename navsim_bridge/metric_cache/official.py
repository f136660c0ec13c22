"""The devkit's own metric caches (navsim v1.1), read without the devkit.

A cache file is an LZMA-compressed pickle of navsim, nuplan and shapely objects. The classes that such files name are
mapped to plain holders that keep what the pickle stores in them; no code of theirs is needed or run, and a file that
names anything else is refused.

Objects are stored as polygons of their box corners, 51 frames of them. Center, heading and size are taken back from
the corners; where they are within `SNAP` of the first-seen object's size, or of the straight line between 0.5 s key
frames along which the devkit interpolated, they are set to that, which removes the rounding of the corners. Headings
keep it (about 1e-9 rad).
"""

from __future__ import annotations

import lzma
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpvla.files import read_bytes, short
from navsim_bridge.ego import REAR_AXLE_TO_CENTER
from navsim_bridge.files.pickle_reader import UnsafePickleError, unpickle_plain
from navsim_bridge.files.stand_in import StandIn
from navsim_bridge.metric_cache.contents import MOST_SIZE
from navsim_bridge.metric_cache.tracks import interpolated_between_key_frames
from navsim_bridge.pdm.metric_scene import AGENT_TYPES, NUM_FRAMES, OBJECT_TYPES, MetricScene
from navsim_bridge.pdm.packing import pack_scenes

Int = NDArray[np.int64]

FILE = "metric_cache.pkl"
METADATA = "metadata"
REFERENCE = "PDM-Closed, from an official metric cache"
CENTERLINE = "PDM-Closed, from an official metric cache"
SNAP = 1e-7
"""[m] what separates a rounded number from another one."""
MAP_LAYERS = {0: "LANE", 1: "INTERSECTION", 5: "DRIVABLE_AREA", 11: "LANE_CONNECTOR", 15: "CARPARK_AREA",
              17: "ROADBLOCK", 18: "ROADBLOCK_CONNECTOR"}  # fmt: skip
"""nuPlan's numbers of the map layers that a drivable-area map may hold."""
_WKB_POLYGON, _WKB_SRID, _WKB_Z = 3, 0x20000000, 0x80000000
"""Kind, and flags of extended well-known binary, which shapely writes."""
_VERSION_2_FIELDS = (b"human_trajectory", b"map_parameters", b"past_detections_tracks", b"current_tracked_objects")


class OfficialCacheError(ValueError):
    """An official cache file that cannot be used; the message names token and file and says why."""


def _holder(name: str) -> type[StandIn]:
    return type(name, (StandIn,), {"__slots__": ()})


_PLANNER = "navsim.planning.simulation.planner.pdm_planner"
_STATE = "nuplan.common.actor_state"
KNOWN: dict[tuple[str, str], type[StandIn]] = {
    **{
        (module, name): _holder(name)
        for module, names in {
            "navsim.planning.metric_caching.metric_cache": ("MetricCache",),
            f"{_PLANNER}.observation.pdm_observation": ("PDMObservation",),
            f"{_PLANNER}.observation.pdm_occupancy_map": ("PDMDrivableMap", "PDMOccupancyMap"),
            f"{_PLANNER}.utils.pdm_path": ("PDMPath",),
            f"{_STATE}.agent": ("Agent",),
            f"{_STATE}.car_footprint": ("CarFootprint",),
            f"{_STATE}.dynamic_car_state": ("DynamicCarState",),
            f"{_STATE}.ego_state": ("EgoState",),
            f"{_STATE}.oriented_box": ("OrientedBox",),
            f"{_STATE}.scene_object": ("SceneObject", "SceneObjectMetadata"),
            f"{_STATE}.state_representation": ("StateSE2", "StateVector2D", "TimePoint", "TimeDuration"),
            f"{_STATE}.static_object": ("StaticObject",),
            f"{_STATE}.tracked_objects_types": ("TrackedObjectType",),
            f"{_STATE}.vehicle_parameters": ("VehicleParameters",),
            "nuplan.common.maps.maps_datatypes": ("SemanticMapLayer",),
            "nuplan.planning.simulation.trajectory.interpolated_trajectory": ("InterpolatedTrajectory",),
        }.items()
        for name in names
    },
    ("shapely.io", "from_wkb"): _holder("Geometry"),
    **{("pathlib", name): _holder(name) for name in ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath")},
}
"""Names that an official cache may use besides numpy's, and what stands for their objects here."""
MOST_BYTES = 2**28
"""Of a file, and of what it unpacks to: a scene takes some 100 kB, and 300 kB unpacked."""
MOST_POLYGONS = 100_000
"""Of all objects in all frames."""


class OfficialCache:
    """A folder of official cache files, ``<log>/<scenario type>/<token>/metric_cache.pkl``.

    The files are looked for in the folder itself: the CSV under ``metadata/`` lists the absolute paths of the
    machine that made the cache, which are wrong once it has been moved.
    """

    def __init__(self, folder: Path | str) -> None:
        """Raises FileNotFoundError when the folder holds no cache file, OfficialCacheError on a repeated token."""
        self.folder = Path(folder)
        self.files: dict[str, Path] = {}
        """Token -> file, by log and token."""
        for file in sorted(self.folder.glob(f"*/*/*/{FILE}")):
            token = file.parent.name
            if token in self.files:
                raise OfficialCacheError(f"token {token} has two cache files: {self.files[token]} and {file}")
            self.files[token] = file
        if not self.files:
            raise FileNotFoundError(
                f"no official metric cache in {self.folder}: expected <log>/<scenario type>/<token>/{FILE} below it"
            )

    @property
    def tokens(self) -> tuple[str, ...]:
        """Tokens of all scenes, by log."""
        return tuple(self.files)

    def by_log(self) -> dict[str, list[str]]:
        """Log name -> tokens."""
        logs: dict[str, list[str]] = {}
        for token, file in self.files.items():
            logs.setdefault(file.parts[-4], []).append(token)
        return logs

    def read(self, token: str) -> MetricScene:
        """The scene of ``token``; errors as `read_official_cache`, KeyError for an unknown token."""
        return read_official_cache(self.files[token])

    def __len__(self) -> int:
        return len(self.files)

    def __contains__(self, token: object) -> bool:
        return token in self.files

    def __iter__(self) -> Iterator[str]:
        return iter(self.files)


def read_official_cache(path: Path | str) -> MetricScene:
    """One official cache file. Token and log name are those of its folders.

    Raises:
        FileNotFoundError: no such file.
        OfficialCacheError: naming token and file: not an LZMA pickle, a class that is not known (nothing of it has
            run), a cache of navsim v2, or content that is not as version 1.1 writes it.
    """
    path = Path(path)
    try:
        data = _unpacked(read_bytes(path, MOST_BYTES))
        if any(name in data for name in _VERSION_2_FIELDS):
            raise OfficialCacheError(
                "this is a cache of navsim v2, which holds other fields; only caches of v1.1 are read. Build the "
                "packed cache from logs and maps instead"
            )
        cache = _Value(unpickle_plain(data, path, KNOWN), "MetricCache")
        scene = _scene(cache, path.parent.name, path.parts[-4] if len(path.parts) > 3 else "")
        pack_scenes([scene])  # refuses NaN and arrays that contradict each other
        return scene
    except FileNotFoundError:
        raise
    except (OSError, lzma.LZMAError) as error:
        problem = f"not a whole LZMA file ({type(error).__name__}: {error})"
    except UnsafePickleError as error:
        problem = f"names what caches of navsim v1.1 do not hold: {_without_path(error, path)}"
    except ValueError as error:
        problem = _without_path(error, path)
    raise OfficialCacheError(f"token {path.parent.name}: {path}: {' '.join(problem.split())}")


def _unpacked(data: bytes) -> bytes:
    """What was compressed, once it is known to be no more than ``MOST_BYTES``."""
    unpacker = lzma.LZMADecompressor(memlimit=MOST_BYTES)
    content = unpacker.decompress(data, max_length=MOST_BYTES + 1)
    if len(content) > MOST_BYTES:
        raise ValueError(f"unpacks to more than {MOST_BYTES} bytes, which no cache of a scene does")
    if not unpacker.eof:
        raise lzma.LZMAError("it ends before its content does")
    if unpacker.unused_data:
        raise lzma.LZMAError(f"{len(unpacker.unused_data)} bytes follow its end")
    return content


def _without_path(error: Exception, path: Path) -> str:
    return str(error).removeprefix(f"{path}: ")


class _Value:
    """A value of a cache, and where it stands there, for error texts."""

    __slots__ = ("found", "where")

    def __init__(self, found: Any, where: str) -> None:
        self.found, self.where = found, where

    def error(self, expected: str) -> ValueError:
        return ValueError(f"not the content that navsim v1.1 writes: {self.where}: expected {expected}, found "
                          f"{short(self.found)}")  # fmt: skip

    def __getitem__(self, name: str) -> _Value:
        """An attribute of an object."""
        value = self.get(name)
        if value is None:
            raise self.error(f"an object with {name!r}")
        return value

    def get(self, name: str) -> _Value | None:
        """None where the object does not have the attribute."""
        if not isinstance(self.found, StandIn):
            raise self.error("an object")
        attributes = vars(self.found)
        return _Value(attributes[name], f"{self.where}.{name}") if name in attributes else None

    def argument(self, number: int, of: str | None = None) -> _Value:
        """What the object's class, called ``of`` if that matters, was called with."""
        if not isinstance(self.found, StandIn) or of not in (None, type(self.found).__name__):
            raise self.error(f"a {of}" if of else "an object")
        if number >= len(self.found.args):
            raise self.error(f"an object made of more than {number} values")
        return _Value(self.found.args[number], f"{self.where}[{number}]")

    def items(self) -> list[_Value]:
        if not isinstance(self.found, (list, tuple)):
            raise self.error("a list")
        return [_Value(item, f"{self.where}[{i}]") for i, item in enumerate(self.found)]

    def mapping(self) -> dict[str, _Value]:
        if not isinstance(self.found, dict):
            raise self.error("a dict")
        return {key: _Value(item, f"{self.where}[{short(key, 40)}]") for key, item in self.found.items()}

    def text(self) -> str:
        if not isinstance(self.found, str) or not self.found:
            raise self.error("a text that is not empty")
        return str(self.found)

    def texts(self) -> tuple[str, ...]:
        return tuple(item.text() for item in self.items())

    def whole(self) -> int:
        if isinstance(self.found, (bool, np.bool_)) or not isinstance(self.found, (int, np.integer)):
            raise self.error("a whole number")
        if not -(2**63) <= self.found < 2**63:
            raise self.error("a number of 64 bits")
        return int(self.found)

    def number(self) -> float:
        found: Any = self.found
        if isinstance(found, np.ndarray) and found.ndim == 0:
            found = found.item()
        if isinstance(found, (bool, np.bool_)) or not isinstance(found, (int, float, np.number)):
            raise self.error("a number")
        if not -MOST_SIZE <= found <= MOST_SIZE:  # nor NaN
            raise self.error(f"a number from -{MOST_SIZE:g} to {MOST_SIZE:g}")
        return float(found)


def _scene(cache: _Value, token: str, log_name: str) -> MetricScene:
    if type(cache.found) is not KNOWN["navsim.planning.metric_caching.metric_cache", "MetricCache"]:
        raise ValueError(f"expected a MetricCache, found {short(cache.found)}")
    knots = cache["trajectory"].argument(0).items()
    area = cache["drivable_area_map"]
    polygon_rings, ring_vertices, vertices = _rings(_polygons(area.argument(2)))
    return MetricScene(
        token=token,
        log_name=log_name,
        ego_state=_state(cache["ego_state"]),
        ego_time_us=_time(cache["ego_state"]),
        reference_states=np.array([_rear_axle(knot) for knot in knots], dtype=np.float64),
        reference_times_us=np.array([_time(knot) for knot in knots], dtype=np.int64),
        polygon_tokens=area.argument(0).texts(),
        polygon_types=tuple(_layer(layer.argument(0).whole()) for layer in area.argument(1).items()),
        polygon_ring_offsets=polygon_rings,
        ring_offsets=ring_vertices,
        vertices=vertices,
        route_lane_ids=cache["route_lane_ids"].texts(),
        centerline=np.array([_pose(point) for point in cache["centerline"].argument(0).items()], dtype=np.float64),
        **_objects(cache["observation"]),
        provenance={"reference": REFERENCE, "centerline": CENTERLINE},
    )


def _pose(state: _Value) -> tuple[float, float, float]:
    return state["x"].number(), state["y"].number(), state["heading"].number()


def _time(ego: _Value) -> int:
    return ego["_time_point"]["time_us"].whole()


def _rear_axle(ego: _Value) -> tuple[float, float, float]:
    """Pose as the scorer reads it: the stored center, moved back along the heading."""
    footprint = ego["_car_footprint"]
    stored = footprint.get("rear_axle")  # there when the devkit has asked for it before
    if stored is not None and stored.found is not None:
        return _pose(stored)
    x, y, heading = _pose(footprint["_center"])
    return x - REAR_AXLE_TO_CENTER * np.cos(heading), y - REAR_AXLE_TO_CENTER * np.sin(heading), heading


def _state(ego: _Value) -> NDArray[np.float64]:
    car = ego["_dynamic_car_state"]
    velocity, acceleration = car["_rear_axle_velocity_2d"], car["_rear_axle_acceleration_2d"]
    rates = [velocity["_x"], velocity["_y"], acceleration["_x"], acceleration["_y"], ego["_tire_steering_angle"],
             car["_tire_steering_rate"], car["_angular_velocity"], car["_angular_acceleration"]]  # fmt: skip
    return np.array([*_rear_axle(ego), *(rate.number() for rate in rates)], dtype=np.float64)


def _layer(number: int) -> str:
    if number not in MAP_LAYERS:
        raise ValueError(f"map layer {number} in the drivable-area map; expected one of {MAP_LAYERS}")
    return MAP_LAYERS[number]


def _polygons(geometries: _Value) -> list[list[NDArray[np.float64]]]:
    """Closed rings (vertex, 2) of polygons that are given as well-known binary."""
    return [_polygon(geometry.argument(0, "Geometry")) for geometry in geometries.items()]


def _polygon(wkb: _Value) -> list[NDArray[np.float64]]:
    """Rings of one polygon. Only polygons are read here: nested kinds make GEOS use up its stack."""
    data = wkb.found
    if not isinstance(data, bytes) or len(data) < 9 or data[0] > 1:
        raise wkb.error("a polygon as well-known binary")
    order = "<" if data[0] else ">"
    kind, at = struct.unpack_from(f"{order}I", data, 1)[0], 5
    if kind & _WKB_SRID:
        at += 4
    if kind & ~(_WKB_SRID | _WKB_Z) != _WKB_POLYGON:
        raise wkb.error("a polygon")
    columns = 3 if kind & _WKB_Z else 2
    rings = []
    try:
        (count,) = struct.unpack_from(f"{order}I", data, at)
        at += 4
        for _ in range(count):
            (vertices,) = struct.unpack_from(f"{order}I", data, at)
            numbers = np.frombuffer(data, f"{order}f8", vertices * columns, at + 4)
            rings.append(numbers.reshape(vertices, columns)[:, :2])
            at += 4 + numbers.nbytes
    except (struct.error, ValueError):
        raise wkb.error("a whole polygon") from None
    if at != len(data) or not rings or any(len(ring) < 4 or (ring[0] != ring[-1]).any() for ring in rings):
        raise wkb.error("a polygon of closed rings")
    return rings


def _rings(polygons: Sequence[Sequence[NDArray[np.float64]]]) -> tuple[Int, Int, NDArray[np.float64]]:
    """Offsets polygon -> rings and ring -> vertices, and open rings."""
    rings = [ring[:-1] for polygon in polygons for ring in polygon]
    vertices = np.concatenate([np.zeros((0, 2)), *rings])
    _check_size("the drivable-area map", vertices)
    return (
        np.cumsum([0, *(len(polygon) for polygon in polygons)], dtype=np.int64),
        np.cumsum([0, *(len(ring) for ring in rings)], dtype=np.int64),
        vertices,
    )


def _check_size(what: str, coordinates: NDArray[np.float64]) -> None:
    if not (np.abs(coordinates) <= MOST_SIZE).all():
        raise ValueError(f"{what} has a coordinate of more than {MOST_SIZE:g} m, or NaN")


def _objects(observation: _Value) -> dict[str, Any]:
    """The object fields of a `MetricScene`."""
    maps, sampling = observation["_occupancy_maps"].items(), observation["_observation_sample_res"].whole()
    if len(maps) != NUM_FRAMES or sampling != 1:
        raise ValueError(f"{len(maps)} object frames at sampling {sampling}; expected {NUM_FRAMES} at 1")
    if observation["_collided_track_ids"].items():
        raise ValueError("objects are marked as collided before scoring, which this reader does not support")
    unique, red_light = observation["_unique_objects"].mapping(), observation["_red_light_token"].text()
    names, polygons, frames = [], [], []
    for frame, occupancy in enumerate(maps):
        tokens, geometries = occupancy.argument(0).texts(), occupancy.argument(1)
        rings = _polygons(geometries)
        if len(tokens) != len(rings):
            raise ValueError(f"object frame {frame} has {len(tokens)} tokens and {len(rings)} polygons")
        for token, polygon in zip(tokens, rings):
            if token in unique:
                names.append(token)
                polygons.append(polygon)
                frames.append(frame)
            elif red_light not in token:  # red lights are no objects: the v1 score skips them
                raise ValueError(f"object frame {frame} holds {short(token)}, which is no known object")
        if len(names) > MOST_POLYGONS:
            raise ValueError(f"more than {MOST_POLYGONS} objects in its frames")
    types = {token: _object_type(unique[token]) for token in dict.fromkeys(names)}
    seen = sorted(types, key=lambda token: OBJECT_TYPES.index(types[token]))
    position = {token: i for i, token in enumerate(seen)}
    track = np.array([position[name] for name in names], dtype=np.int64)
    frame_of_row = np.array(frames, dtype=np.int64)
    boxes = interpolated_between_key_frames(frame_of_row, track, _boxes(polygons), SNAP)
    first_size = np.array([_size(unique[token]["_box"]) for token in seen], dtype=np.float64)
    sizes = first_size.reshape(-1, 2)[track]
    near = (np.abs(boxes[:, 3:] - sizes) <= SNAP).all(axis=1)
    boxes[near, 3:] = sizes[near]
    return {
        "frame_offsets": np.concatenate([[0], np.cumsum(np.bincount(frame_of_row, minlength=NUM_FRAMES))]),
        "object_track": track,
        "object_boxes": boxes,
        "track_tokens": tuple(seen),
        "track_types": tuple(types[token] for token in seen),
        "track_first_speed": np.array([_speed(unique[token], types[token]) for token in seen], dtype=np.float64),
    }


def _object_type(found: _Value) -> str:
    number = found["_tracked_object_type"].argument(0).whole()
    if not 0 <= number < len(OBJECT_TYPES):
        raise ValueError(f"object type {number}; expected 0 to {len(OBJECT_TYPES) - 1}")
    return OBJECT_TYPES[number]


def _size(box: _Value) -> tuple[float, float]:
    return box["_length"].number(), box["_width"].number()


def _speed(found: _Value, kind: str) -> float:
    if kind not in AGENT_TYPES:
        return 0.0
    velocity = found["_velocity"]
    return float(np.hypot(velocity["_x"].number(), velocity["_y"].number()))


def _boxes(polygons: Sequence[Sequence[NDArray[np.float64]]]) -> NDArray[np.float64]:
    """(box, 5) center, heading, length and width of rectangles whose corners start front left and go round by rear
    left, as nuPlan writes them."""
    if len(polygons) == 0:
        return np.zeros((0, 5))
    if any(len(rings) != 1 or len(rings[0]) != 5 for rings in polygons):
        raise ValueError("an object is not a rectangle of four corners")
    corners = np.stack([rings[0][:4] for rings in polygons])
    _check_size("an object", corners)
    front_left, rear_left, rear_right, front_right = np.moveaxis(corners, 1, 0)
    along = (front_left - rear_left + front_right - rear_right) / 2
    across = (front_left - front_right + rear_left - rear_right) / 2
    length, width = np.linalg.norm(along, axis=1), np.linalg.norm(across, axis=1)
    # The longer side gives the better heading; across is 90 degrees to the left of along.
    by_along = np.arctan2(along[:, 1], along[:, 0])
    by_across = np.arctan2(-across[:, 0], across[:, 1])
    heading = np.where(length >= width, by_along, by_across)
    center = rear_right + (along + across) / 2
    return np.column_stack([center, heading, length, width])
