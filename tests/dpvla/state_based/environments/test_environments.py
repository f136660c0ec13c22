"""Simulators behind the common interface."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from dpvla.state_based.environments import headless
from dpvla.state_based.environments.control_suite import ControlEnvironment
from dpvla.state_based.environments.environment import Environment
from dpvla.state_based.environments.headless import load
from dpvla.state_based.environments.make import make_environment
from dpvla.state_based.environments.ogbench import parse_name, success_timing
from dpvla.state_based.environments.shared_models import WRITTEN

SIZES = {
    "walker-stand": (24, 6, 1000, "return"),
    "quadruped-walk": (78, 12, 1000, "return"),
    "cheetah-run-backward": (17, 6, 1000, "return"),
    "jaco-reach-top-left": (42, 9, 250, "return"),
    "pointmaze-medium-navigate-singletask-v0": (2, 2, 1000, "success"),
    "cube-single-play-singletask-task2-v0": (28, 5, 200, "success"),
}


@pytest.mark.parametrize("name", SIZES)
def test_sizes_limits_and_seeds_of_every_family(name: str) -> None:
    env = make_environment(name, seed=1)
    assert (env.observation_size, env.action_size, env.max_steps, env.metric) == SIZES[name]
    first, other, again = (_walk(env, seed) for seed in (5, 6, 5))
    assert first.dtype == np.float32 and first.shape[1] == env.observation_size
    np.testing.assert_array_equal(first, again)
    assert (first[0] != other[0]).any()


@pytest.mark.parametrize("name", ["pointmaze-medium-navigate-singletask-v0", "jaco-reach-top-right"])
def test_a_seeded_episode_does_not_depend_on_what_ran_before(name: str) -> None:
    used, fresh = make_environment(name, seed=1), make_environment(name, seed=2)
    _walk(used, seed=9)
    np.random.seed(123)
    expected = np.random.RandomState(123).rand()
    np.testing.assert_array_equal(_walk(used, seed=5), _walk(fresh, seed=5))
    assert np.random.rand() == expected, "the caller's random numbers must be left alone"


def test_the_time_limit_ends_an_episode_but_leaves_the_mask_at_one() -> None:
    env = make_environment("jaco-reach-top-left")
    env.reset(0)
    steps = [env.step(np.zeros(9)) for _ in range(250)]
    assert [step.finished for step in steps] == [False] * 249 + [True]
    assert all(step.mask == 1 and step.success is None for step in steps)


def test_a_maze_ends_with_mask_zero_in_the_step_taken_at_the_goal() -> None:
    env = make_environment("pointmaze-medium-navigate-singletask-v0")
    env.reset(0)
    maze = env.raw.unwrapped  # type: ignore[attr-defined]
    before = env.step(np.zeros(2))
    assert (before.reward, before.mask, before.finished, before.success) == (-1, 1, False, 0)
    maze.set_xy(np.asarray(maze.cur_goal_xy))
    at_goal = env.step(np.zeros(2))
    assert success_timing(env.raw) == "pre", "of ogbench 1.2.0 and later"  # type: ignore[attr-defined]
    assert (at_goal.reward, at_goal.mask, at_goal.finished, at_goal.success) == (0, 0, True, 1)


def test_running_backward_is_rewarded_as_running_forward_is_for_the_mirrored_speed() -> None:
    forward, backward = ControlEnvironment("cheetah-run"), ControlEnvironment("cheetah-run-backward")
    for speed, run, run_backward in ((4.0, 0.4, 0.0), (-4.0, 0.0, 0.4), (12.0, 1.0, 0.0), (-12.0, 0.0, 1.0)):
        for env, expected in ((forward, run), (backward, run_backward)):
            physics = env.raw.physics
            with physics.reset_context():
                physics.data.qvel[0] = speed  # the root's slide along x: the whole body moves at this speed
            assert env.raw.task.get_reward(physics) == pytest.approx(expected, abs=1e-9)


def test_actions_are_scaled_to_the_joints_own_range() -> None:
    env = ControlEnvironment("jaco-reach-top-left")
    spec = env.raw.action_spec()
    sent: list[np.ndarray] = []
    step = env.raw.step

    def listen(action: np.ndarray) -> Any:
        sent.append(action)
        return step(action)

    env.raw.step = listen
    env.reset(0)
    for value in (-1.0, 0.0, 1.0, 7.0):
        env.step(np.full(9, value))
    center = (spec.minimum + spec.maximum) / 2
    for got, expected in zip(sent, (spec.minimum, center, spec.maximum, spec.maximum)):
        np.testing.assert_allclose(got, expected, atol=1e-7)


def test_wrong_actions_are_refused() -> None:
    env = make_environment("cheetah-run")
    env.reset(0)
    with pytest.raises(ValueError, match=r"shape \(5,\), expected \(6,\)"):
        env.step(np.zeros(5))
    with pytest.raises(ValueError, match="not finite"):
        env.step(np.full(6, np.nan))


def test_wrong_names_are_explained() -> None:
    with pytest.raises(ValueError, match="walker-stand, walker-walk"):
        make_environment("walker-fly")
    with pytest.raises(ValueError, match="cube-single-play-singletask-task2-v0"):
        make_environment("cube-single-play-v0")
    with pytest.raises(ValueError, match="has no environment for 'cube-sextuple"):
        make_environment("cube-sextuple-play-singletask-v0")


def test_names_are_split() -> None:
    name = parse_name("antsoccer-arena-navigate-singletask-task4-v0")
    assert (name.world, name.type, name.dataset) == ("antsoccer-arena", "navigate", "antsoccer-arena-navigate-v0")


def test_simulators_load_without_a_display_and_without_complaint() -> None:
    code = "import os; from dpvla.state_based.environments.make import make_environment as make; make('cheetah-run')"
    done = _python(code + "; print(os.environ['MUJOCO_GL'])", {})
    assert (done.returncode, done.stdout, done.stderr) == (0, "disable\n", "")


def test_a_renderer_that_the_user_chose_is_left_alone() -> None:
    code = "import os; from dpvla.state_based.environments.headless import load; load('dm_env')"
    assert _python(code + "; print(os.environ['MUJOCO_GL'])", {"MUJOCO_GL": "egl"}).stdout == "egl\n"


def test_a_missing_package_is_reported_with_the_extra_to_install() -> None:
    with pytest.raises(ModuleNotFoundError, match=r"pip install -e '\.\[state\]'"):
        load("ogbench.not_there")


def _python(code: str, settings: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Run in a fresh interpreter with no display and only these rendering settings."""
    kept = {key: value for key, value in os.environ.items() if key not in ("MUJOCO_GL", "DISPLAY", "WAYLAND_DISPLAY")}
    kept |= {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), **settings}
    return subprocess.run([sys.executable, "-c", code], env=kept, capture_output=True, text=True)


