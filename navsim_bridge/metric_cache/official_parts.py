"""What official metric caches of every version hold alike: ego states, polygons, the map, and names in the files."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from navsim_bridge.ego import REAR_AXLE_TO_CENTER
from navsim_bridge.files.nuplan_objects import GEOMETRY, MOST_SIZE, NUPLAN, Value, holders, se2, vector

Int = NDArray[np.int64]

REFERENCE = "PDM-Closed, from an official metric cache"
CENTERLINE = "PDM-Closed, from an official metric cache"
MAP_LAYERS = {0: "LANE", 1: "INTERSECTION", 5: "DRIVABLE_AREA", 11: "LANE_CONNECTOR", 15: "CARPARK_AREA",
              17: "ROADBLOCK", 18: "ROADBLOCK_CONNECTOR"}  # fmt: skip
"""nuPlan's numbers of the map layers that a drivable-area map may hold."""
MOST_POLYGONS = 100_000
"""Of all objects in all frames."""
_WKB_POLYGON, _WKB_SRID, _WKB_Z = 3, 0x20000000, 0x80000000
"""Kind, and flags of extended well-known binary, which shapely writes."""
_PLANNER = "navsim.planning.simulation.planner.pdm_planner"
_STATE = "nuplan.common.actor_state"
KNOWN = (
    NUPLAN
    | GEOMETRY
    | holders(
        {
            "navsim.common.dataclasses": ("Trajectory",),
            "navsim.common.enums": ("SceneFrameType",),
            "navsim.planning.metric_caching.metric_cache": ("MetricCache", "MapParameters"),
            f"{_PLANNER}.observation.pdm_observation": ("PDMObservation",),
            f"{_PLANNER}.observation.pdm_occupancy_map": ("PDMDrivableMap", "PDMOccupancyMap"),
            f"{_PLANNER}.utils.pdm_path": ("PDMPath",),
            f"{_STATE}.car_footprint": ("CarFootprint",),
            f"{_STATE}.dynamic_car_state": ("DynamicCarState",),
            f"{_STATE}.ego_state": ("EgoState",),
            f"{_STATE}.vehicle_parameters": ("VehicleParameters",),
            "nuplan.common.maps.maps_datatypes": ("SemanticMapLayer",),
            "nuplan.planning.simulation.trajectory.interpolated_trajectory": ("InterpolatedTrajectory",),
            "nuplan.planning.simulation.trajectory.trajectory_sampling": ("TrajectorySampling",),
        }
    )
)
"""Names that an official cache may use besides numpy's, and what stands for their objects here."""


def shared_fields(cache: Value) -> dict[str, Any]:
    """The fields of a `MetricScene` that caches of every version hold in the same way."""
    knots = cache["trajectory"].argument(0).items()
    area = cache["drivable_area_map"]
    polygon_rings, ring_vertices, vertices = open_rings(polygons(area.argument(2)))
    return {
        "ego_state": state(cache["ego_state"]),
        "ego_time_us": time(cache["ego_state"]),
        "reference_states": np.array([rear_axle(knot) for knot in knots], dtype=np.float64),
        "reference_times_us": np.array([time(knot) for knot in knots], dtype=np.int64),
        "polygon_tokens": area.argument(0).texts(),
        "polygon_types": tuple(layer(kind.argument(0).whole()) for kind in area.argument(1).items()),
        "polygon_ring_offsets": polygon_rings,
        "ring_offsets": ring_vertices,
        "vertices": vertices,
        "route_lane_ids": cache["route_lane_ids"].texts(),
        "centerline": np.array([se2(point) for point in cache["centerline"].argument(0).items()], dtype=np.float64),
        "provenance": {"reference": REFERENCE, "centerline": CENTERLINE},
    }


def time(ego: Value) -> int:
    """[us] of an EgoState."""
    return ego["_time_point"]["time_us"].whole()


def rear_axle(ego: Value) -> tuple[float, float, float]:
    """Pose as the scorer reads it: the stored center, moved back along the heading."""
    footprint = ego["_car_footprint"]
    stored = footprint.get("rear_axle")  # there when the devkit has asked for it before
    if stored is not None and stored.found is not None:
        return se2(stored)
    x, y, heading = se2(footprint["_center"])
    return x - REAR_AXLE_TO_CENTER * np.cos(heading), y - REAR_AXLE_TO_CENTER * np.sin(heading), heading


def state(ego: Value) -> NDArray[np.float64]:
    """(11,) of an EgoState, columns as in `MetricScene`."""
    car = ego["_dynamic_car_state"]
    velocity, acceleration = car["_rear_axle_velocity_2d"], car["_rear_axle_acceleration_2d"]
    rates = [ego["_tire_steering_angle"], car["_tire_steering_rate"], car["_angular_velocity"],
             car["_angular_acceleration"]]  # fmt: skip
    moving = (*vector(velocity), *vector(acceleration), *(rate.number() for rate in rates))
    return np.array([*rear_axle(ego), *moving], dtype=np.float64)


def layer(number: int) -> str:
    """Name of a map layer."""
    if number not in MAP_LAYERS:
        raise ValueError(f"map layer {number} in the drivable-area map; expected one of {MAP_LAYERS}")
    return MAP_LAYERS[number]


def polygons(geometries: Value) -> list[list[NDArray[np.float64]]]:
    """Closed rings (vertex, 2) of polygons that are given as well-known binary."""
    return [polygon(geometry.argument(0, "Geometry")) for geometry in geometries.items()]


def polygon(wkb: Value) -> list[NDArray[np.float64]]:
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


def open_rings(shapes: Sequence[Sequence[NDArray[np.float64]]]) -> tuple[Int, Int, NDArray[np.float64]]:
    """Offsets polygon -> rings and ring -> vertices, and the vertices of open rings."""
    rings = [ring[:-1] for shape in shapes for ring in shape]
    vertices = np.concatenate([np.zeros((0, 2)), *rings])
    check_size("the map", vertices)
    return (
        np.cumsum([0, *(len(shape) for shape in shapes)], dtype=np.int64),
        np.cumsum([0, *(len(ring) for ring in rings)], dtype=np.int64),
        vertices,
    )


def check_size(what: str, coordinates: NDArray[np.float64]) -> None:
    """Raise ValueError for coordinates that cannot be."""
    if not (np.abs(coordinates) <= MOST_SIZE).all():
        raise ValueError(f"{what} has a coordinate of more than {MOST_SIZE:g} m, or NaN")
