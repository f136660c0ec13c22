"""Lane keeping (EPDMS): does the ego stay near the centerline?"""

from __future__ import annotations

import torch
from torch import Tensor

from navsim_bridge.pdm.geometry import ego_center, near_polyline
from navsim_bridge.pdm.scene import SceneBatch
from navsim_bridge.pdm.terms.areas import EgoAreas

_LANE_DEVIATION = 0.5  # [m] further from the centerline is off the lane
_LANE_STEPS = 20  # consecutive steps off the lane that fail


def lane_keeping(scenes: SceneBatch, states: Tensor, areas: EgoAreas) -> Tensor:
    """0 where the center stays further than 0.5 m from the centerline for 20 steps in a row, else 1.

    Steps with the center in an intersection are passed over: they neither count nor end a row.
    """
    num_scenes, num_candidates, num_times = states.shape[:3]
    points = ego_center(states).view(num_scenes, -1, 2)
    off = ~near_polyline(points, scenes.centerline, scenes.centerline_mask, _LANE_DEVIATION)
    off = off.view(num_scenes, num_candidates, num_times)
    # judged steps move to the front, in order; the others behind them end the last row
    skipped, order = torch.sort(areas.center_in_intersection.to(torch.uint8), dim=-1, stable=True)
    off = torch.gather(off, -1, order) & (skipped == 0)
    steps = torch.arange(1, num_times + 1, device=states.device)
    on_lane_last = torch.where(off, 0, steps).cummax(-1).values
    return ((steps - on_lane_last).amax(-1) < _LANE_STEPS).to(torch.float64)
