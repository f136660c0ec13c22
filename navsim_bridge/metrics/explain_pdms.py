"""Why a plan lost points: the object, the time, the place or the comfort bound, in words."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from navsim_bridge.pdm.formula import PDM_SCORE
from navsim_bridge.pdm.geometry import REAR_AXLE, ego_points, points_in_polygons
from navsim_bridge.pdm.parameters import STEP_SECONDS
from navsim_bridge.pdm.scene import SceneBatch, SceneNames
from navsim_bridge.pdm.score import PDMScores, check_plans, score_plans, simulate_plans
from navsim_bridge.pdm.terms.areas import EgoAreas, ego_areas
from navsim_bridge.pdm.terms.collision import judge_contacts
from navsim_bridge.pdm.terms.comfort import BOUNDS, comfort_values
from navsim_bridge.pdm.terms.progress import against_route
from navsim_bridge.pdm.terms.ttc import judge_threats

_LABELS = {column.name: column.label for column in PDM_SCORE}
_CORNERS = ("front left", "rear left", "rear right", "front right")
_WHOLE = 1 - 1e-6  # progress from here on counts as one
_PAIRS_AT_ONCE = 128


@dataclass(frozen=True)
class Loss:
    """One sub-score below one, and what caused it; fields that do not apply are None."""

    sub_score: str  # the devkit's name
    value: float  # of the sub-score
    cause: str  # in words
    time: float | None = None  # [s] when it first happened; for comfort when the bound was exceeded most
    object_token: str | None = None
    object_type: str | None = None
    polygon_token: str | None = None  # the drivable area that was left, or the intersection that made a hit count


@dataclass(frozen=True)
class Explanation:
    """All that one plan lost, one entry per sub-score in the devkit's order; empty when it lost nothing."""

    losses: tuple[Loss, ...] = ()

    @property
    def text(self) -> str:
        """One line for a table cell, e.g. "NC 0: hits VEHICLE 3f at t = 1.2 s"; empty when nothing was lost."""
        return "; ".join(f"{_LABELS[loss.sub_score]} {loss.value:.3g}: {loss.cause}" for loss in self.losses)


@torch.no_grad()
def explain(
    scenes: SceneBatch, plans: Tensor, scores: PDMScores | None = None, interval: float | None = None
) -> list[list[Explanation]]:
    """For every scene and candidate, what cost the points of the PDM score v1.

    Only plans that lost something are looked at again; that costs about as much as scoring them one by one.

    Args:
        scenes: with names, as ``SceneBatch.from_scenes`` makes them.
        plans: (scene, candidate, 8, 3) as for ``score_plans``.
        scores: what ``score_plans`` gave for these scenes and plans; computed when None.
        interval: of poses [s], as for ``score_plans``.

    Raises:
        ValueError: scenes without names, scores of another shape, or plans that ``score_plans`` refuses.
    """
    if scenes.names is None:
        raise ValueError(
            "these scenes carry no names (SceneBatch.names) of objects and polygons: nothing to explain by"
        )
    plans = check_plans(scenes, plans, interval)
    if scores is None:
        scores = score_plans(scenes, plans, interval=interval)
    if scores.score.shape != plans.shape[:2]:
        raise ValueError(
            f"scores are of {tuple(scores.score.shape)} scenes and candidates, plans of {tuple(plans.shape[:2])}"
        )
    values = _Values(scores)
    explained = [[Explanation()] * plans.shape[1] for _ in range(len(scenes))]
    lost = np.argwhere(values.lost)
    for start in range(0, len(lost), _PAIRS_AT_ONCE):
        pairs = lost[start : start + _PAIRS_AT_ONCE]
        rows, candidates = pairs.T
        of_pairs = scenes.select(rows)
        states = simulate_plans(of_pairs, plans[rows, candidates].unsqueeze(1), interval)[:, 1:]
        for (row, candidate), losses in zip(pairs.tolist(), _explain_pairs(of_pairs, states, values, pairs)):
            explained[row][candidate] = Explanation(tuple(losses))
    return explained


class _Values:
    """The parts of PDMScores that explanations need, as numpy arrays (scene, candidate)."""

    def __init__(self, scores: PDMScores) -> None:
        scores = scores.to("cpu")
        self.collision = scores.no_at_fault_collisions.numpy()
        self.drivable = scores.drivable_area_compliance.numpy()
        self.progress = scores.ego_progress.numpy()
        self.ttc = scores.time_to_collision_within_bound.numpy()
        self.comfort = scores.comfort.numpy()
        self.direction = scores.driving_direction_compliance.numpy()
        self.raw = scores.progress_raw.numpy()
        self.scale = scores.progress_scale.numpy()
        self.collision_time = scores.collision_time_index.numpy() * STEP_SECONDS
        self.ttc_time = scores.ttc_time_index.numpy() * STEP_SECONDS
        self.lost = (self.progress < _WHOLE) | (
            np.stack((self.collision, self.drivable, self.ttc, self.comfort, self.direction)) < 1
        ).any(axis=0)


