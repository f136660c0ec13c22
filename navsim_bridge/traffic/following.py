"""Vehicles that follow lanes by the Intelligent Driver Model, many scenes at once, as the devkit's IDM policy has it.

Facts read in navsim 2.1.2 and nuplan-devkit 1.2. A vehicle takes the base line of the lane it starts on and no other,
sees no traffic lights, and brakes for what stands on its line and for the line's end. One after another, in the order
of the log, vehicles look for the nearest thing on the way and move on; later ones see earlier ones moved. The box in
which they see the ego is centered on its rear axle and 0.1 s old.

What a vehicle occupies, and the strip that it looks along, are shapes whose corners decide who is nearest and how far;
they are cut by the library that the devkit uses. They are costly, so they are made only where something may be near.

Where a vehicle has no way left, the devkit stops with an error; here it has a free road, and `ObjectBatch.dead_ends`
counts it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import shapely
from numpy.typing import NDArray

from navsim_bridge.ego import EGO_LENGTH, EGO_RADIUS, EGO_WIDTH
from navsim_bridge.pdm.metric_scene import EPDMS_FRAMES
from navsim_bridge.traffic.paths import Paths
from navsim_bridge.traffic.shapes import SLACK, Shapes, occupied, rectangles, strips
from navsim_bridge.traffic.tables import table

Float = NDArray[np.float64]
Int = NDArray[np.int64]
Bool = NDArray[np.bool_]

MIN_GAP = 1.0
"""[m]"""
HEADWAY = 1.5
"""[s]"""
MOST_ACCELERATION, MOST_DECELERATION = 1.0, 2.0
"""[m/s^2]"""
RADIUS = 100.0
"""[m] Vehicles further from the ego's rear axle leave for good."""
STEP = 0.1
"""[s]"""
_LASTS = (EPDMS_FRAMES - 1) * STEP
_LEAF = 10
"""Shapes that a search tree of the devkit holds without branching: their order then hangs on nothing else."""
_SURE = 1e-3
"""[m] A way of this length surely has a strip that meets the vehicle at its start."""


@dataclass(frozen=True)
class Followers:
    """The vehicles of one scene that follow a lane, in the order in which they move."""

    tokens: tuple[str, ...]  # (follower,) of their tracks
    start: Float  # (follower, 5) box at t = 0, moved onto the line
    progress: Float  # (follower,) [m]
    speed: Float  # (follower,) [m/s]
    limit: Float  # (follower,) [m/s]
    lines: tuple[Float, ...]  # (follower,) base lines (point, 2)


@dataclass(frozen=True)
class Motion:
    """How followers of many rows moved; a row is one plan in one scene."""

    poses: Float  # (row, 40, follower, 3) x, y, heading of the center at 0.1 s to 4 s
    speeds: Float  # (row, 40, follower) [m/s] along the heading
    active: Bool  # (row, 40, follower) False: has left, or no such follower
    dead_ends: Int  # (row,) how often a vehicle had no way left


def follow(scenes: Sequence[Followers], scene: Int, ego: Float) -> Motion:
    """Move the followers of many rows.

    Args:
        scenes: the scenes that rows are of.
        scene: (row,) index into them.
        ego: (row, 41, 5) simulated states as in `MovedVehicles.move`.
    """
    if not len(scene) or not any(len(s.tokens) for s in scenes):
        none = np.zeros((len(scene), EPDMS_FRAMES - 1, 0))
        return Motion(none[..., None].repeat(3, -1), none, none.astype(bool), np.zeros(len(scene), dtype=np.int64))
    moving = _Simulation(scenes, scene, ego)
    motion = moving.run()
    again = np.flatnonzero(moving.doubtful)
    if len(again):
        in_turn = _Simulation(scenes, scene[again], ego[again], in_turn=True).run()
        for name, values in vars(in_turn).items():
            getattr(motion, name)[again] = values
    return motion


def acceleration(speed: Float, limit: Float, gap: Float, lead_speed: Float) -> Float:
    """The model's acceleration [m/s^2], within its bounds."""
    wanted = (
        MIN_GAP + speed * HEADWAY + speed * (speed - lead_speed) / (2 * np.sqrt(MOST_ACCELERATION * MOST_DECELERATION))
    )
    free = 1 - (speed / limit) ** 4 - (wanted / np.maximum(gap, MIN_GAP)) ** 2
    return np.clip(MOST_ACCELERATION * free, -MOST_DECELERATION, MOST_ACCELERATION)


