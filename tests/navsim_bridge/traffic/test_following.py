"""Vehicles that follow lanes: the batched form equals a plain one, and what the model says by hand."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from navsim_bridge.traffic import following
from navsim_bridge.traffic.following import Followers, Motion, acceleration, follow
from navsim_bridge.traffic.paths import Paths
from tests.navsim_bridge.traffic import plain_idm
from tests.navsim_bridge.traffic.crowds import crowd

Float = NDArray[np.float64]
ORIGIN = np.array([331000.0, 4690000.0])
FAR_AWAY = np.array([50.0, 60.0])


def alone(speed: float, at: float = 10.0, length: float = 100.0, limit: float = 10.0) -> Followers:
    """One vehicle on a straight lane with a point each meter."""
    line = ORIGIN + np.stack([np.arange(length + 1), np.zeros(int(length) + 1)], axis=1)
    start = np.array([[ORIGIN[0] + at, ORIGIN[1], 0.0, 4.0, 2.0]])
    return Followers(("a",), start, np.array([at]), np.array([speed]), np.array([limit]), (line,))


def joined(*scenes: Followers) -> Followers:
    """All followers in one scene, named a, b, ..."""
    return Followers(
        tokens=tuple("abcdefgh"[: len(scenes)]),
        start=np.concatenate([s.start for s in scenes]),
        progress=np.concatenate([s.progress for s in scenes]),
        speed=np.concatenate([s.speed for s in scenes]),
        limit=np.concatenate([s.limit for s in scenes]),
        lines=tuple(line for s in scenes for line in s.lines),
    )


def standing_ego(x: float, y: float) -> Float:
    states = np.zeros((41, 5))
    states[:, :2] = ORIGIN + np.array([x, y])
    return states


def run(scene: Followers, ego: Float) -> Motion:
    return follow([scene], np.zeros(1, dtype=np.int64), ego[None])


@settings(max_examples=4, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_crowds_move_as_one_vehicle_after_another_would(seed: int) -> None:
    rng = np.random.default_rng(seed)
    scenes, egos = zip(*(crowd(rng, most=6) for _ in range(2)))
    scene = np.array([0, 1, 0])  # a scene may have several plans
    ego = np.stack([egos[0], egos[1], egos[1] + 1.0])
    found = follow(scenes, scene, ego)
    for row, of in enumerate(scene):
        steps, dead_ends = plain_idm.move(scenes[of], ego[row])
        assert found.dead_ends[row] == dead_ends
        for k, step in enumerate(steps):
            there = np.flatnonzero(found.active[row, k])
            assert [scenes[of].tokens[i] for i in there] == list(step)
            for i, (pose, speed) in zip(there, step.values()):
                np.testing.assert_allclose(found.poses[row, k, i], pose, rtol=0, atol=1e-8)
                assert found.speeds[row, k, i] == pytest.approx(speed, abs=1e-8)


@settings(max_examples=3, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_a_row_moves_as_it_would_alone(seed: int) -> None:
    rng = np.random.default_rng(seed)
    scenes, egos = zip(*(crowd(rng, most=4) for _ in range(3)))
    together = follow(scenes, np.arange(3), np.stack(egos))
    for row, scene in enumerate(scenes):
        single, count = run(scene, egos[row]), len(scene.tokens)
        for name in ("poses", "speeds", "active"):
            np.testing.assert_array_equal(getattr(together, name)[row, :, :count], getattr(single, name)[0])
        assert together.dead_ends[row] == single.dead_ends[0]
        assert not together.active[row, :, count:].any()


def test_vehicles_that_move_together_move_as_one_after_another(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    scenes, egos = zip(*(crowd(rng, most=7) for _ in range(2)))
    together = follow(scenes, np.arange(2), np.stack(egos))
    monkeypatch.setattr(following, "_turns", lambda near: np.tile(np.arange(near.shape[1]), (len(near), 1)))
    in_turn = follow(scenes, np.arange(2), np.stack(egos))
    for field in dataclasses.fields(Motion):
        np.testing.assert_array_equal(getattr(together, field.name), getattr(in_turn, field.name))


def test_rows_whose_order_may_matter_are_run_again_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(5)
    scenes, egos = zip(*(crowd(rng, most=3) for _ in range(4)))
    expected = follow(scenes, np.arange(4), np.stack(egos))
    runs: list[int] = []

    class Doubting(following._Simulation):
        def run(self) -> Motion:
            runs.append(len(self._scene))
            motion = super().run()
            self.doubtful[1:3] = not self._in_turn
            return motion

    monkeypatch.setattr(following, "_Simulation", Doubting)
    found = follow(scenes, np.arange(4), np.stack(egos))
    assert runs == [4, 2]
    for field in dataclasses.fields(Motion):
        np.testing.assert_array_equal(getattr(found, field.name), getattr(expected, field.name))


def test_a_vehicle_alone_brakes_for_the_end_of_its_lane_without_its_last_point() -> None:
    found = run(alone(speed=5.0, at=88.0), standing_ego(*FAR_AWAY))
    speed, at = 5.0, 88.0
    for k in range(40):
        gap = max(99.0 - at - 2.0, 1.0)
        wanted = 1.0 + 1.5 * speed + speed * speed / (2 * np.sqrt(2.0))
        change = 1.0 - (speed / 10.0) ** 4 - (wanted / gap) ** 2
        at, speed = at + 0.1 * speed, max(speed + 0.1 * min(max(change, -2.0), 1.0), 0.0)
        assert found.speeds[0, k, 0] == pytest.approx(speed)
        assert found.poses[0, k, 0, 0] - ORIGIN[0] == pytest.approx(min(at, 99.0))
    assert found.poses[0, -1, 0, 0] - ORIGIN[0] > 92.0 and found.dead_ends[0] == 0


@given(st.floats(0, 20), st.floats(1, 20), st.floats(-5, 60), st.floats(-20, 20))
def test_acceleration_stays_within_its_bounds_and_grows_with_the_gap(
    speed: float, limit: float, gap: float, lead: float
) -> None:
    gaps = np.array([gap, gap + 1.0])
    near, far = acceleration(np.full(2, speed), np.full(2, limit), gaps, np.full(2, lead))
    assert -2.0 <= near <= 1.0 and far >= near


def test_what_stands_on_the_lane_is_braked_for_and_what_is_beside_it_is_not() -> None:
    free = run(alone(speed=8.0), standing_ego(*FAR_AWAY)).speeds[0, -1, 0]
    assert run(alone(speed=8.0), standing_ego(30.0, 0.0)).speeds[0, -1, 0] < free - 2.0
    assert run(alone(speed=8.0), standing_ego(30.0, 2.2)).speeds[0, -1, 0] == free  # half widths 1 and 1.15
    assert run(alone(speed=8.0), standing_ego(30.0, 2.1)).speeds[0, -1, 0] < free - 2.0
    queue = joined(alone(speed=8.0), alone(speed=0.0, at=30.0, limit=0.01))
    assert run(queue, standing_ego(*FAR_AWAY)).speeds[0, -1, 0] < free - 2.0


def test_what_drives_up_from_behind_holds_up_a_vehicle_that_it_is_nearest_to() -> None:
    """The devkit asks who is nearest, not who is ahead: a strip that reaches into the way is enough."""
    free = run(alone(speed=4.0, at=30.0), standing_ego(*FAR_AWAY)).speeds[0, -1, 0]
    chased = joined(alone(speed=4.0, at=30.0), alone(speed=14.0, at=14.0))
    assert run(chased, standing_ego(*FAR_AWAY)).speeds[0, -1, 0] < free


def test_a_vehicle_a_hundred_meters_from_the_ego_leaves_for_good() -> None:
    ego = standing_ego(*FAR_AWAY)
    ego[5, 1] += 200.0
    found = run(alone(speed=0.0), ego)
    assert found.active[0, :, 0].tolist() == [True] * 5 + [False] * 35


def test_a_lane_of_two_points_leaves_no_way_and_is_counted() -> None:
    scene = alone(speed=3.0, at=2.0)
    scene = dataclasses.replace(scene, lines=(scene.lines[0][:2],))
    found = run(scene, standing_ego(*FAR_AWAY))
    assert found.dead_ends[0] == 40
    np.testing.assert_array_equal(found.poses[0, :, 0, :2], np.broadcast_to(ORIGIN, (40, 2)))


def test_a_start_behind_the_path_looks_along_its_last_piece() -> None:
    """The last point of a base line is lost: with a long last piece the vehicle does not meet what is left."""
    line = ORIGIN + np.array([[0.0, 0.0], [10.0, 0.0], [40.0, 0.0]])
    scene = dataclasses.replace(alone(speed=2.0, at=30.0), lines=(line,))
    found = run(scene, standing_ego(*FAR_AWAY))
    assert found.dead_ends[0] == 1  # at first; then it has jumped to the path's end
    assert (found.poses[0, :, 0, 0] == ORIGIN[0] + 10.0).all()


def test_nobody_moves_where_nobody_follows() -> None:
    none = Followers((), np.zeros((0, 5)), np.zeros(0), np.zeros(0), np.zeros(0), ())
    assert run(none, standing_ego(0.0, 0.0)).poses.shape == (1, 40, 0, 3)
    both = follow([none, alone(speed=1.0)], np.array([0, 1]), np.stack([standing_ego(*FAR_AWAY)] * 2))
    assert both.active.any(axis=1).tolist() == [[False], [True]]


@given(st.integers(0, 2**32 - 1))
def test_paths_are_cut_as_lines_are(seed: int) -> None:
    rng = np.random.default_rng(seed)
    line = ORIGIN + np.cumsum(rng.uniform(0.1, 3.0, (int(rng.integers(3, 20)), 2)), axis=0)
    paths, whole = Paths.of([line, line[::-1]]), shapely.LineString(line[:-1])
    start, end = np.sort(rng.uniform(-5.0, whole.length + 5.0, 2))
    one = np.zeros(1, dtype=np.int64)
    start, end = paths.clamp(one, np.array([start])), paths.clamp(one, np.array([end]))
    rest, part = paths.rest(one, start)[0], paths.part(one, start, end)[0]
    if start[0] < paths.end[0] and end[0] > 0.0:
        assert rest.length == pytest.approx(whole.length - start[0], abs=1e-6)
        assert part.length == pytest.approx(end[0] - start[0], abs=1e-6)
    here = whole.interpolate(start[0])
    np.testing.assert_allclose(paths.poses(one, start)[0, :2], [here.x, here.y], rtol=0, atol=1e-6)