def _explain_pairs(scenes: SceneBatch, states: Tensor, values: _Values, pairs: NDArray[np.int64]) -> list[list[Loss]]:
    """Losses of each pair; ``scenes`` and ``states`` (pair, 1, 41, 11) hold one pair per row."""
    areas = ego_areas(scenes, states)
    at = tuple(pairs.T)
    columns = (
        _collisions(scenes, states, areas, values.collision[at], values.collision_time[at]),
        _drivable_area(scenes, states, areas, values.drivable[at]),
        _progress(values, at),
        _time_to_collision(scenes, states, areas, values.ttc[at], values.ttc_time[at]),
        _comfort(states, values.comfort[at]),
        _direction(states, areas, values.direction[at]),
    )
    return [[column[row] for column in columns if row in column] for row in range(len(pairs))]


def _names(scenes: SceneBatch, row: int) -> SceneNames:
    assert scenes.names is not None  # explain() has checked
    return scenes.names[row]


def _unclear(sub_score: str, value: float, time: float | None = None) -> Loss:
    """For a verdict that hangs on the last bit, and fell the other way in this batch."""
    when = "" if time is None else f" at t = {time:.1f} s"
    return Loss(sub_score, value, f"on the very edge of the rule{when}", time)


def _collisions(
    scenes: SceneBatch, states: Tensor, areas: EgoAreas, values: NDArray, times: NDArray
) -> dict[int, Loss]:
    contacts = judge_contacts(scenes, states, areas)
    hits = contacts.hits
    off_road = areas.non_drivable[hits.scene, hits.candidate, hits.key]
    columns = (hits.scene, hits.key, hits.track, contacts.agent, contacts.standing, contacts.frontal, off_road)
    charged: dict[int, list[tuple[int, float, int, str]]] = {}
    for row, key, track, agent, standing, frontal, off in _where(contacts.at_fault, columns):
        if standing:
            how = " which stands" if agent else ""
        elif frontal:
            how = " with its front"
        else:
            how = " with its side while off the drivable area" if off else " with its side while between lanes"
        charged.setdefault(row, []).append((key, 0.0 if agent else 0.5, track, how))
    losses = {}
    for row in np.flatnonzero(values < 1).tolist():
        value = float(values[row])
        found = sorted(charged.get(row, []))
        first = [hit for hit in found if hit[0] == found[0][0]]
        decisive = min(first, key=lambda hit: hit[1:]) if first else None
        if decisive is None:
            losses[row] = _unclear("no_at_fault_collisions", value, float(times[row]))
            continue
        told = [decisive, *[hit for hit in found if hit[1] < decisive[1]][:1]]  # a static hit first, then an agent
        names = _names(scenes, row)
        cause = " and ".join(
            f"hits {names.track_types[track]} {names.track_tokens[track]} at t = {key * STEP_SECONDS:.1f} s{how}"
            for key, _, track, how in told
        )
        key, _, track, _ = decisive
        losses[row] = Loss(
            "no_at_fault_collisions",
            value,
            cause,
            key * STEP_SECONDS,
            names.track_tokens[track],
            names.track_types[track],
        )
    return losses


def _drivable_area(scenes: SceneBatch, states: Tensor, areas: EgoAreas, values: NDArray) -> dict[int, Loss]:
    rows = np.flatnonzero(values == 0)
    if len(rows) == 0:
        return {}
    part, picked = scenes.select(rows), torch.from_numpy(rows).to(states.device)
    off = areas.non_drivable[picked, 0]
    time = off.to(torch.uint8).argmax(-1)
    row = torch.arange(len(rows), device=states.device)
    corners = ego_points(states[picked, 0])[:, :, :4]
    now, before = corners[row, time], corners[row, (time - 1).clamp_min(0)]
    inside = points_in_polygons(
        torch.cat((now, before), dim=1), part.chain_vertices, part.chain_polygon, part.num_polygons
    )
    inside &= part.polygon_drivable.unsqueeze(1)
    outside, left = (~inside[:, :4].any(-1)).tolist(), inside[:, 4:].tolist()
    cos, sin = part.ego_state[:, 2:3].cos(), part.ego_state[:, 2:3].sin()
    x, y = now.unbind(-1)
    ego_x, ego_y = (cos * x + sin * y).tolist(), (cos * y - sin * x).tolist()
    losses = {}
    for i, (row_index, known, key) in enumerate(zip(rows.tolist(), off.any(-1).tolist(), time.tolist())):
        out = [corner for corner in range(4) if outside[i][corner]]
        if not known or not out:
            losses[row_index] = _unclear("drivable_area_compliance", 0.0)
            continue
        names = _names(part, i)
        polygon = left[i][out[0]].index(True) if key > 0 and any(left[i][out[0]]) else None
        cause = (
            f"{'leaves' if key else 'starts off'} the drivable area at t = {key * STEP_SECONDS:.1f} s, "
            f"{_corners(out)} at x = {ego_x[i][out[0]]:.2f} m "
            f"y = {ego_y[i][out[0]]:.2f} m in the ego frame of t = 0"
        )
        token = None
        if polygon is not None:
            token = names.polygon_tokens[polygon]
            cause += f", out of {names.polygon_types[polygon]} {token}"
        losses[row_index] = Loss("drivable_area_compliance", 0.0, cause, key * STEP_SECONDS, polygon_token=token)
    return losses