class _Simulation:
    """One run. Arrays have axes row and follower; where others are listed, the ego stands behind the followers.

    Followers whose ways never come near each other move at the same time: they could not tell. Only what the search
    trees of the devkit choose among equals can hang on all that is there; rows where it may are marked as doubtful,
    to be run again with one vehicle after another.
    """

    def __init__(self, scenes: Sequence[Followers], scene: Int, ego: Float, in_turn: bool = False) -> None:
        counts = np.array([len(s.tokens) for s in scenes], dtype=np.int64)
        self._most = int(counts.max())
        self._scene, self._ego = scene, ego
        self._paths = Paths.of([line for s in scenes for line in s.lines])
        start, exists = table([s.start for s in scenes], 5)
        progress, speed, limit = (table([getattr(s, n) for s in scenes])[0] for n in ("progress", "speed", "limit"))
        path = np.where(exists, np.arange(self._most) + (np.cumsum(counts) - counts)[:, None], 0)
        boxes = np.full(exists.shape, None, dtype=object)
        boxes[exists] = rectangles(start[exists])
        near = _may_meet(self._paths, path, exists, start, progress, speed)
        turn = np.broadcast_to(np.arange(self._most), exists.shape) if in_turn else _turns(near)
        self._near, self._turn, self._in_turn = near[scene], turn[scene], in_turn
        self.doubtful = np.zeros(len(scene), dtype=bool)
        hidden, ego_like = _names(scenes, self._most)
        self._hidden, self._ego_like = hidden[scene], ego_like[scene]
        self._path, self._limit, self._size = path[scene], limit[scene], start[scene, :, 3:]
        self._half_width = self._size[..., 1] / 2
        self.active, self.progress, self.speed = exists[scene], progress[scene], speed[scene]
        self.poses = self._paths.poses(self._path, self._paths.clamp(self._path, self.progress))
        self._occupied, self._known = boxes[scene], self.active.copy()
        self._part, self._box = np.array(self._occupied), np.array(self._occupied)  # what `_occupied` is made of
        self._parts_known = self.active.copy()
        self._moved = np.zeros_like(self.active)
        self.dead_ends = np.zeros(len(scene), dtype=np.int64)

    def run(self) -> Motion:
        rows, steps = len(self._scene), EPDMS_FRAMES - 1
        poses = np.zeros((rows, steps, self._most, 3))
        speeds, active = np.zeros((rows, steps, self._most)), np.zeros((rows, steps, self._most), dtype=bool)
        meets_ego = self._may_meet_ego()
        size = np.broadcast_to((EGO_LENGTH, EGO_WIDTH), (*self._ego.shape[:2], 2))
        boxes = np.concatenate([self._ego[..., :3], size], axis=-1)
        for k in range(steps):
            self.active &= np.hypot(*np.moveaxis(self.poses[..., :2] - self._ego[:, k, None, :2], -1, 0)) <= RADIUS
            self._ego_boxes = rectangles(boxes[:, k])
            for turn in range(int(self._turn.max()) + 1):
                row, i = np.nonzero(self.active & (self._turn == turn))
                if len(row):
                    others = np.concatenate([self._near[row, i] & self.active[row], meets_ego[row, i, None]], axis=1)
                    self._move(k, row, i, others)
            poses[:, k], speeds[:, k], active[:, k] = self.poses, self.speed, self.active
        return Motion(poses, speeds, active, self.dead_ends)

    def _move(self, k: int, row: Int, i: Int, others: Bool) -> None:
        """Move followers ``i`` of some rows, not near each other; ``others`` (n, follower + 1) may be on their way."""
        path, progress, speed = self._path[row, i], self.progress[row, i], self.speed[row, i]
        here = self._paths.clamp(path, progress)
        end = self._paths.end[path]
        gap = end - progress - self._size[row, i, 0] / 2
        lead_speed = np.zeros(len(row))
        unsure = (end - here < _SURE) | (~self._moved[row, i] & (progress > end))
        look = np.flatnonzero(others.any(axis=1) | unsure)
        if len(look):
            ways = self._paths.rest(path[look], here[look])
            self._look(k, row[look], i[look], ways, others[look], unsure[look], gap, lead_speed, look)
        accelerated = acceleration(speed, self._limit[row, i], gap, lead_speed)
        self.progress[row, i] = progress + STEP * speed
        self.speed[row, i] = np.maximum(speed + STEP * accelerated, 0.0)
        self.poses[row, i] = self._paths.poses(path, self._paths.clamp(path, self.progress[row, i]))
        stands = self._moved[row, i] & (speed == 0.0) & (self.speed[row, i] == 0.0)
        self._known[row, i] &= stands
        self._parts_known[row, i] &= stands
        self._moved[row, i] = True

    def _look(
        self, k: int, row: Int, i: Int, ways: Shapes, others: Bool, unsure: Bool, gap: Float, lead_speed: Float, at: Int
    ) -> None:
        """Put gap and speed of what is nearest on the way of followers ``i`` at ``at``, where something is."""
        others = self._within_reach(row, i, ways, others)
        look = np.flatnonzero(others.any(axis=1) | unsure)
        if not len(look):
            return
        row, i, at = row[look], i[look], at[look]
        ways, others, unsure = ways[look], others[look], unsure[look]
        way = strips(ways, self._half_width[row, i])
        self._make(row, i)
        own = self._occupied[row, i]
        has_way = ~unsure | shapely.intersects(own, way)
        self.dead_ends += np.bincount(row[~has_way], minlength=len(self._scene))
        n, other = np.nonzero(others & has_way[:, None])
        shapes = self._shapes(row[n], other)
        met = shapely.intersects(shapes, way[n]) & ~self._hidden[row[n], i[n], other]
        n, other, shapes = n[met], other[met], shapes[met]
        if not len(n):
            return
        distance = shapely.distance(own[n], shapes)
        nearest = np.full(len(row), np.inf)
        np.minimum.at(nearest, n, distance)
        hits = n, other
        first = np.flatnonzero(distance == nearest[n])
        n, other, shapes = n[first], other[first], shapes[first]
        speed = self._speed_along(k, row[n], other, self.poses[row[n], i[n], 2])
        begin = np.flatnonzero(np.diff(n, prepend=-1))  # the first of each row
        for one, several in zip(begin, np.split(np.arange(len(n)), begin[1:])):
            if len(several) > 1 and self._matters(row[n[one]], i[n[one]], nearest[n[one]], speed[several]):
                on_way = hits[1][hits[0] == n[one]]
                taken = self._nearest_of(int(row[n[one]]), way[n[one]], own[n[one]], on_way)
                chosen = several[other[several] == taken][0]
                speed[one], shapes[one] = speed[chosen], shapes[chosen]
        n = n[begin]
        gap[at[n]] = shapely.length(shapely.shortest_line(own[n], shapes[begin]))
        lead_speed[at[n]] = speed[begin]

    def _matters(self, row: int, i: int, gap: float, lead_speeds: Float) -> bool:
        """Whether a follower's acceleration hangs on which of several equally near ones it looks at."""
        speed, limit, gaps = (np.full_like(lead_speeds, v) for v in (self.speed[row, i], self._limit[row, i], gap))
        return bool(np.ptp(acceleration(speed, limit, gaps, lead_speeds)) > 0.0)

    def _within_reach(self, row: Int, i: Int, ways: Shapes, others: Bool) -> Bool:
        """Those of ``others`` that are near the way: cheaper than what they really occupy, and never too few."""
        n, other = np.nonzero(others)
        r, own = row[n], self._half_width[row[n], i[n]]
        is_ego = other == self._most
        near = np.zeros(len(n), dtype=bool)
        near[is_ego] = shapely.dwithin(ways[n[is_ego]], self._ego_boxes[r[is_ego]], SLACK * own[is_ego])
        v = np.flatnonzero(~is_ego)
        self._make_parts(r[v], other[v])
        boxes, parts = self._box[r[v], other[v]], self._part[r[v], other[v]]
        near[v] = shapely.dwithin(ways[n[v]], boxes, SLACK * own[v]) | shapely.dwithin(
            ways[n[v]], parts, SLACK * (own[v] + self._half_width[r[v], other[v]])
        )
        found = np.zeros_like(others)
        found[n[near], other[near]] = True
        return found

    def _make_parts(self, row: Int, other: Int) -> None:
        """See that box and strip's line of some followers are as they stand now."""
        new = ~self._parts_known[row, other]
        row, other = _distinct(row[new], other[new], self._most)
        if not len(row):
            return
        path, progress, speed = self._path[row, other], self.progress[row, other], self.speed[row, other]
        half = self._size[row, other, 0] / 2
        start = self._paths.clamp(path, progress - half)
        end = self._paths.clamp(path, progress + half + speed * HEADWAY)
        self._part[row, other] = self._paths.part(path, start, end)
        self._box[row, other] = rectangles(np.concatenate([self.poses[row, other], self._size[row, other]], axis=-1))
        self._parts_known[row, other] = True

    def _make(self, row: Int, other: Int) -> None:
        """See that what some followers occupy is known as they stand now."""
        new = ~self._known[row, other]
        row, other = _distinct(row[new], other[new], self._most)
        if not len(row):
            return
        self._make_parts(row, other)
        half_width = self._half_width[row, other]
        self._occupied[row, other] = occupied(self._part[row, other], half_width, self._box[row, other])
        self._known[row, other] = True

    def _shapes(self, row: Int, other: Int) -> Shapes:
        """What followers, or the ego, occupy."""
        is_ego = other == self._most
        self._make(row[~is_ego], other[~is_ego])
        shapes = np.empty(len(row), dtype=object)
        shapes[is_ego] = self._ego_boxes[row[is_ego]]
        shapes[~is_ego] = self._occupied[row[~is_ego], other[~is_ego]]
        return shapes

    def _nearest_of(self, row: int, way: shapely.Geometry, own: shapely.Geometry, on_way: Int) -> int:
        """Which of ``on_way``, some of them equally near, the devkit takes: what its search trees come upon first."""
        there = np.append(np.flatnonzero(self.active[row]), self._most)
        self.doubtful[row] |= not self._in_turn and len(there) > _LEAF
        found = there[shapely.STRtree(self._shapes(np.full_like(there, row), there)).query(way)]
        found = found[np.isin(found, on_way)]
        tree = shapely.STRtree(self._shapes(np.full_like(found, row), found))
        return int(found[int(tree.nearest(own))])

    def _speed_along(self, k: int, row: Int, other: Int, heading: Float) -> Float:
        """Speed of followers, or the ego, along ``heading``."""
        state = self._ego[row, k]
        ego_like = self._ego_like[row, other]
        at = np.minimum(other, self._most - 1)
        speed = np.where(ego_like, np.hypot(state[:, 3], state[:, 4]), self.speed[row, at])
        turned = np.where(ego_like, state[:, 2], self.poses[row, at, 2]) - heading
        return speed * np.cos((turned + np.pi) % (2 * np.pi) - np.pi)

    def _may_meet_ego(self) -> Bool:
        """(row, follower): whether the ego's box ever comes near what is left of the path."""
        row, i = np.nonzero(self.active)
        path = self._path[row, i]
        ways = self._paths.rest(path, self._paths.clamp(path, self.progress[row, i]))
        drive = np.asarray(shapely.linestrings(self._ego[..., :2]), dtype=object)
        found = np.zeros_like(self.active)
        found[row, i] = shapely.dwithin(ways, drive[row], SLACK * self._half_width[row, i] + EGO_RADIUS)
        return found


