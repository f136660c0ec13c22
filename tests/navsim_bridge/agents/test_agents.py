from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from dpvla.models.sampling import Sampling
from navsim_bridge.agents import AGENTS, PolicyAgent, cameras_of, constant_velocity, human, load_policy, stand_still
from navsim_bridge.files.submissions import read_submission
from tests.navsim_bridge.conftest import World
from tools import evaluate, export_submission


def test_constant_velocity_goes_straight_at_the_norm_of_the_velocity(world: World) -> None:
    record = dataclasses.replace(world.records[0], velocity=np.array([3.0, 4.0]))
    plan = constant_velocity([record])[0]
    assert plan.dtype == np.float32
    np.testing.assert_array_equal(plan[:, 0], 2.5 * np.arange(1, 9))
    assert not plan[:, 1:].any()


def test_stand_still_stays(world: World) -> None:
    assert stand_still(world.records).shape == (7, 8, 3)
    assert not stand_still(world.records).any()


def test_human_drives_the_recorded_poses_in_float64(world: World) -> None:
    record = world.records[2]
    plan = human([record])[0]
    assert plan.dtype == np.float64
    x, y, heading = record.pose
    cos, sin = np.cos(heading), np.sin(heading)
    back = np.stack([x + cos * plan[:, 0] - sin * plan[:, 1], y + sin * plan[:, 0] + cos * plan[:, 1]], axis=1)
    np.testing.assert_allclose(back, record.poses[4:12, :2], atol=1e-8)
    assert np.abs(plan[:, 2]).max() < np.pi


def test_a_human_without_a_future_is_an_error(world: World) -> None:
    cut = dataclasses.replace(world.records[0], poses=world.records[0].poses[:8])
    with pytest.raises(ValueError, match="has 4 future frames; a recorded plan needs 8"):
        human([cut])


@pytest.fixture
def no_more_agents() -> Iterator[None]:
    """What a plug-in has added is taken away again."""
    before = dict(AGENTS)
    yield
    AGENTS.clear()
    AGENTS.update(before)


def test_plans_do_not_depend_on_batches_or_order(world: World, checkpoint: Path) -> None:
    together = PolicyAgent.from_checkpoint(checkpoint, checkpoint, seed=3)(world.records)
    assert together.shape == (7, 8, 3)
    pairs = PolicyAgent.from_checkpoint(checkpoint, checkpoint, seed=3, batch_size=2)(world.records[::-1])
    np.testing.assert_allclose(pairs[::-1], together, atol=1e-3)
    assert np.abs(together[0] - together[1]).max() > 0.1


def test_the_seed_and_omega_matter(world: World, checkpoint: Path) -> None:
    agent = PolicyAgent.from_checkpoint(checkpoint, checkpoint, seed=3, omega=1.0)
    plans = agent(world.records)
    np.testing.assert_array_equal(agent.with_seed(3)(world.records), plans)
    assert np.abs(agent.with_seed(4)(world.records) - plans).max() > 0.1
    other = PolicyAgent(agent.policy, checkpoint, seed=3, omega=0.0)(world.records)
    assert np.abs(other - plans).max() > 1e-3


def test_plans_that_are_not_finite_name_their_weights(world: World, checkpoint: Path) -> None:
    agent = PolicyAgent.from_checkpoint(checkpoint, checkpoint, seed=3, omega=1.0)
    for parameter in agent.policy.head.parameters():
        parameter.data.fill_(3e38)
    with pytest.raises(ValueError, match=rf"{checkpoint} gives plans that are not finite.*or omega 1 is too large"):
        agent(world.records[:1])


def test_the_agent_says_the_omega_that_it_samples_with(checkpoint: Path) -> None:
    agent = PolicyAgent.from_checkpoint(checkpoint, checkpoint)
    assert agent.guidance == agent.policy.sampling.omega
    assert PolicyAgent(agent.policy, checkpoint, omega=0.25).guidance == 0.25
    agent.policy.sampling = Sampling()
    assert PolicyAgent(agent.policy, checkpoint, omega=0.25).guidance is None
    assert PolicyAgent.from_checkpoint(checkpoint / "model", checkpoint, omega=0.25).guidance is None


def test_nvjpeg_without_a_gpu_is_refused_not_replaced(world: World, checkpoint: Path) -> None:
    agent = PolicyAgent.from_checkpoint(checkpoint, checkpoint, decoder="nvjpeg")
    with pytest.raises(ValueError, match="nvJPEG decodes on CUDA devices, found cpu; take decoder cpu"):
        agent(world.records[:1])


