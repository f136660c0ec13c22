"""On a real GPU: the CPU's numbers, and CUDA graphs that learn what plain launches learn."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import nn

from dpvla.algorithms.config import Anchor, DipoleConfig
from dpvla.algorithms.dipole import Dipole
from dpvla.rl.config import RolloutConfig
from dpvla.rl.stage import RolloutStage
from dpvla.state_based.data.replay import Replay
from dpvla.state_based.networks.draws import FreshDraws
from dpvla.state_based.running.loop_config import STATE_BASED_LOOP, UpdateConfig
from dpvla.state_based.running.update import StackedUpdate
from dpvla.training.config import ImitationConfig, LoopConfig
from dpvla.training.imitation import ImitationStage
from dpvla.training.strategies.registry import make_strategy
from navsim_bridge.golden.v1 import read_golden
from navsim_bridge.golden.v2 import read_golden_epdms
from navsim_bridge.pdm import EPDMSBatch, SceneBatch, epdms_terms, score_plans
from tests.dpvla.state_based.agent_of import agent_of
from tests.gpu.test_state_based_on_gpu import ACTION, CONFIGS, OBSERVATION, SEEDS, transitions
from tests.gpu.tiny_driving import make_policy, numbers
from tests.paths import FIXTURES
from tests.scenes_in_memory import prefer_left

pytestmark = pytest.mark.gpu
LOOP = LoopConfig(precision="bf16", trackers=())


@pytest.fixture
def gpu() -> torch.device:
    return torch.device("cuda")


@pytest.fixture
def accelerator(gpu: torch.device) -> Iterator[Accelerator]:
    AcceleratorState._reset_state(reset_partial_state=True)
    yield Accelerator(cpu=gpu.type == "cpu", mixed_precision=LOOP.precision)
    AcceleratorState._reset_state(reset_partial_state=True)


def test_pdm_scores_equal_the_cpus(gpu: torch.device) -> None:
    files = [read_golden(path) for path in sorted((FIXTURES / "golden_v1").glob("*.npz"))]
    batch = SceneBatch.from_scenes([file.scene for file in files])
    plans = torch.from_numpy(np.stack([file.proposals for file in files]))
    here, there = score_plans(batch, plans), score_plans(batch.to(gpu), plans).to("cpu")
    firm = ~torch.from_numpy(np.stack([file.results["dbg_fragile"] for file in files])).any(-1)
    for name, expected in vars(here).items():
        if expected.shape[:2] == firm.shape:
            torch.testing.assert_close(getattr(there, name)[firm], expected[firm], rtol=0, atol=1e-6, msg=name)


def test_epdms_terms_equal_the_cpus(gpu: torch.device) -> None:
    paths = sorted((FIXTURES / "golden_v2").glob("*.npz"))
    files = [read_golden_epdms(path) for path in paths]
    fragile = [np.load(FIXTURES / "golden_v1" / path.name)["dbg_fragile"] for path in paths]
    batch = EPDMSBatch.from_scenes([file.scene for file in files])
    plans = torch.from_numpy(np.stack([file.proposals for file in files]))
    here, there = epdms_terms(batch, plans), epdms_terms(batch.to(gpu), plans)
    firm = ~torch.from_numpy(np.stack(fragile)).any(-1)
    torch.testing.assert_close(there.values.cpu()[firm], here.values[firm], rtol=0, atol=1e-6)
    torch.testing.assert_close(there.human.cpu(), here.human, rtol=0, atol=1e-6, equal_nan=True)


@pytest.mark.parametrize("encoder", ["tiny", "tiny_florence"])
def test_sampling_in_float32_gives_the_cpus_plans(encoder: str, gpu: torch.device) -> None:
    policy, source = make_policy(encoder)
    batch = source.batch(range(4))
    with torch.no_grad(), torch.backends.cudnn.flags(allow_tf32=False):
        expected = policy.sample(policy.encode(batch), 3, generator=numbers())
        policy.to(gpu)
        plans = policy.sample(policy.encode(batch.to(gpu)), 3, generator=numbers())
    torch.testing.assert_close(plans.cpu(), expected, rtol=1e-3, atol=5e-3)


def test_pretraining_in_bf16_brings_the_loss_down(accelerator: Accelerator) -> None:
    policy, source = make_policy()
    policy.precision = LOOP.precision
    config = ImitationConfig(batch_size=6, noise_draws=8)
    stage = ImitationStage(policy.to(accelerator.device), source, config, accelerator, 0, print, source, prefer_left)
    update = make_strategy(stage.module, LOOP, accelerator)
    computed: set[torch.dtype] = set()
    for module in policy.modules():
        if isinstance(module, nn.Linear):
            module.register_forward_hook(lambda module, inputs, output: computed.add(output.dtype))
    batches = stage.batches(0, lambda step, values: None, update.whole_weights)
    losses = [float(update.step(next(batches), step, 1e-3)["train/loss"]) for step in range(1, 41)]
    assert computed == {torch.bfloat16}
    assert np.isfinite(losses).all()
    assert np.mean(losses[-10:]) < np.mean(losses[:10])
    assert all(np.isfinite(list(stage.evaluate(40).values())))


@pytest.mark.parametrize("anchor", ["none", "behavior"])
def test_a_dipole_cycle_in_bf16_moves_both_adapters(anchor: Anchor, accelerator: Accelerator, tmp_path: Path) -> None:
    policy, source = make_policy()
    policy.precision = LOOP.precision
    policy.to(accelerator.device)
    config = RolloutConfig(group_size=4, batch_size=3, scenes_per_call=4)
    algorithm = Dipole(DipoleConfig(anchor=anchor))
    stage = RolloutStage(
        policy, algorithm, source, prefer_left, config, accelerator, 0, tmp_path, lambda directory, cycles: None
    )
    update = make_strategy(stage.module, LOOP, accelerator)
    before = [parameter.detach().clone() for parameter in policy.adapter_parameters()]
    batches = stage.batches(0, lambda step, values: None, update.whole_weights)
    info = [update.step(next(batches), step, 1e-3) for step in (1, 2)]
    assert all(values["train/loss"].isfinite() and values["train/grad_norm"].isfinite() for values in info)
    for new, old in zip(policy.adapter_parameters(), before):
        assert all(not torch.equal(*policies) for policies in zip(new, old))


@pytest.mark.parametrize("name", CONFIGS)
def test_a_cuda_graph_learns_what_plain_launches_learn(name: str, gpu: torch.device) -> None:
    first = agent_of(CONFIGS[name], OBSERVATION, ACTION, SEEDS).to(gpu)
    agents = {True: first, False: copy.deepcopy(first)}
    for graph, agent in agents.items():
        replay = Replay(transitions(), SEEDS, device=gpu)
        update = StackedUpdate(agent, STATE_BASED_LOOP, UpdateConfig(per_step=2, cuda_graph=graph, tf32=False))
        for step in range(2, 13, 2):
            info = update.step(replay, step, 1e-3)
        assert all(value.isfinite() for value in info.values())
    for (key, one), two in zip(agents[True].state_dict().items(), agents[False].state_dict().values()):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5, msg=key)
    actions = first.act(torch.randn(2, 5, OBSERVATION, device=gpu), FreshDraws(SEEDS, gpu, 1))
    assert actions.isfinite().all() and actions.device.type == gpu.type
