"""Stored scenes with the official scorer's results (``golden_v1`` format): file -> MetricScene."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from navsim_bridge.pdm.metric_scene import MetricScene

FRAGILE_COLUMNS = {
    "no_at_fault_collisions": (0,),
    "drivable_area_compliance": (1,),
    "time_to_collision_within_bound": (2,),
    "comfort": (3,),
    "driving_direction_compliance": (4,),
    # progress and score contain the multipliers; the score also the other terms
    "ego_progress": (0, 1),
    "score": (0, 1, 2, 3),
}
"""Columns of ``dbg_fragile`` whose flip may change a sub-score."""


@dataclass(frozen=True)
class GoldenScene:
    """One golden file: the inputs, and whatever results it holds."""

    scene: MetricScene
    family: str
    proposals: NDArray[np.float64]  # (candidate, 8, 3) ego frame
    results: dict[str, NDArray]  # every field that starts with res_, ref_, dbg_ or sim_; may be empty


def read_golden(path: str | Path) -> GoldenScene:
    """Read a golden file. Only input fields go into the scene; results are optional.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a needed input field is missing.
    """
    path = Path(path)
    data = golden_fields(path)
    try:
        scene, proposals = golden_scene(path, data), data["proposals"]
    except KeyError as error:
        raise ValueError(f"{path}: golden file lacks the input field {error}") from error
    results = {name: value for name, value in data.items() if name.startswith(("res_", "ref_", "dbg_", "sim_"))}
    return GoldenScene(scene, str(data.get("family", "unknown")), proposals, results)


def golden_fields(path: Path) -> dict[str, NDArray]:
    """All arrays of a golden file."""
    with np.load(path) as file:
        return {name: file[name] for name in file.files}


def golden_scene(path: Path, data: dict[str, NDArray]) -> MetricScene:
    """The scene of a golden file of either version; KeyError for a missing field."""
    return MetricScene(
        token=str(data["token"]),
        log_name=path.stem,
        ego_state=data["ego_state_array"],
        ego_time_us=int(data["ego_time_us"]),
        reference_states=data["ref_states_raw"][:, :3],
        reference_times_us=data["ref_time_us"],
        polygon_tokens=tuple(data["map_tokens"].tolist()),
        polygon_types=tuple(data["map_types"].tolist()),
        polygon_ring_offsets=data["map_poly_ring_offsets"],
        ring_offsets=data["map_ring_offsets"],
        vertices=data["map_coords"],
        route_lane_ids=tuple(data["route_lane_ids"].tolist()),
        centerline=data["centerline"],
        frame_offsets=data["frame_offsets"],
        object_track=data["obj_track_idx"],
        object_boxes=data["obj_boxes"],
        track_tokens=tuple(data["track_tokens"].tolist()),
        track_types=tuple(data["track_types"].tolist()),
        track_first_speed=np.hypot(data["track_first_velocity"][:, 0], data["track_first_velocity"][:, 1]),
        provenance={"scene": f"golden file {path.name}", "reference": str(data.get("ref_kind", "unknown"))},
    )
