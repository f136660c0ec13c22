"""The devkit's agent against a real server: what it plans, and what it says where it cannot."""

from __future__ import annotations

import copy
import dataclasses
import os
import pickle
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dpvla_devkit.served_policy import ServedPolicyError
from tests.dpvla_devkit.conftest import Devkit, Serve, Served, TrajectorySampling
from tests.navsim_bridge.conftest import World


def test_a_known_scene_gets_the_plan_of_the_evaluation_to_the_bit(devkit: Devkit, served: Served, world: World) -> None:
    agent = devkit.make(**devkit.sampling(), address=served.address)
    agent.initialize()
    records = world.records[::3]
    for record, plan in zip(records, served.agent(records), strict=True):
        found = devkit.plan(agent, record)
        assert found.poses.dtype == np.float32
        np.testing.assert_array_equal(found.poses, plan)
        assert (found.trajectory_sampling.num_poses, found.trajectory_sampling.interval_length) == (8, 0.5)
    assert served.plans.unknown == 0 and served.server.counts.plans == len(records)


def test_files_give_the_same_plans_as_pixels_that_are_read_whole(devkit: Devkit, served: Served, world: World) -> None:
    paths = [None, "/nowhere", str(devkit.sensors)]
    agent = devkit.make(**devkit.sampling(), address=served.address, sensor_paths=paths)
    found = devkit.plan(agent, world.records[0]).poses
    np.testing.assert_array_equal(found, served.agent(world.records[:1])[0])
    if devkit.version == 2:
        lost = devkit.make(**devkit.sampling(), address=served.address, sensor_paths=["/nowhere"])
        with pytest.raises(ServedPolicyError, match=r"the image of CAM_\w+, .* below /nowhere \(agent.sensor_paths\)"):
            devkit.plan(lost, world.records[0])
        asked = devkit.agent_input(world.records[0], agent.get_sensor_config())
        getattr(asked.cameras[-1], served.agent.cameras[0].lower()).camera_path = "x/../../y.jpg"
        with pytest.raises(ServedPolicyError, match="a path that leads out of its folder"):
            agent.compute_trajectory(asked)


def test_the_agent_is_one_that_submissions_take(devkit: Devkit, served: Served) -> None:
    agent = devkit.make(**devkit.sampling(), address=served.address)
    assert agent.name() == "dpvla" and agent.requires_scene is False
    config = agent.get_sensor_config()
    assert {name for frame in range(3) for name in config.wanted(frame)} == set()
    assert {name.upper() for name in config.wanted(3)} == set(served.agent.cameras)


def test_noise_hangs_on_the_motion_where_no_split_is_known(devkit: Devkit, serve: Serve, world: World) -> None:
    with serve() as served:
        agent = devkit.make(**devkit.sampling(), address=served.address)
        forth = [devkit.plan(agent, record).poses for record in world.records[:3]]
        other = devkit.make(**devkit.sampling(), address=served.address)
        back = [devkit.plan(other, record).poses for record in world.records[2::-1]]
        np.testing.assert_array_equal(forth, back[::-1])
        assert np.abs(forth[0] - served.agent(world.records[:1])[0]).max() > 1e-3
        assert served.plans.unknown == 6
    with serve(seed=4) as served:
        assert np.abs(devkit.plan(agent.__class__(**devkit.sampling(), address=served.address), world.records[0]).poses
                      - forth[0]).max() > 1e-3  # fmt: skip


