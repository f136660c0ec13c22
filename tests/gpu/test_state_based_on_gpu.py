"""State-based updates and actions on a GPU: CUDA's device rules, no waiting, so that a graph can be captured."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import MagicMock, patch

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dpvla.state_based.agents.agent import Agent
from dpvla.state_based.agents.dipole import DipoleAgentConfig
from dpvla.state_based.agents.rebrac import ReBRACConfig
from dpvla.state_based.agents.recipes import changed, load_recipe
from dpvla.state_based.agents.registry import AGENTS
from dpvla.state_based.data.replay import Replay
from dpvla.state_based.data.transitions import Transitions
from dpvla.state_based.networks.draws import FreshDraws
from dpvla.state_based.running.loop_config import STATE_BASED_LOOP, UpdateConfig
from dpvla.state_based.running.update import StackedUpdate
from tests.dpvla.state_based.agent_of import agent_of, config_of
from tests.gpu.pretended import PretendedGPU, value

OBSERVATION, ACTION, SEEDS = 3, 2, (4, 5)
SMALL: dict[str, Any] = {"hidden": (8, 8), "batch_size": 6}
FEW = SMALL | {"flow_steps": 2}
CONFIGS = {name: config_of(name, **SMALL) for name in AGENTS} | {
    "dipole, V target": DipoleAgentConfig(**SMALL, q_target="value"),
    "dipole, best of n": DipoleAgentConfig(**SMALL, next_action="best_of_n"),
    "dipole, recorded": DipoleAgentConfig(**SMALL, next_action="dataset"),
    "dipole, guided": DipoleAgentConfig(**FEW, omega=2.0, next_omega=None, clip_q=False, target_lag=True),
    "dipole, by the text": changed(load_recipe("dipole", "cube-single-play-singletask-v0", "paper"), FEW, "the test"),
    "rebrac, resting": ReBRACConfig(**SMALL, actor_coasts=False, target_lag=False),
}


@pytest.fixture(autouse=True)
def _precision() -> Iterator[None]:
    """An update on a GPU chooses the precision of matmuls for the whole process."""
    before = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(before)


def transitions(rows: int = 40) -> Transitions:
    draw = torch.Generator().manual_seed(0)
    return Transitions(
        torch.randn(rows, OBSERVATION, generator=draw),
        2 * torch.rand(rows, ACTION, generator=draw) - 1,
        torch.randn(rows, generator=draw),
        torch.randn(rows, OBSERVATION, generator=draw),
        torch.ones(rows),
        (torch.arange(rows) % 10 == 9).float(),
    )


def updates(device: torch.device, agent: Agent, data: Transitions, steps: int = 2) -> tuple[StackedUpdate, Replay]:
    agent.to(device)
    replay = Replay(data, SEEDS, device=device)
    how = StackedUpdate(agent, STATE_BASED_LOOP, UpdateConfig(cuda_graph=False, threads=1))
    for step in range(1, steps + 1):
        how.step(replay, step, 3e-3)
    return how, replay


@pytest.mark.parametrize("name", CONFIGS)
def test_an_update_learns_on_a_gpu_what_it_learns_on_the_cpu_and_could_be_captured(name: str) -> None:
    data, (there, here) = transitions(), (agent_of(CONFIGS[name], OBSERVATION, ACTION, SEEDS) for _ in range(2))
    expected = updates(torch.device("cpu"), here, data)[0].agent.state_dict()
    gpu = PretendedGPU(backward=True)
    with gpu():
        how, replay = updates(gpu.device, there, data)
        learned = {key: value(tensor.clone()) for key, tensor in how.agent.state_dict().items()}
        gpu.forget()
        how.rehearse(replay, 0)
        info = how._updates(replay, 0)
        assert not gpu.syncs and gpu.copies_in == 0, gpu.syncs
        assert all(number.device == gpu.device for number in info.values())
        gpu.forget()
        how.step(replay, 3, 3e-3)
        assert not gpu.syncs and gpu.copies_in == 0, gpu.syncs
        assert how.not_finite() == []
    for key, tensor in expected.items():
        torch.testing.assert_close(learned[key], tensor, rtol=1e-4, atol=1e-5, msg=key)


class _Operations(TorchDispatchMode):
    """Notes every operation with the shapes and devices of what it takes."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, tuple[tuple[torch.device, tuple[int, ...]], ...]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        self.seen.append((str(func), tuple((tensor.device, tuple(tensor.shape)) for tensor in given)))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", CONFIGS)
