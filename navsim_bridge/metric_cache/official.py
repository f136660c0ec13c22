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
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray

from navsim_bridge.ego import REAR_AXLE_TO_CENTER
from navsim_bridge.files.pickles import UnsafePickleError, unpickle_plain
from navsim_bridge.metric_cache.tracks import interpolated_between_key_frames
from navsim_bridge.pdm.metric_scene import AGENT_TYPES, NUM_FRAMES, OBJECT_TYPES, MetricScene
from navsim_bridge.pdm.packing import pack_scenes

FILE = "metric_cache.pkl"
METADATA = "metadata"
REFERENCE = "PDM-Closed, from an official metric cache"
CENTERLINE = "PDM-Closed, from an official metric cache"
SNAP = 1e-7
"""[m] what separates a rounded number from another one."""
MAP_LAYERS = {0: "LANE", 1: "INTERSECTION", 5: "DRIVABLE_AREA", 11: "LANE_CONNECTOR", 15: "CARPARK_AREA",
              17: "ROADBLOCK", 18: "ROADBLOCK_CONNECTOR"}  # fmt: skip
"""nuPlan's numbers of the map layers that a drivable-area map may hold."""
_VERSION_2_FIELDS = (b"human_trajectory", b"map_parameters", b"past_detections_tracks", b"current_tracked_objects")


class OfficialCacheError(ValueError):
    """An official cache file that cannot be used; the message names token and file and says why."""


class _Holder:
    """Stands for an object of a class that is not here: call arguments and stored attributes."""

    args: tuple[Any, ...] = ()

    def __init__(self, *args: Any) -> None:
        self.args = args

    def __setstate__(self, state: Any) -> None:
        for part in state if isinstance(state, tuple) else (state,):  # (attributes, slots) for classes with slots
            if part is not None:
                self.__dict__.update(part)


def _holder(name: str) -> type[_Holder]:
    return type(name, (_Holder,), {})


def _geometry(wkb: bytes) -> bytes:
    """A shapely geometry stays well-known binary until all of a scene's are decoded at once."""
    if not isinstance(wkb, bytes):
        raise TypeError(f"a geometry must be bytes, found {type(wkb).__name__}")
    return wkb


def _path(*parts: str) -> str:
    return "/".join(parts)