def test_an_omega_without_adapters_is_refused_by_the_tools(world: World, checkpoint: Path, tmp_path: Path) -> None:
    PolicyAgent.from_checkpoint(checkpoint, checkpoint, omega=0.25).refuse_idle_omega()
    PolicyAgent.from_checkpoint(checkpoint / "model", checkpoint).refuse_idle_omega()
    alone = PolicyAgent.from_checkpoint(checkpoint, checkpoint, omega=0.25)
    alone.policy.sampling = Sampling(("positive",))
    with pytest.raises(ValueError, match="the checkpoint is sampled from one policy alone"):
        alone.refuse_idle_omega()
    common = ["--agent", "dpvla", "--split", "small", "--data-root", str(world.root), "--checkpoint",
              str(checkpoint / "model"), "--omega", "5"]  # fmt: skip
    team = ["--team-name", "a", "--authors", "b", "--email", "c", "--institution", "d", "--country", "e"]
    for tool, more in ((evaluate, ["--maps-root", str(world.maps)]), (export_submission, team)):
        with pytest.raises(SystemExit, match="--omega has nothing to combine: the checkpoint has no adapters"):
            tool.main([*common, *more, "--out", str(tmp_path / "out")])
    assert not [*tmp_path.iterdir()]


def test_a_bare_model_directory_has_no_adapters(checkpoint: Path, tmp_path: Path) -> None:
    assert load_policy(checkpoint).has_adapters
    assert not load_policy(checkpoint / "model").has_adapters
    with pytest.raises(ValueError, match="no checkpoint at"):
        load_policy(tmp_path)


MINE = """
import numpy as np
from navsim_bridge.agents import AGENTS

def drive(records):
    plans = np.zeros((len(records), 8, 3))
    plans[..., 0] = np.arange(1, 9)
    return plans

drive.cameras = {cameras}
AGENTS["mine"] = drive
"""


@pytest.mark.usefixtures("no_more_agents")
def test_an_agent_of_a_plug_in_drives_by_its_name(world: World, tmp_path: Path) -> None:
    (tmp_path / "my_agent.py").write_text(MINE.format(cameras=()))
    team = ["--team-name", "a", "--authors", "b", "--email", "c", "--institution", "d", "--country", "e"]
    export_submission.main(
        ["--agent", "mine", "--plugin", str(tmp_path / "my_agent.py"), "--split", "small", "--data-root",
         str(world.root), "--out", str(tmp_path / "out.pkl"), *team]
    )  # fmt: skip
    ((plans,),) = read_submission(tmp_path / "out.pkl").stages
    assert set(plans) == {r.token for r in world.records}
    assert all(plan.poses[-1].tolist() == [8, 0, 0] for plan in plans.values())


@pytest.mark.usefixtures("no_more_agents")
def test_scenes_without_the_cameras_of_an_agent_are_named_before_any_work(world: World, tmp_path: Path) -> None:
    (tmp_path / "seeing_agent.py").write_text(MINE.format(cameras=("CAM_F0", "CAM_B0")))
    team = ["--team-name", "a", "--authors", "b", "--email", "c", "--institution", "d", "--country", "e"]
    with pytest.raises(SystemExit, match="14 of 14 camera files are missing, for 7 of 7 scenes"):
        export_submission.main(
            ["--agent", "mine", "--plugin", str(tmp_path / "seeing_agent.py"), "--split", "small", "--data-root",
             str(world.root), "--out", str(tmp_path / "out.pkl"), *team]
        )  # fmt: skip
    assert not (tmp_path / "out.pkl").exists()


def test_agents_say_which_cameras_they_look_at(checkpoint: Path) -> None:
    assert cameras_of(human) == ()
    assert cameras_of(PolicyAgent.from_checkpoint(checkpoint, checkpoint)) == ("CAM_L0", "CAM_F0", "CAM_R0")


def test_an_unknown_agent_is_refused_with_the_names_there_are() -> None:
    with pytest.raises(SystemExit, match="error: unknown agent 'dplva'; nearest valid name: 'dpvla'"):
        export_submission.main(["--agent", "dplva", "--split", "small"])
    with pytest.raises(SystemExit, match="--agent human drives what was recorded"):
        export_submission.main(["--agent", "human", "--split", "small"])
