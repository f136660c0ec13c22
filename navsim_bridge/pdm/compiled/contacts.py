"""Contacts of the ego compiled: with objects, as the terms on collision and time to collision judge them, and edges."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from navsim_bridge.ego import EGO_LENGTH, EGO_RADIUS, EGO_WIDTH, REAR_AXLE_TO_CENTER
from navsim_bridge.pdm.compiled.jit import helper, kernel
from navsim_bridge.pdm.objects import Objects

_NEVER = 1 << 20
_X, _Y, _HEADING, _LENGTH, _WIDTH = 0, 1, 2, 3, 4  # of a box; half length and half width


@helper
def _boxes_intersect(
    dx: float, dy: float, cos_a: float, sin_a: float, length_a: float, width_a: float,
    cos_b: float, sin_b: float, length_b: float, width_b: float,
) -> bool:  # fmt: skip
    """``geometry.boxes_intersect``; (dx, dy) leads from center a to center b."""
    aligned, across = abs(cos_a * cos_b + sin_a * sin_b), abs(cos_a * sin_b - sin_a * cos_b)
    return (
        abs(dx * cos_a + dy * sin_a) <= length_a + length_b * aligned + width_b * across
        and abs(dy * cos_a - dx * sin_a) <= width_a + length_b * across + width_b * aligned
        and abs(dx * cos_b + dy * sin_b) <= length_b + length_a * aligned + width_a * across
        and abs(dy * cos_b - dx * sin_b) <= width_b + length_a * across + width_a * aligned
    )


@helper
def _reaches(boxes: Any, mask: Any, owner: Any, skipped: Any, count: int, num_frames: int) -> Any:
    """Squared reach (frame, object) of what may be touched, -1 of the rest; the places objects reach (object, 4)."""
    reach = np.full((num_frames, count), -1.0)
    limits = np.empty((count, 4))
    for o in range(count):
        limits[o, 0] = limits[o, 1] = np.inf
        limits[o, 2] = limits[o, 3] = -np.inf
    for f in range(num_frames):
        for o in range(count):
            if not mask[f, o] or skipped[owner[o]]:
                continue
            x, y = boxes[f, o, _X], boxes[f, o, _Y]
            far = math.sqrt(boxes[f, o, _LENGTH] ** 2 + boxes[f, o, _WIDTH] ** 2) + (EGO_RADIUS + 1e-6)
            reach[f, o] = far * far
            limits[o, 0], limits[o, 1] = min(limits[o, 0], x - far), min(limits[o, 1], y - far)
            limits[o, 2], limits[o, 3] = max(limits[o, 2], x + far), max(limits[o, 3], y + far)
    return reach, limits


@helper
def _first_hits(
    states: Any, steps: Any, seconds: Any, slowest: float, boxes: Any, owner: Any, reach: Any, limits: Any,
    centers: Any, turns: Any, first: Any,
) -> None:  # fmt: skip
    """First key (track,) at which the ego (time, 11), moved on by ``seconds``, meets objects of ``steps`` later.

    ``centers`` (time, ahead, 2) and ``turns`` (time, 2), its cosines and sines, are filled on the way. An ego slower
    than ``slowest`` meets nothing.
    """
    num_times, num_ahead = len(states), len(steps)
    x_low = y_low = np.inf
    x_high = y_high = -np.inf
    for t in range(num_times):
        cos, sin = math.cos(states[t, 2]), math.sin(states[t, 2])
        turns[t, 0], turns[t, 1] = cos, sin
        speed = math.hypot(states[t, 3], states[t, 4])
        if speed < slowest:
            centers[t, 0, 0] = np.nan
            continue
        x, y = states[t, 0] + REAR_AXLE_TO_CENTER * cos, states[t, 1] + REAR_AXLE_TO_CENTER * sin
        for a in range(num_ahead):
            travel = speed * seconds[a]
            ahead_x, ahead_y = x + travel * cos, y + travel * sin
            centers[t, a, 0], centers[t, a, 1] = ahead_x, ahead_y
            x_low, x_high = min(x_low, ahead_x), max(x_high, ahead_x)
            y_low, y_high = min(y_low, ahead_y), max(y_high, ahead_y)
    first[:] = _NEVER
    for o in range(len(limits)):
        if limits[o, 0] > x_high or limits[o, 2] < x_low or limits[o, 1] > y_high or limits[o, 3] < y_low:
            continue
        key = _first_hit(o, steps, boxes, reach, centers, turns)
        first[owner[o]] = min(first[owner[o]], key)


@helper
def _first_hit(o: int, steps: Any, boxes: Any, reach: Any, centers: Any, turns: Any) -> int:
    for t in range(len(centers)):
        if math.isnan(centers[t, 0, 0]):
            continue
        for a in range(len(steps)):
            f = t + steps[a]
            box = boxes[f, o]
            dx, dy = box[_X] - centers[t, a, 0], box[_Y] - centers[t, a, 1]
            if dx * dx + dy * dy <= reach[f, o] and _boxes_intersect(
                dx, dy, turns[t, 0], turns[t, 1], EGO_LENGTH / 2, EGO_WIDTH / 2,
                math.cos(box[_HEADING]), math.sin(box[_HEADING]), box[_LENGTH], box[_WIDTH],
            ):  # fmt: skip
                return t * len(steps) + a
    return _NEVER


@helper
def _angle_to(state: Any, turn: Any, x: float, y: float) -> float:
    """``collision.relative_angle``: NaN included."""
    dx, dy = x - state[0], y - state[1]
    distance = math.sqrt(dx * dx + dy * dy)
    return math.acos(turn[0] * (dx / distance) + turn[1] * (dy / distance))


_SCENE = "f8[:,:,:,::1], b1[:,:,::1], i8[:,::1], b1[:,::1], i8[::1]"


@kernel(f"void(f8[:,:,:,:], b1[:,:,:], {_SCENE}, b1[:,::1], b1[:,::1], f8, f8, f8[:,:,::1])")
def _collisions(
    states: Any, careless: Any, boxes: Any, mask: Any, owner: Any, skipped: Any, counts: Any, stopped: Any, agent: Any,
    standing: float, behind: float, found: Any,
) -> None:  # fmt: skip
    """found (scene, candidate, 2): score and first time at fault."""
    num_times = states.shape[2]
    steps, seconds = np.zeros(1, np.int64), np.zeros(1)
    centers, turns = np.empty((num_times, 1, 2)), np.empty((num_times, 2))
    first = np.empty(boxes.shape[2], np.int64)
    for s in range(len(states)):
        reach, limits = _reaches(boxes[s], mask[s], owner[s], skipped[s], counts[s], num_times)
        for c in range(states.shape[1]):
            found[s, c, 0], found[s, c, 1] = 1.0, np.inf
            _first_hits(states[s, c], steps, seconds, -1.0, boxes[s], owner[s], reach, limits, centers, turns, first)
            for track in range(counts[s]):
                t = first[track]
                if t == _NEVER:
                    continue
                state, box, cos, sin = states[s, c, t], boxes[s, t, track], turns[t, 0], turns[t, 1]
                at_fault = not math.hypot(state[3], state[4]) <= standing
                if at_fault and not stopped[s, track]:
                    front = REAR_AXLE_TO_CENTER + EGO_LENGTH / 2
                    at_fault = not _angle_to(state, turns[t], box[_X], box[_Y]) > behind and (
                        careless[s, c, t]
                        or _boxes_intersect(
                            box[_X] - (state[0] + front * cos), box[_Y] - (state[1] + front * sin), cos, sin,
                            0.0, EGO_WIDTH / 2,
                            math.cos(box[_HEADING]), math.sin(box[_HEADING]), box[_LENGTH], box[_WIDTH],
                        )
                    )  # fmt: skip
                if at_fault:
                    found[s, c, 0] = min(found[s, c, 0], 0.0 if agent[s, track] else 0.5)
                    found[s, c, 1] = min(found[s, c, 1], t)


@kernel(f"void(f8[:,:,:,:], b1[:,:,:], {_SCENE}, i8[::1], f8[::1], f8, f8, f8, f8[:,::1])")
def _threats(
    states: Any, exposed: Any, boxes: Any, mask: Any, owner: Any, skipped: Any, counts: Any, steps: Any, seconds: Any,
    standing: float, ahead: float, behind: float, time: Any,
) -> None:  # fmt: skip
    """time (scene, candidate): of the first infraction."""
    num_times, num_ahead = states.shape[2], len(steps)
    centers, turns = np.empty((num_times, num_ahead, 2)), np.empty((num_times, 2))
    first = np.empty(boxes.shape[2], np.int64)
    for s in range(len(states)):
        num_frames = num_times + steps[num_ahead - 1]
        reach, limits = _reaches(boxes[s], mask[s], owner[s], skipped[s], counts[s], num_frames)
        for c in range(states.shape[1]):
            time[s, c] = np.inf
            state = states[s, c]
            _first_hits(state, steps, seconds, standing, boxes[s], owner[s], reach, limits, centers, turns, first)
            for track in range(counts[s]):
                if first[track] == _NEVER:
                    continue
                t = first[track] // num_ahead
                box = boxes[s, t + steps[first[track] % num_ahead], track]
                angle = _angle_to(state[t], turns[t], box[_X], box[_Y])
                if angle < ahead or (exposed[s, c, t] and not angle > behind):
                    time[s, c] = min(time[s, c], t)


@helper
def _as_boxes(chains: Any, owner: Any) -> Any:
    """Edges of chains (chain, vertex, 2) as boxes without width, padding left out; and their owners.

    A box (5,) is its center's x and y, its heading's cosine and sine, and its half length.
    """
    boxes, owners = np.empty((chains.shape[0] * chains.shape[1], 5)), np.empty(len(chains) * chains.shape[1], np.int64)
    n = 0
    for k in range(len(chains)):
        for v in range(chains.shape[1] - 1):
            dx, dy = chains[k, v + 1, 0] - chains[k, v, 0], chains[k, v + 1, 1] - chains[k, v, 1]
            if not math.isfinite(dx) or not math.isfinite(dy):
                continue
            heading = math.atan2(dy, dx)
            boxes[n, 0], boxes[n, 1] = (
                (chains[k, v, 0] + chains[k, v + 1, 0]) / 2,
                (chains[k, v, 1] + chains[k, v + 1, 1]) / 2,
            )
            boxes[n, 2], boxes[n, 3], boxes[n, 4] = (
                math.cos(heading),
                math.sin(heading),
                math.sqrt(dx * dx + dy * dy) / 2,
            )
            owners[n] = owner[k]
            n += 1
    return boxes[:n], owners[:n]


@kernel("void(f8[:,:,:,:], f8[:,:,:], f8[:,:,:,::1], i8[:,::1], b1[:,:,:], b1[:,::1])")
def _edges_met(centers: Any, headings: Any, chains: Any, owner: Any, shown: Any, met: Any) -> None:
    """met (scene, candidate): whether the ego at centers (..., time, 2) ever meets an edge of a polygon shown then."""
    num_times = centers.shape[2]
    for s in range(len(centers)):
        boxes, owners = _as_boxes(chains[s], owner[s])
        for c in range(centers.shape[1]):
            met[s, c] = False
            for t in range(num_times):
                cos, sin = 2.0, 0.0
                for e in range(len(boxes)):
                    dx, dy = boxes[e, 0] - centers[s, c, t, 0], boxes[e, 1] - centers[s, c, t, 1]
                    reach = boxes[e, 4] + (EGO_RADIUS + 1e-6)
                    if dx * dx + dy * dy > reach * reach or not shown[s, t, owners[e]]:
                        continue
                    if cos > 1.0:
                        cos, sin = math.cos(headings[s, c, t]), math.sin(headings[s, c, t])
                    if _boxes_intersect(
                        dx, dy, cos, sin, EGO_LENGTH / 2, EGO_WIDTH / 2, boxes[e, 2], boxes[e, 3], boxes[e, 4], 0.0
                    ):
                        met[s, c] = True
                        break
                if met[s, c]:
                    break


def _scene(objects: Objects) -> tuple[Any, ...]:
    arrays = (objects.object_boxes, objects.object_mask, objects.object_track, objects.track_skipped)
    return (*(array.contiguous().numpy() for array in arrays), objects.object_counts)


def collisions(
    objects: Objects, states: Tensor, careless: Tensor, standing: float, behind: float
) -> tuple[Tensor, Tensor]:
    """Score and first time at fault (scene, candidate) of states (scene, candidate, time, 11).

    Args:
        careless: (scene, candidate, time) between lanes or off the road.
        standing: [m/s] an ego at or below it is not to blame.
        behind: [rad] objects at larger angles are.
    """
    found = np.empty((*states.shape[:2], 2))
    kinds = objects.track_stopped.contiguous().numpy(), objects.track_is_agent.contiguous().numpy()
    _collisions(states.numpy(), careless.numpy(), *_scene(objects), *kinds, standing, behind, found)
    score, time = torch.from_numpy(found).unbind(-1)
    return score, time


def threats(
    objects: Objects,
    states: Tensor,
    exposed: Tensor,
    steps: tuple[int, ...],
    standing: float,
    ahead: float,
    behind: float,
) -> Tensor:
    """Time index (scene, candidate) of the first infraction, inf if none; see ``ttc.judge_threats``.

    Args:
        exposed: (scene, candidate, time) between lanes, off the road or in an intersection.
        steps: of 0.1 s, ascending, by which the ego is extrapolated.
        standing: [m/s] slower egos are not tested.
        ahead, behind: [rad] objects at smaller and larger angles are.
    """
    time = np.empty(states.shape[:2])
    ahead_of = np.array(steps), np.array(steps) * 0.1
    _threats(states.numpy(), exposed.numpy(), *_scene(objects), *ahead_of, standing, ahead, behind, time)
    return torch.from_numpy(time)


def edges_met(centers: Tensor, headings: Tensor, chains: Tensor, owner: Tensor, shown: Tensor) -> Tensor:
    """(scene, candidate): whether the ego box ever meets an edge of a polygon that is shown at that time.

    Args:
        centers: (scene, candidate, time, 2) of the ego box; headings: (scene, candidate, time).
        chains: (scene, chain, edge + 1, 2) pieces of polygons, +inf as padding; owner: (scene, chain) their polygons.
        shown: (scene, time, polygon) bool.
    """
    met = np.empty(centers.shape[:2], np.bool_)
    arrays = chains.contiguous().numpy(), owner.contiguous().numpy()
    _edges_met(centers.numpy(), headings.numpy(), *arrays, shown.numpy(), met)
    return torch.from_numpy(met)
