"""The fifteen proposals: five IDM speed policies on each of three paths, unrolled for all scenes at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import shapely
from numpy.typing import NDArray

from navsim_bridge.ego import EGO_LENGTH
from navsim_bridge.pdm.parameters import STEP_SECONDS
from navsim_bridge.pdm_closed.boxes import EGO_HALF, box_distance, corners, ego_centers
from navsim_bridge.pdm_closed.forecast import FRAME_STEP, NUM_FORECASTS, Forecast
from navsim_bridge.pdm_closed.inputs import PlannerScene
from navsim_bridge.pdm_closed.paths import LATERAL_OFFSETS, Paths

Float = NDArray[np.float64]
Int = NDArray[np.int64]

SPEED_FRACTIONS = (0.2, 0.4, 0.6, 0.8, 1.0)
"""Parts of the speed limit that the policies want to drive at."""
NUM_PATHS, NUM_POLICIES = len(LATERAL_OFFSETS), len(SPEED_FRACTIONS)
PROPOSAL_STEPS = 40
"""Steps of 0.1 s that are scored; the chosen proposal is then continued to `PLAN_STEPS`."""
PLAN_STEPS = 50
_FALLBACK_SPEED = 15.0  # [m/s] where the map has no limit
_MIN_GAP = 1.0  # [m]
_HEADWAY = 1.5  # [s]
_MAX_ACCEL, _MAX_DECEL = 1.5, 3.0  # [m/s^2]
_EXPONENT = 10


@dataclass(frozen=True)
class _Followed:
    """What stands or drives in the corridors of the paths; column axis: objects and lights of a path's scene."""

    hit: NDArray[np.bool_]  # (path, frame, column) the corridor is touched
    progress: Float  # (path, frame, column) [m] of the centroid along the path
    center: Float  # (path, frame, column, 2)
    box: Float  # (path, column, 3) heading, half length, half width; zeros for lights
    speed: Float  # (path, column) [m/s]; zero for static objects and lights
    is_light: NDArray[np.bool_]  # (path, column); a log may hold objects of no size, too
    item: Int  # (path, column) index in the scene's objects, followed by its lights


