"""Training on the state-based track: seeds side by side equal seeds alone, stopped runs go on exactly, replay rows."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file

from dpvla.state_based.agents.agent_files import load_agent, save_agent
from dpvla.state_based.agents.dipole import DipoleAgentConfig
from dpvla.state_based.agents.registry import AGENTS
from dpvla.state_based.data.replay import Replay
from dpvla.state_based.data.transitions import ACTION_LIMIT, Transitions
from dpvla.state_based.networks.draws import FreshDraws, TapeDraws
from dpvla.state_based.running import update
from dpvla.state_based.running.loop_config import STATE_BASED_LOOP, UpdateConfig
from dpvla.state_based.running.stage import AgentStage
from dpvla.state_based.running.update import StackedUpdate, make_update, own_cores
from dpvla.tensors import CheckpointError
from dpvla.training.config import LoopConfig
from dpvla.training.loop import train
from tests.dpvla.state_based.agent_of import agent_of, config_of
from tests.written_runs import write_run

SMALL: dict[str, Any] = {"hidden": (8, 8), "batch_size": 16}
LOOP = replace(STATE_BASED_LOOP, steps=12, log_every=4, evaluate_every=6, save_every=4, trackers=())


def transitions(rows: int = 60, observation: int = 3, action: int = 2) -> Transitions:
    """Episodes of ten rows; the last of each second one is a success."""
    generator = torch.Generator().manual_seed(0)
    terminals = (torch.arange(rows) % 10 == 9).float()
    return Transitions(
        observations=torch.randn(rows, observation, generator=generator),
        actions=2 * torch.rand(rows, action, generator=generator) - 1,
        rewards=torch.randn(rows, generator=generator),
        next_observations=torch.randn(rows, observation, generator=generator),
        masks=1 - (torch.arange(rows) % 20 == 19).float(),
        terminals=terminals,
    )


def updated(name: str, seeds: list[int], steps: int = 5, stride: int = 1, config: Any = None) -> Any:
    agent = agent_of(config or config_of(name, **SMALL), 3, 2, seeds)
    replay = Replay(transitions(), seeds)
    how = StackedUpdate(agent, LOOP, UpdateConfig(per_step=stride, threads=1))
    for step in range(stride, steps * stride + 1, stride):
        how.step(replay, step, 3e-3)
    return agent


@pytest.mark.parametrize("name", AGENTS)
def test_three_seeds_side_by_side_learn_what_each_learns_alone(name: str) -> None:
    together = updated(name, [4, 5, 6]).state_dict()
    for place, seed in enumerate([4, 5, 6]):
        alone = updated(name, [seed]).state_dict()
        assert alone.keys() == together.keys()
        for key, value in alone.items():
            assert torch.allclose(together[key].chunk(3)[place], value, rtol=1e-4, atol=1e-5), f"seed {seed}: {key}"
    different = [key for key, value in together.items() if not torch.allclose(*value.chunk(3)[:2])]
    assert different and all("weight" in key or "bias" in key or "gain" in key or "labels" in key
                             or "frequencies" in key for key in different)  # fmt: skip


@pytest.mark.parametrize("name", ["dipole", "rebrac"])
def test_several_updates_in_one_step_are_the_same_updates(name: str) -> None:
    single, four = updated(name, [4, 5], 8).state_dict(), updated(name, [4, 5], 2, stride=4).state_dict()
    assert all(torch.equal(single[key], four[key]) for key in single)


def test_each_seed_and_each_update_draws_other_rows_and_other_noise() -> None:
    agent = agent_of(DipoleAgentConfig(**SMALL), 3, 2, [4, 5])
    how = StackedUpdate(agent, LOOP, UpdateConfig(per_step=2, threads=1))
    how.step(Replay(transitions(), [4, 5]), 2, 1e-3)
    for tape in (how._rows, how._normals, how._uniforms):
        four = tape.flatten(0, 1)
        assert len(four.unique(dim=0)) == 4


def test_acting_draws_for_each_seed_what_it_draws_alone() -> None:
    agent, alone = updated("dipole", [1, 2]), updated("dipole", [2])
    observations = torch.randn(2, 4, 3)
    both = agent.act(observations, FreshDraws(agent.seeds, "cpu", 77))
    assert torch.allclose(both[1:], alone.act(observations[1:], FreshDraws([2], "cpu", 77)), atol=1e-4)


def describe(directory: Path) -> None:
    write_run(directory, LOOP, 0, ())


def stage(config: Any, stride: int, online_rows: int = 0) -> AgentStage:
    agent = agent_of(config, 3, 2, [0, 1])
    replay = Replay(transitions(), [0, 1], capacity=online_rows)

    def evaluate(step: int) -> Mapping[str, float]:
        acted = agent.act(torch.ones(2, 3, 3), FreshDraws(agent.seeds, "cpu", step), 0.0)
        return {"evaluation/action": float(acted.mean())}

    def collect(step: int) -> Mapping[str, float]:
        draws = FreshDraws(agent.seeds, "cpu", step, 1)
        observations = draws.normal(1, 3)
        actions = agent.act(observations, draws)
        end = torch.full((2,), float(step % 3 == 0))
        replay.add(observations[:, 0], actions[:, 0], end, draws.normal(1, 3)[:, 0], 1 - end, end)
        return {"collect/rows": float(len(replay))} if step % 4 == 0 else {}

    return AgentStage(agent, replay, describe, evaluate, collect if online_rows else None, stride)


def run(
    out: Path, config: Any, stops: list[int], stride: int = 1, loop: LoopConfig = LOOP, online_rows: int = 0
) -> Path:
    for stop in [*stops, 0]:
        made = stage(config, stride, online_rows)
        arguments = (made, replace(loop, stop_after_step=stop), out, Accelerator(cpu=True))
        how = make_update(UpdateConfig(per_step=stride, threads=1))
        if not stop:
            return train(*arguments, make=how)
        with pytest.raises(KeyboardInterrupt, match=f"step {stop}"):
            train(*arguments, make=how)
    raise AssertionError


def assert_same(a: Path, b: Path) -> None:
    names = sorted(p.relative_to(a) for p in a.rglob("*.safetensors"))
    assert names == sorted(p.relative_to(b) for p in b.rglob("*.safetensors"))
    assert {"model.safetensors", "weights.safetensors", "optimizer.safetensors"} <= {p.name for p in names}
    for name in names:
        left, right = load_file(a / name), load_file(b / name)
        assert left.keys() == right.keys()
        assert all(torch.equal(left[key], right[key]) for key in left), name
    logs = []
    for out in (a.parent.parent, b.parent.parent):
        with (out / "metrics.csv").open(newline="") as file:
            logs.append([{k: v for k, v in row.items() if "speed" not in k} for row in csv.DictReader(file)])
    assert logs[0][-1] == logs[1][-1] and len(logs[0]) >= 3


@pytest.mark.parametrize(("name", "stride"), [("dipole", 1), ("dipole", 2), ("rebrac", 1), ("idql", 2)])
def test_a_stopped_run_ends_bit_for_bit_as_in_one_go(tmp_path: Path, name: str, stride: int) -> None:
    config = config_of(name, **SMALL)
    straight = run(tmp_path / "straight", config, [], stride)
    broken = run(tmp_path / "broken", config, [2, 6], stride)
    assert straight.name == broken.name == "step_00000012"
    assert_same(straight, broken)


def test_offline_then_online_goes_on_in_the_same_directory_and_resumes_with_its_collected_rows(tmp_path: Path) -> None:
    config = DipoleAgentConfig(**SMALL)
    longer = replace(LOOP, steps=20)
    ends = []
    for name, stops in (("straight", []), ("broken", [15, 18])):
        out = tmp_path / name
        run(out, config, [], stride=2)
        ends.append(run(out, config, stops, stride=1, loop=longer, online_rows=8))
    assert_same(*ends)
    assert load_file(ends[0] / "trainer_state" / "replay.safetensors")["collected"].shape == (2, 8, 11)


def test_steps_that_are_no_multiple_of_the_updates_per_step_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"loop.steps = 12 must be a multiple of 5"):
        run(tmp_path, DipoleAgentConfig(**SMALL), [], stride=5)


def test_loop_options_that_this_track_does_not_have_are_refused() -> None:
    agent = agent_of(DipoleAgentConfig(**SMALL), 3, 2, [0])
    with pytest.raises(ValueError, match=r"loop.clip_norm must be 0.0"):
        StackedUpdate(agent, replace(LOOP, clip_norm=1.0), UpdateConfig())
    with pytest.raises(ValueError, match=r"loop.ema_decay"):
        StackedUpdate(agent, replace(LOOP, ema_decay=0.99), UpdateConfig())


@pytest.mark.skipif(shutil.which("g++") is None, reason="compiling needs a C++ compiler")
def test_compiled_losses_learn_the_same() -> None:
    ends = []
    for compiled in (False, True):
        agent, replay = agent_of(config_of("flow_bc", **SMALL), 3, 2, [0, 1]), Replay(transitions(), [0, 1])
        how = StackedUpdate(agent, LOOP, UpdateConfig(threads=1, compile=compiled))
        assert hasattr(how._loss, "_torchdynamo_orig_callable") is compiled
        for step in range(1, 6):
            how.step(replay, step, 3e-3)
        ends.append(agent.state_dict())
    assert all(torch.allclose(ends[0][key], ends[1][key], atol=1e-5) for key in ends[0])


def test_compiling_without_a_compiler_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(ValueError, match=r"launch.compile needs a C\+\+ compiler, 'no-such-compiler' is not there"):
        StackedUpdate(agent_of(DipoleAgentConfig(**SMALL), 3, 2, [0]), LOOP, UpdateConfig(compile=True))


@pytest.mark.parametrize("lag", [False, True])
@pytest.mark.parametrize("coasts", [False, True])
def test_targets_follow_by_the_soft_update_and_rebracs_actor_learns_every_second_time(coasts: bool, lag: bool) -> None:
    """Formerly the actor rested in between, and targets took over the new weights; the official code's do neither."""
    config = config_of("rebrac", target_rate=0.25, actor_coasts=coasts, target_lag=lag, **SMALL)
    agent = agent_of(config, 3, 2, [0])
    how = StackedUpdate(agent, LOOP, UpdateConfig(threads=1))
    replay, states = Replay(transitions(), [0]), []
    for step in range(1, 4):
        states.append({key: value.clone() for key, value in agent.state_dict().items()})
        how.step(replay, step, 1e-2)
    states.append(agent.state_dict())
    for first, second, learns in zip(states, states[1:], (False, True, False)):
        assert not torch.equal(first["critic.online.final.weight"], second["critic.online.final.weight"])
        moves = learns or (coasts and first is not states[0])  # there is no momentum yet
        assert torch.equal(first["policy.final.weight"], second["policy.final.weight"]) is not moves
        for online, target in (("policy.final.bias", "target_policy.final.bias"),
                               ("critic.online.final.weight", "critic.target.final.weight")):  # fmt: skip
            expected = first[target].lerp((first if lag else second)[online], 0.25) if learns else first[target]
            assert torch.allclose(second[target], expected, atol=1e-7)