_PLANNER = "navsim.planning.simulation.planner.pdm_planner"
_STATE = "nuplan.common.actor_state"
KNOWN: dict[tuple[str, str], Any] = {
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
    ("shapely.io", "from_wkb"): _geometry,
    **{("pathlib", name): _path for name in ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath")},
}
"""Names that an official cache may use besides numpy's, and what stands for them here."""


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
        data = lzma.decompress(path.read_bytes())
        if any(name in data for name in _VERSION_2_FIELDS):
            raise OfficialCacheError(
                "this is a cache of navsim v2, which holds other fields; only caches of v1.1 are read. Build the "
                "packed cache from logs and maps instead"
            )
        cache = unpickle_plain(data, path, KNOWN)
        scene = _Reader(cache).scene(path.parent.name, path.parts[-4] if len(path.parts) > 3 else "")
        pack_scenes([scene])  # refuses NaN and arrays that contradict each other
        return scene
    except FileNotFoundError:
        raise
    except (OSError, lzma.LZMAError, EOFError) as error:
        problem = f"not a whole LZMA file ({type(error).__name__}: {error})"
    except UnsafePickleError as error:
        problem = f"names a class that caches of navsim v1.1 do not hold: {_without_path(error, path)}"
    except (AttributeError, LookupError, TypeError, ArithmeticError, shapely.errors.ShapelyError) as error:
        problem = f"not the content that navsim v1.1 writes ({type(error).__name__}: {error})"
    except ValueError as error:
        problem = _without_path(error, path)
    raise OfficialCacheError(f"token {path.parent.name}: {path}: {' '.join(problem.split())}")


def _without_path(error: Exception, path: Path) -> str:
    return str(error).removeprefix(f"{path}: ")


class _Reader:
    """Fields of a `MetricScene` from the holders of one cache."""

    def __init__(self, cache: Any) -> None:
        if type(cache) is not KNOWN["navsim.planning.metric_caching.metric_cache", "MetricCache"]:
            raise TypeError(f"expected a MetricCache, found {type(cache).__name__}")
        self._cache = cache

    def scene(self, token: str, log_name: str) -> MetricScene:
        cache = self._cache
        knots = cache.trajectory.args[0]
        polygon_rings, ring_vertices, vertices = _rings(cache.drivable_area_map.args[2])
        return MetricScene(
            token=token,
            log_name=log_name,
            ego_state=_state(cache.ego_state),
            ego_time_us=int(cache.ego_state._time_point.time_us),
            reference_states=np.array([_rear_axle(knot) for knot in knots], dtype=np.float64),
            reference_times_us=np.array([knot._time_point.time_us for knot in knots], dtype=np.int64),
            polygon_tokens=tuple(map(str, cache.drivable_area_map.args[0])),
            polygon_types=tuple(_layer(layer.args[0]) for layer in cache.drivable_area_map.args[1]),
            polygon_ring_offsets=polygon_rings,
            ring_offsets=ring_vertices,
            vertices=vertices,
            route_lane_ids=tuple(map(str, cache.route_lane_ids)),
            centerline=np.array([(p.x, p.y, p.heading) for p in cache.centerline.args[0]], dtype=np.float64),
            **_objects(cache.observation),
            provenance={"reference": REFERENCE, "centerline": CENTERLINE},
        )


def _rear_axle(ego: Any) -> tuple[float, float, float]:
    """Pose as the scorer reads it: the stored center, moved back along the heading."""
    center = ego._car_footprint._center
    x, y, heading = float(center.x), float(center.y), float(center.heading)
    stored = vars(ego._car_footprint).get("rear_axle")  # there when the devkit has asked for it before
    if stored is not None:
        return float(stored.x), float(stored.y), float(stored.heading)
    return x - REAR_AXLE_TO_CENTER * np.cos(heading), y - REAR_AXLE_TO_CENTER * np.sin(heading), heading


def _state(ego: Any) -> NDArray[np.float64]:
    car = ego._dynamic_car_state
    velocity, acceleration = car._rear_axle_velocity_2d, car._rear_axle_acceleration_2d
    return np.array(
        [
            *_rear_axle(ego),
            velocity._x, velocity._y, acceleration._x, acceleration._y,
            ego._tire_steering_angle, car._tire_steering_rate, car._angular_velocity, car._angular_acceleration,
        ],
        dtype=np.float64,
    )  # fmt: skip


def _layer(number: int) -> str:
    if number not in MAP_LAYERS:
        raise ValueError(f"map layer {number} in the drivable-area map; expected one of {MAP_LAYERS}")
    return MAP_LAYERS[number]


def _polygons(wkb: Sequence[bytes]) -> NDArray[np.object_]:
    geometries = np.asarray(shapely.from_wkb(np.array(list(wkb), dtype=object)))
    kinds = {shapely.GeometryType(kind).name for kind in shapely.get_type_id(geometries)}
    if kinds - {"POLYGON"}:
        raise ValueError(f"expected polygons, found {', '.join(sorted(kinds))}")
    return geometries


def _rings(wkb: Sequence[bytes]) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """Offsets polygon -> rings and ring -> vertices, and open rings."""
    polygons = _polygons(wkb)
    rings, owner = shapely.get_rings(polygons, return_index=True)
    sizes = shapely.get_num_coordinates(rings)
    closed = shapely.get_coordinates(rings)
    last = np.zeros(len(closed), dtype=bool)
    last[np.cumsum(sizes) - 1] = True
    return (
        np.concatenate([[0], np.cumsum(np.bincount(owner, minlength=len(polygons)))]).astype(np.int64),
        np.concatenate([[0], np.cumsum(sizes - 1)]).astype(np.int64),
        closed[~last],
    )


def _objects(observation: Any) -> dict[str, Any]:
    """The object fields of a `MetricScene`."""
    maps = observation._occupancy_maps
    if len(maps) != NUM_FRAMES or observation._observation_sample_res != 1:
        raise ValueError(
            f"{len(maps)} object frames at sampling {observation._observation_sample_res}; expected {NUM_FRAMES} at 1"
        )
    if observation._collided_track_ids:
        raise ValueError("objects are marked as collided before scoring, which this reader does not support")
    unique = observation._unique_objects
    names, wkb, frames = [], [], []
    for frame, occupancy in enumerate(maps):
        tokens, geometries = occupancy.args[:2]
        if len(tokens) != len(geometries):
            raise ValueError(f"object frame {frame} has {len(tokens)} tokens and {len(geometries)} polygons")
        for token, geometry in zip(tokens, geometries):
            if token in unique:
                names.append(token)
                wkb.append(geometry)
                frames.append(frame)
            elif observation._red_light_token not in token:  # red lights are no objects: the v1 score skips them
                raise ValueError(f"object frame {frame} holds {token}, which is no known object")
    types = {token: _object_type(found) for token, found in unique.items()}
    seen = sorted(dict.fromkeys(names), key=lambda token: OBJECT_TYPES.index(types[token]))
    position = {token: i for i, token in enumerate(seen)}
    track = np.array([position[name] for name in names], dtype=np.int64)
    frame_of_row = np.array(frames, dtype=np.int64)
    boxes = interpolated_between_key_frames(frame_of_row, track, _boxes(wkb), SNAP)
    first_size = np.array([(unique[token]._box._length, unique[token]._box._width) for token in seen], dtype=np.float64)
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


def _object_type(found: Any) -> str:
    number = found._tracked_object_type.args[0]
    if not 0 <= number < len(OBJECT_TYPES):
        raise ValueError(f"object type {number}; expected 0 to {len(OBJECT_TYPES) - 1}")
    return OBJECT_TYPES[number]


def _speed(found: Any, kind: str) -> float:
    return float(np.hypot(found._velocity._x, found._velocity._y)) if kind in AGENT_TYPES else 0.0


def _boxes(wkb: Sequence[bytes]) -> NDArray[np.float64]:
    """(box, 5) center, heading, length and width of rectangles whose corners start front left and go round by rear
    left, as nuPlan writes them."""
    if len(wkb) == 0:
        return np.zeros((0, 5))
    polygons = _polygons(wkb)
    if (shapely.get_num_coordinates(polygons) != 5).any():
        raise ValueError("an object is not a rectangle of four corners")
    front_left, rear_left, rear_right, front_right = np.moveaxis(
        shapely.get_coordinates(polygons).reshape(-1, 5, 2)[:, :4], 1, 0
    )
    along = (front_left - rear_left + front_right - rear_right) / 2
    across = (front_left - front_right + rear_left - rear_right) / 2
    length, width = np.linalg.norm(along, axis=1), np.linalg.norm(across, axis=1)
    # The longer side gives the better heading; across is 90 degrees to the left of along.
    by_along = np.arctan2(along[:, 1], along[:, 0])
    by_across = np.arctan2(-across[:, 0], across[:, 1])
    heading = np.where(length >= width, by_along, by_across)
    center = rear_right + (along + across) / 2
    return np.column_stack([center, heading, length, width])