def _walk(env: Environment, seed: int, steps: int = 20) -> np.ndarray:
    rng = np.random.default_rng(0)
    observations = [env.reset(seed)]
    for _ in range(steps):
        observations.append(env.step(rng.uniform(-1, 1, env.action_size)).observation)
    return np.array(observations)


def test_a_way_to_draw_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(name: str) -> None:
        raise AttributeError("'NoneType' object has no attribute 'glGetError'")

    monkeypatch.setattr(headless, "import_module", fails)
    monkeypatch.setenv("MUJOCO_GL", "osmesa")
    with pytest.raises(ImportError, match=r"MUJOCO_GL=osmesa \(AttributeError: 'NoneType' .*: unset MUJOCO_GL"):
        headless.load("dm_control.suite")


def test_no_room_for_a_simulators_own_files_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("xml.etree.ElementTree.ElementTree.write", full)
    with pytest.raises(OSError, match=r"simulator of pointmaze-.* cannot be made: .*No space left on device .*TMPDIR"):
        make_environment("pointmaze-medium-navigate-singletask-task1-v0")


def _alone_and_beside(name: str) -> tuple[np.ndarray, np.ndarray]:
    """An episode of an environment that no other shares a model with, and the same one between those of another."""
    alone = _walk(make_environment(name), seed=5)
    gc.collect()  # so that the next one is not made from it
    first, second = make_environment(name), make_environment(name)
    models = [env.raw.unwrapped._model for env in (first, second)]  # type: ignore[attr-defined]
    assert models[0] is models[1], "one compiled model"
    fixed = [field for field in dir(models[0]) if not field.startswith("_") and field not in WRITTEN]
    before = {field: np.copy(getattr(models[0], field)) for field in fixed}
    rng, other = np.random.default_rng(0), np.random.default_rng(1)
    observations = [second.reset(5)]
    first.reset(6)
    for _ in range(len(alone) - 1):
        first.step(other.uniform(-1, 1, first.action_size))
        observations.append(second.step(rng.uniform(-1, 1, second.action_size)).observation)
    for field, values in before.items():
        if values.dtype.kind in "fiub":
            np.testing.assert_array_equal(getattr(models[0], field), values, err_msg=f"an environment writes {field}")
    return alone, np.array(observations)


@pytest.mark.parametrize("name", ["cube-single-play-singletask-task2-v0", "scene-play-singletask-task1-v0"])
def test_environments_that_share_a_model_do_not_see_each_other(name: str) -> None:
    alone, beside = _alone_and_beside(name)
    np.testing.assert_array_equal(beside, alone)


def test_what_one_environment_locks_is_not_locked_in_another() -> None:
    """The damping of a locked drawer stands in the model that both share."""
    first, second = (make_environment("scene-play-singletask-task1-v0") for _ in range(2))
    for env in (first, second):
        env.reset(0)
    model, still = first.raw.unwrapped._model, np.zeros(5)  # type: ignore[attr-defined]

    def locked(env: Environment) -> bool:
        env.step(still)
        return bool(model.joint("drawer_slide").damping[0] > 1e3)

    assert not locked(first) and not locked(second)
    second.raw.unwrapped._cur_button_states[0] = 0  # type: ignore[attr-defined]
    assert [locked(env) for env in (second, first, second)] == [True, False, True]


@pytest.mark.parametrize(
    "name, draws",
    [
        ("pointmaze-medium-navigate-singletask-v0", False),
        ("cube-single-play-singletask-task2-v0", False),
        ("antsoccer-arena-navigate-singletask-v0", False),
        ("pointmaze-teleport-navigate-singletask-v0", True),
    ],
)
def test_steps_that_do_not_lend_numpys_generator_draw_nothing_from_it(name: str, draws: bool) -> None:
    env = make_environment(name)
    env.reset(3)
    assert env._draws_in_steps == draws  # type: ignore[attr-defined]
    np.random.seed(123)
    for _ in range(5):
        env.step(np.ones(env.action_size))
    assert np.random.rand() == np.random.RandomState(123).rand()