@pytest.mark.parametrize("name", ["dipole", "rebrac"])
def test_the_rehearsal_before_a_graph_capture_leaves_no_trace(name: str) -> None:
    ends = []
    for rehearsals in ((), (1,), (1, 3)):
        agent = agent_of(config_of(name, **SMALL), 3, 2, [0])
        how, replay = StackedUpdate(agent, LOOP, UpdateConfig(threads=1)), Replay(transitions(), [0])
        how._make_tape(replay)
        for step in range(1, 5):
            if step in rehearsals:
                how.rehearse(replay, step % 2)
            how.step(replay, step, 1e-2)
        ends.append(agent.state_dict())
    assert all(torch.equal(ends[0][key], end[key]) for key in ends[0] for end in ends[1:])


def test_rebracs_actor_takes_adams_step_with_zero_gradients_in_between() -> None:
    config = config_of("rebrac", **SMALL)
    agent, twin = (agent_of(config, 3, 2, [0]) for _ in range(2))
    replay = Replay(transitions(), [0])
    how = StackedUpdate(agent, LOOP, UpdateConfig(threads=1))
    adam = torch.optim.Adam(twin.parameters(), lr=1e-2)
    for step in range(1, 5):
        how.step(replay, step, 1e-2)
        draws = TapeDraws(how._normals[:, 0], how._uniforms[:, 0])
        adam.zero_grad(set_to_none=False)
        loss, _ = twin.loss(replay.gather(how._rows[:, 0], next_actions=True), draws, (step - 1) % 2)
        loss.sum().backward()
        for parameter in twin.parameters():
            if parameter.requires_grad and parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        twin.update_targets((step - 1) % 2)
        adam.step()
    for key, value in twin.state_dict().items():
        assert torch.allclose(agent.state_dict()[key], value, atol=1e-6), key