class Proposals:
    """Progress, speed and poses of all proposals of a batch of scenes."""

    def __init__(self, scenes: Sequence[PlannerScene], forecasts: Sequence[Forecast]) -> None:
        self._forecasts = forecasts
        self._paths = Paths.beside([scene.centerline for scene in scenes])
        self._path_length = np.asarray(shapely.length(self._paths.lines), dtype=np.float64)
        limit = np.array([scene.speed_limit for scene in scenes], dtype=np.float64)
        limit = np.where(np.isnan(limit), _FALLBACK_SPEED, limit)
        self._target = np.repeat(limit[:, None] * np.array(SPEED_FRACTIONS), NUM_PATHS, axis=0)  # (path, policy)

        ego = np.stack([scene.ego_state for scene in scenes])
        num_paths = NUM_PATHS * len(scenes)
        rows = np.arange(num_paths)
        start = self._paths.project(rows, np.repeat(ego[:, :2], NUM_PATHS, axis=0))
        self._corridors = self._corridors_from(start)
        self._followed = _followed(forecasts, self._paths, self._corridors)

        shape = (num_paths, PLAN_STEPS + 1, NUM_POLICIES)
        self._progress, self._speed = np.zeros(shape), np.zeros(shape)
        self._poses = np.zeros((*shape, 3))
        self._lead = np.zeros((*shape, 3))  # progress [m], speed [m/s], length behind its center [m]
        self._progress[:, 0] = start[:, None]
        self._speed[:, 0] = np.repeat(ego[:, 3], NUM_PATHS)[:, None]
        self._poses[:, 0] = self._paths.at(rows, start[:, None])
        everyone = np.broadcast_to(np.arange(NUM_POLICIES), (num_paths, NUM_POLICIES))
        for step in range(1, PROPOSAL_STEPS + 1):
            self._advance(rows, everyone, step)

    @property
    def poses(self) -> Float:
        """(scene, 15, 41, 3) global rear-axle poses; proposal = path * 5 + policy."""
        poses = self._poses[:, : PROPOSAL_STEPS + 1].transpose(0, 2, 1, 3)
        return poses.reshape(-1, NUM_PATHS * NUM_POLICIES, PROPOSAL_STEPS + 1, 3)

    def motion(self) -> tuple[Float, Float]:
        """Progress [m] and speed [m/s], each (scene, 15, 41)."""
        shape = (-1, NUM_PATHS * NUM_POLICIES, PROPOSAL_STEPS + 1)
        part = slice(0, PROPOSAL_STEPS + 1)
        return (
            self._progress[:, part].transpose(0, 2, 1).reshape(shape),
            self._speed[:, part].transpose(0, 2, 1).reshape(shape),
        )

    def finish(self, proposal: Int) -> Float:
        """(scene, 51, 3) poses of one proposal (scene,) a scene, continued to 5 s."""
        rows = np.arange(len(proposal)) * NUM_PATHS + proposal // NUM_POLICIES
        policies = (proposal % NUM_POLICIES)[:, None]
        for step in range(PROPOSAL_STEPS + 1, PLAN_STEPS + 1):
            self._advance(rows, policies, step)
        return self._poses[rows, :, policies[:, 0]]

    def _advance(self, rows: Int, policies: Int, step: int) -> None:
        """One step of the intelligent driver model for ``policies`` (row, k) on the paths ``rows`` (row,)."""
        before, path = step - 1, rows[:, None]
        progress, speed = self._progress[path, before, policies], self._speed[path, before, policies]
        if step % FRAME_STEP == 0:
            lead = self._find_leads(rows, step // FRAME_STEP, progress, self._poses[path, before, policies])
        else:
            # the first step has no lead of its own: it keeps clear of a standing one at distance zero of the path
            lead = self._lead[path, before, policies]
        self._lead[path, step, policies] = lead
        lead_progress, lead_speed, lead_rear = np.moveaxis(lead, -1, 0)
        closing = speed * (speed - lead_speed) / (2 * np.sqrt(_MAX_ACCEL * _MAX_DECEL))
        wanted_gap = _MIN_GAP + speed * _HEADWAY + closing
        gap = np.maximum(lead_progress - progress - lead_rear, _MIN_GAP)
        target = self._target[path, policies]
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            accel = _MAX_ACCEL * (1 - (speed / target) ** _EXPONENT - (wanted_gap / gap) ** 2)
        accel = np.clip(accel, -_MAX_DECEL, _MAX_ACCEL)
        self._progress[path, step, policies] = progress + STEP_SECONDS * speed
        self._speed[path, step, policies] = speed + STEP_SECONDS * accel
        self._poses[path, step, policies] = self._paths.at(rows, self._progress[path, step, policies])

    def _find_leads(self, rows: Int, frame: int, progress: Float, poses: Float) -> Float:
        """(row, k, 3) what proposals (row, k) follow at a forecast frame.

        Of all that is in the corridor and ahead, the nearest to the ego's box. The devkit fills one array for the
        policies of a path in turn, so entries that a policy does not set keep the value of the policy before it: the
        speed ahead of a red light or of the path's end, the rear length ahead of an object.
        """
        followed = self._followed
        shape = progress.shape
        ahead = followed.hit[rows, frame][:, None] & (followed.progress[rows, frame][:, None] > progress[..., None])
        distance = np.full(ahead.shape, np.inf)
        row, policy, column = np.nonzero(ahead)
        path = rows[row]
        distance[row, policy, column] = self._distances(path, frame, column, poses[row, policy])
        any_ahead = ahead.any(-1)
        nearest = self._nearest(rows, frame, distance)
        picked = (np.arange(shape[0])[:, None], np.arange(shape[1])[None], nearest)
        of_path = (rows[:, None], nearest)
        light = followed.is_light[of_path]
        turned = followed.box[of_path][..., 0] - poses[..., 2]
        along = followed.speed[of_path] * np.cos(np.arctan2(np.sin(turned), np.cos(turned)))

        lead = np.zeros((*shape, 3))
        current = np.zeros((shape[0], 3))
        for k in range(shape[1]):
            free = ~any_ahead[:, k]
            current[:, 0] = np.where(free, self._path_length[rows], progress[:, k] + distance[picked][:, k])
            current[:, 1] = np.where(free | light[:, k], current[:, 1], along[:, k])
            current[:, 2] = np.where(free, EGO_LENGTH / 2, current[:, 2])
            lead[:, k] = current
        return lead

    def _distances(self, path: Int, frame: int, column: Int, poses: Float) -> Float:
        """(pair,) from the ego's box at ``poses`` to what is followed."""
        followed = self._followed
        box = followed.box[path, column]
        center, origin = ego_centers(poses), poses[:, :2]
        half = np.broadcast_to(EGO_HALF, center.shape)
        other = followed.center[path, frame, column] - origin
        distance = box_distance(center - origin, poses[:, 2], half, other, box[:, 0], box[:, 1:])
        light = np.flatnonzero(followed.is_light[path, column])
        if len(light):
            ego = shapely.polygons(corners(center[light], poses[light, 2], half[light]))
            lights = [self._item(int(p), frame, int(c)) for p, c in zip(path[light], column[light])]
            distance[light] = shapely.distance(ego, lights)
        return distance

    def _item(self, path: int, frame: int, column: int) -> shapely.Polygon:
        """Polygon of a light."""
        forecast = self._forecasts[path // NUM_PATHS]
        light: shapely.Polygon = forecast.lights[self._followed.item[path, column] - len(forecast.tokens)]
        return light

    def _nearest(self, rows: Int, frame: int, distance: Float) -> Int:
        """(row, k) column with the smallest distance; among equals the first that the devkit's search tree names."""
        nearest = distance.argmin(-1)
        least = distance.min(-1, keepdims=True)
        equal = (distance == least) & np.isfinite(distance)
        for row, policy in np.argwhere(equal.sum(-1) > 1):
            columns = np.flatnonzero(equal[row, policy])
            path = int(rows[row])
            if self._followed.is_light[path, columns].all():
                continue  # lights are all the same to the policy
            rank = self._tree_order(path, frame)
            nearest[row, policy] = min(columns, key=lambda c: rank[int(self._followed.item[path, c])])
        return np.asarray(nearest)

    def _tree_order(self, path: int, frame: int) -> dict[int, int]:
        """Rank of the items of a path's scene in the answer of a search tree to the corridor."""
        forecast = self._forecasts[path // NUM_PATHS]
        centers = forecast.centers(np.array([frame]))[0]
        boxes = shapely.polygons(corners(centers, forecast.boxes[:, 2], forecast.boxes[:, 3:] / 2))
        tree = shapely.STRtree(np.concatenate([boxes, forecast.lights]), node_capacity=10)
        found = tree.query(self._corridors[path], predicate="intersects")
        return {int(item): rank for rank, item in enumerate(found)}

    def _corridors_from(self, start: Float) -> NDArray[np.object_]:
        """(path,) corridors as long as the fastest policy gets."""
        reach = np.abs(self._target.max(axis=1)) * PLAN_STEPS * STEP_SECONDS
        corridors = np.empty(len(start), dtype=object)
        for row, (begin, far) in enumerate(zip(start, start + reach)):
            corridors[row] = self._paths.corridor(row, begin, far)
        shapely.prepare(corridors)
        return corridors


def _followed(forecasts: Sequence[Forecast], paths: Paths, corridors: NDArray[np.object_]) -> _Followed:
    """Which objects and lights touch which corridor when."""
    most = max(1, *(len(f.tokens) + len(f.lights) for f in forecasts))  # a column that nothing hits keeps shapes whole
    num_paths = len(paths.lines)
    frames = np.arange(NUM_FORECASTS)
    hit = np.zeros((num_paths, NUM_FORECASTS, most), dtype=bool)
    progress = np.zeros(hit.shape)
    center = np.zeros((*hit.shape, 2))
    box, speed = np.zeros((num_paths, most, 3)), np.zeros((num_paths, most))
    is_light = np.ones((num_paths, most), dtype=bool)
    bounds = shapely.bounds(corridors)
    for scene, forecast in enumerate(forecasts):
        objects = len(forecast.tokens)
        of_scene = slice(scene * NUM_PATHS, (scene + 1) * NUM_PATHS)
        half = forecast.boxes[:, 3:] / 2
        center[of_scene, :, :objects] = centers = forecast.centers(frames)
        is_light[of_scene, :objects] = False
        box[of_scene, :objects] = np.column_stack([forecast.boxes[:, 2], half])
        speed[of_scene, :objects] = np.where(forecast.is_agent, forecast.speed, 0.0)
        reach = np.hypot(half[:, 0], half[:, 1])[:, None] + 1e-6
        low, high = centers - reach, centers + reach  # (frame, object, 2)
        within = bounds[of_scene, None, None]  # (path, 1, 1, 4)
        close = ((low <= within[..., 2:]) & (high >= within[..., :2])).all(-1) & ~forecast.ignored_object
        frame, item = np.nonzero(close.any(0))
        if len(item):
            polygons = shapely.polygons(corners(centers[frame, item], forecast.boxes[item, 2], half[item]))
            path, pair = np.nonzero(close[:, frame, item])
            path += scene * NUM_PATHS
            touches = shapely.intersects(corridors[path], polygons[pair])
            hit[path, frame[pair], item[pair]] = touches
        for number in np.flatnonzero(~forecast.ignored_light):
            light, column = forecast.lights[number], objects + number
            center[of_scene, :, column] = shapely.get_coordinates(shapely.centroid(light))
            hit[of_scene, :, column] = np.asarray(shapely.intersects(corridors[of_scene], light))[:, None]
    path, frame, item = np.nonzero(hit)
    progress[path, frame, item] = paths.project(path, center[path, frame, item])
    items = np.broadcast_to(np.arange(most), speed.shape)
    return _compact(_Followed(hit, progress, center, box, speed, is_light, items))


def _compact(followed: _Followed) -> _Followed:
    """Only the columns that are hit at some time, in their order."""
    ever: NDArray[np.bool_] = np.asarray(followed.hit.any(axis=1))
    width = max(1, int(ever.sum(axis=1).max()))
    order = np.argsort(~ever, axis=1, kind="stable")[:, :width]
    path, frame = np.arange(len(ever))[:, None], np.arange(NUM_FORECASTS)[None, :, None]
    inner = (path[..., None], frame, order[:, None])
    return _Followed(
        followed.hit[inner],
        followed.progress[inner],
        followed.center[inner],
        followed.box[path, order],
        followed.speed[path, order],
        followed.is_light[path, order],
        followed.item[path, order],
    )
