"""In words, what cost plans points of EPDMS: the sub-score, and when or by which bound it was lost."""

from __future__ import annotations

import math

import torch

from navsim_bridge.pdm.epdms import TERMS, EPDMSTerms
from navsim_bridge.pdm.parameters import STEP_SECONDS
from navsim_bridge.pdm.terms.comfort import BOUNDS

_NON_DRIVABLE = 1  # column of EPDMSTerms.ego_areas


def reasons(terms: EPDMSTerms) -> list[list[str]]:
    """Per scene and candidate one line on every sub-score below one, before the human filter; empty if none is.

    Sub-scores that the recorded driver fails as well are marked, since the filter may forgive them.
    """
    values, human = terms.values.tolist(), terms.human.tolist()
    lines = []
    for scene, candidates in enumerate(values):
        forgiven = {name for name, value in zip(TERMS, human[scene]) if value == 0}
        lines.append([_line(terms, scene, candidate, row, forgiven) for candidate, row in enumerate(candidates)])
    return lines


def _line(terms: EPDMSTerms, scene: int, candidate: int, row: list[float], forgiven: set[str]) -> str:
    parts = []
    for name, value in zip(TERMS, row):
        if value < 1.0 - 1e-6:
            what = _detail(terms, scene, candidate, name, value)
            parts.append(what + (" (the recorded driver fails it, too)" if name in forgiven else ""))
    return "; ".join(parts)


def _detail(terms: EPDMSTerms, scene: int, candidate: int, name: str, value: float) -> str:
    at = (scene, candidate)
    if name == "no_at_fault_collisions":
        kind = "an agent" if value == 0 else "a static object"
        return f"hits {kind} at {_seconds(terms.collision_time_index[at].item())}"
    if name == "drivable_area_compliance":
        first = terms.ego_areas[at][:, _NON_DRIVABLE].to(torch.uint8).argmax().item()
        return f"leaves the drivable area at {_seconds(first)}"
    if name == "driving_direction_compliance":
        return f"drives {'6 m or more' if value == 0 else '2 m or more'} off the route's lanes within a second"
    if name == "traffic_light_compliance":
        return "is on a lane connector of the route whose light is red"
    if name == "ego_progress":
        return (
            f"advances {terms.progress_raw[at].item():.1f} m, {100 * value:.0f} % of the further of plan and reference"
        )
    if name == "time_to_collision_within_bound":
        return f"would hit something within 0.9 s of {_seconds(terms.ttc_time_index[at].item())}"
    if name == "lane_keeping":
        return "is more than 0.5 m off the centerline for 2 s"
    broken = [b.quantity for b, held in zip(BOUNDS, terms.comfort_flags[at].tolist()) if not held]
    return f"uncomfortable with its past: {', '.join(broken)}"


def _seconds(index: float) -> str:
    return f"{index * STEP_SECONDS:.1f} s" if math.isfinite(index) else "an unknown time"