def test_an_update_is_adam_on_the_agents_loss() -> None:
    agent, twin = (agent_of(DipoleAgentConfig(**SMALL), 3, 2, [0]) for _ in range(2))
    replay = Replay(transitions(), [0])
    how = StackedUpdate(agent, LOOP, UpdateConfig(threads=1))
    how.step(replay, 1, 1e-2)
    parameters = [p for p in twin.parameters() if p.requires_grad]
    adam = torch.optim.Adam(parameters, lr=1e-2)
    draws = TapeDraws(how._normals[:, 0], how._uniforms[:, 0])
    twin.loss(replay.gather(how._rows[:, 0]), draws, 0)[0].sum().backward()
    adam.step()
    for a, b in zip((p for p in agent.parameters() if p.requires_grad), parameters):
        assert torch.allclose(a, b, atol=1e-6)


def test_a_saved_agent_acts_as_before_and_a_greedier_one_may_be_asked_for(tmp_path: Path) -> None:
    agent = updated("dipole", [3, 4])
    save_agent(agent, tmp_path)
    again, greedier = load_agent(tmp_path), load_agent(tmp_path, omega=4.0)
    observations = torch.randn(2, 5, 3)
    first, same, other = (a.act(observations, FreshDraws([3, 4], "cpu", 0)) for a in (agent, again, greedier))
    assert torch.equal(first, same) and not torch.equal(first, other)
    with pytest.raises(CheckpointError):
        load_agent(tmp_path, hidden=(4, 4))