def _corners(out: list[int]) -> str:
    if len(out) == 4:
        return f"all corners, {_CORNERS[0]}"
    return " and ".join(_CORNERS[corner] for corner in out) + " corner"


def _progress(values: _Values, at: tuple[NDArray[np.int64], ...]) -> dict[int, Loss]:
    product = values.collision[at] * values.drivable[at]
    losses = {}
    for row in np.flatnonzero(values.progress[at] < _WHOLE).tolist():
        meters, best, value = (float(column[at][row]) for column in (values.raw, values.scale, values.progress))
        if product[row] == 0:
            cause = f"{meters:.1f} m along the centerline count for nothing after a failed multiplier"
        else:
            cause = f"{meters:.1f} m along the centerline"
            cause += "" if product[row] == 1 else f" times {product[row]:g} for the collision"
            cause += f" against {best:.1f} m"
        losses[row] = Loss("ego_progress", value, cause)
    return losses


def _time_to_collision(
    scenes: SceneBatch, states: Tensor, areas: EgoAreas, values: NDArray, times: NDArray
) -> dict[int, Loss]:
    threats = judge_threats(scenes, states, areas)
    hits = threats.hits
    at = (hits.scene, hits.candidate, threats.time)
    columns = (hits.scene, threats.time, threats.steps, hits.track, threats.ahead, areas.non_drivable[at],
               areas.multiple_lanes[at])  # fmt: skip
    first: dict[int, tuple[int, ...]] = {}
    for row, *threat in _where(threats.infraction, columns):
        first[row] = min(first.get(row, tuple(threat)), tuple(threat))
    losses = {}
    for row in np.flatnonzero(values < 1).tolist():
        value = float(values[row])
        if row not in first:
            losses[row] = _unclear("time_to_collision_within_bound", value, float(times[row]))
            continue
        key, steps, track, ahead, off_road, between = first[row]
        names, polygon = _names(scenes, row), None
        kind, token = names.track_types[track], names.track_tokens[track]
        what = f"would hit {kind} {token} within {steps * STEP_SECONDS:.1f} s" if steps else f"touches {kind} {token}"
        if ahead:
            where = "ahead"
        elif off_road or between:
            where = f"beside it while {'off the drivable area' if off_road else 'between lanes'}"
        else:
            polygon = _intersection_at(scenes, states, row, key)
            where = f"beside it while in INTERSECTION {polygon}"
        cause = f"{what} {where} at t = {key * STEP_SECONDS:.1f} s"
        losses[row] = Loss("time_to_collision_within_bound", value, cause, key * STEP_SECONDS, token, kind, polygon)
    return losses


def _intersection_at(scenes: SceneBatch, states: Tensor, row: int, key: int) -> str | None:
    """Token of the intersection that holds the rear axle of a pair at a time index."""
    part = scenes.select([row])
    axle = ego_points(states[row : row + 1, 0, key])[:, REAR_AXLE:]
    inside = points_in_polygons(axle, part.chain_vertices, part.chain_polygon, part.num_polygons)
    found = (inside[0, 0] & part.polygon_intersection[0]).nonzero().squeeze(-1).tolist()
    return _names(part, 0).polygon_tokens[found[0]] if found else None


def _comfort(states: Tensor, values: NDArray) -> dict[int, Loss]:
    quantities = torch.stack(comfort_values(states[:, 0]), dim=1).cpu().numpy()  # (pair, 6, 41)
    losses = {}
    for row in np.flatnonzero(values == 0).tolist():
        causes, times = [], []
        for bound, course in zip(BOUNDS, quantities[row]):
            excess = np.maximum(course - bound.high, bound.low - course)
            worst = int(excess.argmax())
            if excess[worst] >= 0:
                limit = bound.high if course[worst] > 0 else bound.low
                times.append(worst * STEP_SECONDS)
                causes.append(
                    f"{bound.quantity} {course[worst]:.4g} {bound.unit} beyond {limit:g} at t = {times[-1]:.1f} s"
                )
        if causes:
            losses[row] = Loss("comfort", 0.0, " and ".join(causes), times[0])
        else:
            losses[row] = _unclear("comfort", 0.0)
    return losses


def _direction(states: Tensor, areas: EgoAreas, values: NDArray) -> dict[int, Loss]:
    course = against_route(states, areas)[:, 0].cpu().numpy()
    losses = {}
    for row in np.flatnonzero(values < 1).tolist():
        worst = int(course[row].argmax())
        time = (worst + 1) * STEP_SECONDS
        cause = f"{course[row, worst]:.1f} m off the lanes of the route within a second at t = {time:.1f} s (no weight)"
        losses[row] = Loss("driving_direction_compliance", float(values[row]), cause, time)
    return losses


def _where(mask: Tensor, columns: tuple[Tensor, ...]) -> Iterator[tuple[int, ...]]:
    """Rows of the columns where the mask holds, as Python numbers."""
    return zip(*(column[mask].tolist() for column in columns))