def _may_meet(paths: Paths, path: Int, exists: Bool, start: Float, progress: Float, speed: Float) -> Bool:
    """(scene, follower, follower): whether what the second may ever occupy comes near the way of the first."""
    scene, i = np.nonzero(exists)
    at, begin = path[scene, i], progress[scene, i]
    here = paths.clamp(at, begin)
    last_piece = paths.progress[at, np.maximum(paths.count[at] - 2, 0)]
    half_length, half_width = start[scene, i, 3] / 2, start[scene, i, 4] / 2
    fastest = speed[scene, i] + MOST_ACCELERATION * _LASTS
    reach = begin + fastest * (_LASTS + HEADWAY) + half_length
    ways = paths.rest(at, np.minimum(here, last_piece))
    reached = paths.part(at, paths.clamp(at, np.minimum(begin - half_length, last_piece)), paths.clamp(at, reach))
    off_line = np.linalg.norm(paths.poses(at, here)[:, :2] - start[scene, i, :2], axis=1)
    around = np.maximum(SLACK * half_width, np.hypot(half_length, half_width)) + off_line + _SURE
    number = np.full(exists.shape, -1, dtype=np.int64)
    number[exists] = np.arange(len(scene))
    s, a, b = np.nonzero(exists[:, :, None] & exists[:, None, :] & ~np.eye(exists.shape[1], dtype=bool))
    one, two = number[s, a], number[s, b]
    found = np.zeros((*exists.shape, exists.shape[1]), dtype=bool)
    found[s, a, b] = shapely.dwithin(ways[one], reached[two], SLACK * half_width[one] + around[two])
    return found