def test_every_row_is_drawn_about_equally_often_and_each_seed_draws_its_own_collected_rows() -> None:
    recorded = transitions(20)
    replay = Replay(recorded, [0, 1], capacity=5)
    for step in range(5):
        number = torch.tensor([100.0 + step, 200.0 + step])
        replay.add(
            number[:, None].expand(2, 3), torch.zeros(2, 2), number, torch.zeros(2, 3), torch.ones(2), torch.zeros(2)
        )
    generators = [torch.Generator().manual_seed(seed) for seed in (0, 1)]
    rows = replay.draw_rows(generators, 25_000)
    rewards = replay.gather(rows).rewards
    for seed, own in enumerate((100.0, 200.0)):
        values, counts = rewards[seed].unique(return_counts=True)
        assert len(values) == 25 and set(values[values > 50].tolist()) == {own + step for step in range(5)}
        assert counts.min() > 850 and counts.max() < 1150
    with pytest.raises(ValueError, match="room for 5 collected rows"):
        replay.add(
            torch.zeros(2, 3), torch.zeros(2, 2), torch.zeros(2), torch.zeros(2, 3), torch.ones(2), torch.zeros(2)
        )


def test_next_actions_are_known_inside_an_episode_only() -> None:
    recorded = transitions(20)
    replay = Replay(recorded, [0], capacity=3)
    batch = replay.gather(torch.arange(20)[None], next_actions=True)
    assert batch.next_actions is not None and batch.next_action_known is not None
    assert batch.next_action_known[0].tolist() == [1.0] * 9 + [0.0] + [1.0] * 9 + [0.0]
    assert torch.equal(batch.next_actions[0, :9], recorded.actions[1:10])
    for end in (0.0, 1.0, 0.0):
        replay.add(
            torch.zeros(1, 3), torch.ones(1, 2), torch.zeros(1), torch.zeros(1, 3), torch.ones(1), torch.tensor([end])
        )
    batch = replay.gather(torch.tensor([[20, 21, 22]]), next_actions=True)
    assert batch.next_action_known is not None
    assert batch.next_action_known[0].tolist() == [1.0, 0.0, 0.0]  # followed; an end; nothing recorded yet


def test_masks_and_terminals_stay_two_things() -> None:
    recorded = transitions(40)
    batch = Replay(recorded, [0]).gather(torch.arange(40)[None], next_actions=True)
    assert batch.next_action_known is not None
    assert torch.equal(batch.masks[0], recorded.masks)
    limits = (recorded.terminals == 1) & (recorded.masks == 1)
    assert int(limits.sum()) == 2 and batch.next_action_known[0][limits].sum() == 0


def test_transitions_refuse_what_cannot_be_learned_from() -> None:
    good = {name: getattr(transitions(), name).numpy().astype(np.float64) for name in
            ("observations", "actions", "rewards", "next_observations", "masks", "terminals")}  # fmt: skip
    assert len(Transitions.from_arrays(good | {"qpos": np.zeros(3)})) == 60
    with pytest.raises(ValueError, match="lack masks"):
        Transitions.from_arrays({name: value for name, value in good.items() if name != "masks"})
    with pytest.raises(ValueError, match="observations holds NaN or infinity in 1 of 60 rows"):
        Transitions.from_arrays(
            good | {"observations": np.where(np.arange(60)[:, None] == 3, np.nan, good["observations"])}
        )
    with pytest.raises(ValueError, match="rewards must be float32 with 1 axes and 60 rows"):
        Transitions.from_arrays(good | {"rewards": good["rewards"][:, None]})
    with pytest.raises(ValueError, match="masks must be 0 or 1"):
        Transitions.from_arrays(good | {"masks": 0.5 * good["masks"]})
    with pytest.raises(ValueError, match=r"actions must lie in \[-1, 1\]"):
        replace(transitions(), actions=torch.full((60, 2), 1.5))
    assert Transitions.from_arrays(good | {"actions": 9 * good["actions"]}).actions.abs().max() <= ACTION_LIMIT


def test_threads_follow_the_environment_and_else_the_cores_of_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert own_cores() == 3
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr(update.os, "sched_getaffinity", lambda _: set(range(64)), raising=False)
    assert 1 <= own_cores() <= 8