def test_what_a_graph_captures_is_the_same_whatever_the_rows_hold_and_needs_nothing_of_the_cpu(name: str) -> None:
    """A replay repeats the operations of the capture: none may depend on values, nor read a CPU's memory."""
    agent, data, gpu = agent_of(CONFIGS[name], OBSERVATION, ACTION, SEEDS), transitions(), PretendedGPU(backward=True)
    with gpu():
        how, replay = updates(gpu.device, agent, data)
        runs = []
        for _ in range(2):
            with _Operations() as operations:
                how._updates(replay, 0)
            runs.append(operations.seen)
            replay.table.mul_(-3.0).add_(0.5)  # other observations, actions, rewards and masks
            how._rows.copy_(how._rows.flip(-1))
            how._normals.neg_()
    assert runs[0] == runs[1]
    of_cpu = {(func, shape) for func, given in runs[0] for device, shape in given if device.type == "cpu" and shape}
    assert not of_cpu


def test_a_graph_that_reads_a_tensor_of_the_cpu_is_found() -> None:
    gpu = PretendedGPU()
    with gpu(), _Operations() as operations:
        torch.zeros(3, device=gpu.device).add_(torch.ones(3).to(gpu.device))
    assert any(device.type == "cpu" and shape for _, given in operations.seen for device, shape in given)


@pytest.mark.parametrize("name", CONFIGS)
def test_an_agent_acts_on_a_gpu_as_on_the_cpu_without_waiting(name: str) -> None:
    agent = agent_of(CONFIGS[name], OBSERVATION, ACTION, SEEDS)
    observations = torch.randn(2, 5, OBSERVATION)
    expected = agent.act(observations, FreshDraws(SEEDS, "cpu", 1))
    gpu = PretendedGPU()
    with gpu():
        agent.to(gpu.device)
        moved = observations.to(gpu.device)
        gpu.forget()
        actions = agent.act(moved, FreshDraws(SEEDS, gpu.device, 1))
        assert actions.device == gpu.device
        assert not gpu.syncs and gpu.copies_in == 0, gpu.syncs
    torch.testing.assert_close(value(actions), expected, rtol=1e-4, atol=1e-5)


def test_collected_rows_reach_a_replay_on_a_gpu() -> None:
    data = transitions()
    gpu = PretendedGPU()
    with gpu():
        replay = Replay(data, SEEDS, capacity=4, device=gpu.device)
        for step in range(3):
            replay.add(torch.ones(2, OBSERVATION), torch.zeros(2, ACTION), torch.full((2,), 10.0 + step),
                       torch.ones(2, OBSERVATION), torch.ones(2), torch.zeros(2))  # fmt: skip
        rows = replay.draw_rows([torch.Generator(gpu.device).manual_seed(seed) for seed in SEEDS], 200)
        batch = replay.gather(rows, next_actions=True)
        assert batch.rewards.device == gpu.device
    assert value(batch.rewards).max() == 12.0


def test_a_graph_is_captured_on_the_agents_own_device() -> None:
    """Streams and graphs are those of the current device, which is number 0 until somebody says otherwise."""
    agent, data = agent_of(DipoleAgentConfig(**SMALL), OBSERVATION, ACTION, SEEDS), transitions()
    current: list[torch.device] = []
    captured: list[bool] = []

    @contextmanager
    def device(index: torch.device) -> Iterator[None]:
        current.append(index)
        yield
        current.pop()

    @contextmanager
    def graph(_: Any) -> Iterator[None]:
        captured.append(current[-1:] == [gpu.device])
        yield

    gpu = PretendedGPU(backward=True)
    nothing = {name: MagicMock() for name in ("Stream", "stream", "current_stream", "CUDAGraph")}
    with gpu(), patch.multiple(torch.cuda, device=device, graph=graph, **nothing):
        agent.to(gpu.device)
        replay = Replay(data, SEEDS, device=gpu.device)
        StackedUpdate(agent, STATE_BASED_LOOP, UpdateConfig()).step(replay, 1, 3e-3)
    assert captured == [True]