def test_workers_that_ask_at_the_same_time_get_the_same_plans(devkit: Devkit, serve: Serve, world: World) -> None:
    found: dict[int, Any] = {}

    def work(index: int) -> None:
        agent = devkit.make(**devkit.sampling(), address=served.address)
        found[index] = devkit.plan(agent, world.records[index]).poses

    with serve(world.records, batch_size=4) as served:
        workers = [threading.Thread(target=work, args=(index,)) for index in range(4)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join(60)
    expected = served.agent(world.records[:4])
    np.testing.assert_allclose([found[index] for index in range(len(expected))], expected, atol=1e-3)


def test_scenes_that_move_alike_are_not_known(serve: Serve, world: World) -> None:
    twin = dataclasses.replace(world.records[0], token="f" * 16)
    with serve([*world.records, twin]) as served:
        assert served.plans._names.alike == 2


def test_making_an_agent_needs_no_server_and_using_one_says_how_to_start_it(devkit: Devkit, tmp_path: Path) -> None:
    agent = devkit.make(**devkit.sampling(), address=str(tmp_path / "none.sock"), patience=0.3)
    for use in (agent.initialize, agent.get_sensor_config):
        with pytest.raises(ServedPolicyError, match=r"no policy server at .*none.sock: .*Start one .*serve_policy.py"):
            use()
    begin = time.monotonic()  # it has been waited for once
    with pytest.raises(ServedPolicyError):
        agent.initialize()
    assert time.monotonic() - begin < 10


def test_a_server_that_comes_late_is_waited_for(devkit: Devkit, serve: Serve, world: World, tmp_path: Path) -> None:
    agent = devkit.make(**devkit.sampling(), address=str(tmp_path / "policy.sock"), patience=60)
    waiting = threading.Thread(target=agent.initialize)
    waiting.start()
    with serve(world.records) as served:
        waiting.join(60)
        assert not waiting.is_alive()
        np.testing.assert_array_equal(devkit.plan(agent, world.records[0]).poses, served.agent(world.records[:1])[0])


def test_a_server_that_was_started_again_goes_on_and_one_that_died_is_told(
    devkit: Devkit, serve: Serve, world: World
) -> None:
    with serve(world.records) as served:
        agent = devkit.make(**devkit.sampling(), address=served.address, patience=0.3)
        first = devkit.plan(agent, world.records[0]).poses
        asked = devkit.agent_input(world.records[0], agent.get_sensor_config())
    with pytest.raises(ServedPolicyError, match="no policy server at"):
        agent.compute_trajectory(asked)
    with serve(world.records):
        np.testing.assert_array_equal(agent.compute_trajectory(asked).poses, first)
    with serve(world.records, seed=4), pytest.raises(ServedPolicyError, match="plans of two policies are not mixed"):
        agent.compute_trajectory(asked)


def test_scenes_without_what_the_policy_needs_are_told(devkit: Devkit, served: Served, world: World) -> None:
    agent = devkit.make(**devkit.sampling(), address=served.address)
    asked = devkit.agent_input(world.records[0], agent.get_sensor_config())

    def refused(reason: str, change: Any) -> None:
        other = copy.deepcopy(asked)
        change(other)
        with pytest.raises(ServedPolicyError, match=reason):
            agent.compute_trajectory(other)

    first = served.agent.cameras[0].lower()
    blind = devkit.agent_input(world.records[0], type(agent.get_sensor_config())())
    with pytest.raises(ServedPolicyError, match=r"the scene has no image of CAM_\w+, which the policy needs"):
        agent.compute_trajectory(blind)
    refused("the scene has no images", lambda scene: scene.cameras.clear())
    refused("uint8", lambda scene: setattr(scene.cameras[-1], first, type(blind.cameras[0].cam_f0)(np.zeros((9, 9)))))
    setattr(asked.cameras[-1], first, type(blind.cameras[0].cam_f0)(np.zeros((9, 9, 3), dtype=np.uint8)))
    with pytest.raises(ServedPolicyError, match=r"CAM_\w+ is no readable image .*9x9 pixels"):
        agent.compute_trajectory(asked)
    refused("3 history frames, the policy needs 4", lambda scene: scene.ego_statuses.pop())
    refused("velocity are not finite", lambda scene: setattr(scene.ego_statuses[-1], "ego_velocity", [np.nan, 0]))
    asked = devkit.agent_input(world.records[0], agent.get_sensor_config())
    refused("a one-hot of 4", lambda scene: setattr(scene.ego_statuses[-1], "driving_command", [0, 0, 0, 0]))
    refused("in the ego frame", lambda scene: setattr(scene.ego_statuses[-1], "ego_pose", [5e5, 4e6, 0]))
    assert served.server.counts.refused == 3
    np.testing.assert_array_equal(agent.compute_trajectory(asked).poses, served.agent(world.records[:1])[0])


def test_other_trajectories_than_the_policy_plans_are_refused(devkit: Devkit) -> None:
    with pytest.raises(ValueError, match=r"asks for 40 poses, 0.1 s apart; the policy plans 8 poses, 0.5 s apart"):
        devkit.make(trajectory_sampling=TrajectorySampling(40, 0.1))


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"address": "192.168.0.1:7007"}, "on its own machine alone"),
        ({"address": "policy.example:7007"}, "on its own machine alone"),
        ({"address": "127.0.0.1:0"}, "a port is a number from 1 to 65535"),
        ({"address": "/" + "x" * 200}, "at most 107 bytes"),
        ({"timeout": 0}, "timeout must be seconds"),
        ({"timeout": float("nan")}, "timeout must be seconds"),
        ({"patience": "long"}, "patience must be seconds"),
    ],
)
def test_values_that_cannot_be_are_refused_when_the_agent_is_made(
    devkit: Devkit, values: dict[str, Any], reason: str
) -> None:
    with pytest.raises(ValueError, match=reason):
        devkit.make(**devkit.sampling(), **values)


def test_a_copy_and_a_forked_process_connect_for_themselves(devkit: Devkit, served: Served, world: World) -> None:
    agent = devkit.make(**devkit.sampling(), address=served.address)
    first = devkit.plan(agent, world.records[0]).poses
    copied = pickle.loads(pickle.dumps(agent._policy))
    assert copied._socket is None and copied.welcome() == agent._policy.welcome()
    child = os.fork()
    if not child:
        try:
            os._exit(0 if np.array_equal(devkit.plan(agent, world.records[0]).poses, first) else 1)
        finally:
            os._exit(2)
    np.testing.assert_array_equal(devkit.plan(agent, world.records[0]).poses, first)
    assert os.waitpid(child, 0)[1] == 0
    assert served.server.counts.connections == 3