def _turns(near: Bool) -> Int:
    """(scene, follower): when followers move in a step, so that those near each other keep their order."""
    related = near | near.transpose(0, 2, 1)
    turns = np.zeros(near.shape[:2], dtype=np.int64)
    for i in range(1, near.shape[1]):
        turns[:, i] = np.where(related[:, i, :i], turns[:, :i] + 1, 0).max(axis=1)
    return turns


def _names(scenes: Sequence[Followers], most: int) -> tuple[Bool, Bool]:
    """What the devkit's comparison of names makes of tokens that contain each other, or ``ego``.

    Returns:
        hidden: (scene, follower, follower + 1) whether the first does not see the second, whose token its own contains.
        ego_like: (scene, follower + 1) what is taken for the ego when it is nearest.
    """
    hidden = np.zeros((len(scenes), most, most + 1), dtype=bool)
    ego_like = np.zeros((len(scenes), most + 1), dtype=bool)
    ego_like[:, most] = True
    for s, scene in enumerate(scenes):
        for i, token in enumerate(scene.tokens):
            hidden[s, i, : len(scene.tokens)] = [other in token for other in scene.tokens]
            hidden[s, i, most] = "ego" in token
            ego_like[s, i] = "ego" in token
    return hidden, ego_like


def _distinct(row: Int, other: Int, most: int) -> tuple[Int, Int]:
    pairs = np.unique(row * most + other)
    return pairs // most, pairs % most
