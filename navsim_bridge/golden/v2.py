"""Stored scenes with the official EPDMS results (``golden_v2`` format): file -> MetricScene with ``v2``."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from navsim_bridge.golden.v1 import golden_fields, golden_scene
from navsim_bridge.pdm.metric_scene import EPDMS_FRAMES, EPDMSInputs, MetricScene
from navsim_bridge.pdm.simulate import simulate
from navsim_bridge.pdm.terms.comfort import motion_of

_RED = "red_light_"

FRAGILE_COLUMNS = {
    "no_at_fault_collisions": (0,),
    "drivable_area_compliance": (1,),
    "driving_direction_compliance": (4,),
    "traffic_light_compliance": (),
    "ego_progress": (0, 1, 4),
    "time_to_collision_within_bound": (2,),
    "lane_keeping": (),
    "history_comfort": (3,),
    "two_frame_extended_comfort": (),
    "multiplicative_metrics_prod": (0, 1, 4),
    "pdm_score": (0, 1, 2, 3, 4),
    "score": (0, 1, 2, 3, 4),
    "score_without_ec": (0, 1, 2, 3, 4),
}
"""Columns of the v1 file's ``dbg_fragile`` whose flip may change a sub-score of v2."""


@dataclass(frozen=True)
class GoldenEPDMS:
    """One golden v2 file: the inputs, and whatever results it holds."""

    scene: MetricScene
    family: str
    proposals: NDArray[np.float64]  # (candidate, 8, 3) ego frame
    previous_plans: NDArray[np.float64]  # (candidate, 8, 3) made one frame earlier, in that frame's ego frame
    previous_state: NDArray[np.float64]  # (11,) ego state then
    previous_time_us: int
    previous_seconds: float  # how much earlier that was [s]
    results: dict[str, NDArray]  # fields that start with res_, unf_, main_, human_, dbg_, prev_sim or removed_

    def previous_motion(self) -> Tensor:
        """(candidate, 41, 3) motion of the previous plans, for ``two_frame_extended_comfort``."""
        state = torch.from_numpy(np.asarray(self.previous_state, dtype=np.float64))[None]
        plans = torch.from_numpy(np.asarray(self.previous_plans, dtype=np.float64))[None]
        return motion_of(simulate(state, torch.tensor([self.previous_time_us]), plans))[0]


def read_golden_epdms(path: str | Path) -> GoldenEPDMS:
    """Read a golden v2 file. Only input fields go into the scene; results are optional.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a needed input field is missing, or a red connector is not on the map.
    """
    path = Path(path)
    data = golden_fields(path)
    try:
        scene = golden_scene(path, data)
        times = data["past_time_us"]
        golden = GoldenEPDMS(
            scene=dataclasses.replace(scene, v2=_inputs(path, scene, data)),
            family=str(data.get("family", "unknown")),
            proposals=data["proposals"],
            previous_plans=data["prev_proposals"],
            previous_state=data["past_states_raw"][2],
            previous_time_us=int(times[2]),
            previous_seconds=float(times[3] - times[2]) * 1e-6,
            results={
                name: value
                for name, value in data.items()
                if name.startswith(("res_", "unf_", "main_", "human_", "dbg_", "prev_sim", "removed_"))
                and name not in ("human_kind", "human_trajectory")
            },
        )
    except KeyError as error:
        raise ValueError(f"{path}: golden v2 file lacks the input field {error}") from error
    return golden


def _inputs(path: Path, scene: MetricScene, data: dict[str, NDArray]) -> EPDMSInputs:
    offsets = np.asarray(data["tl_frame_offsets"], dtype=np.int64)
    of_frame = np.repeat(np.arange(EPDMS_FRAMES), np.diff(offsets))
    tokens = [token.removeprefix(_RED) for token in data["tl_frame_tokens"].tolist()]
    lights = sorted(set(tokens))
    red = np.zeros((EPDMS_FRAMES, len(lights)), dtype=bool)
    red[of_frame, [lights.index(token) for token in tokens]] = True
    rings: list[NDArray] = []
    rings_of_light = []
    for token in lights:
        found = [
            i
            for i, (name, kind) in enumerate(zip(scene.polygon_tokens, scene.polygon_types))
            if name == token and kind in ("LANE", "LANE_CONNECTOR")
        ]
        if not found:
            raise ValueError(f"{path}: lane connector {token} is red but not on the map")
        polygon = found[-1]  # a repeated token: the devkit's dictionary of lanes keeps the last of either kind
        first, last = scene.polygon_ring_offsets[polygon], scene.polygon_ring_offsets[polygon + 1]
        bounds = scene.ring_offsets
        rings += [scene.vertices[bounds[ring] : bounds[ring + 1]] for ring in range(first, last)]
        rings_of_light.append(last - first)
    return EPDMSInputs(
        human_plan=data["human_trajectory"] if str(data["scene_type"]) == "ORIGINAL" else None,
        past_states=data["past_states_raw"],
        past_times_us=data["past_time_us"],
        light_tokens=tuple(lights),
        light_ring_offsets=np.concatenate([[0], np.cumsum(rings_of_light)]).astype(np.int64),
        ring_offsets=np.concatenate([[0], np.cumsum([len(ring) for ring in rings])]).astype(np.int64),
        vertices=np.concatenate(rings) if rings else np.zeros((0, 2)),
        light_red=red,
    )
