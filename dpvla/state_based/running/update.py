"""Updates of an agent, several per step of the loop and, on a GPU, all of them in one CUDA graph.

An update: gather rows, losses of every network and seed, one backward pass, one fused Adam, and targets follow, after
Adam's step or before it. What it draws at random is drawn before, for each seed from a generator made of (seed,
update): the graph itself holds no generator, a stopped run goes on exactly, and a seed learns the same alone as beside
others up to float rounding.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from dpvla.config import ConfigError
from dpvla.parallel import available_cores
from dpvla.state_based.agents.agent import Agent
from dpvla.state_based.data.batch import Batch, Info
from dpvla.state_based.data.replay import Replay
from dpvla.state_based.networks.draws import CountingDraws, Draws, TapeDraws
from dpvla.state_based.running.loop_config import UpdateConfig, refuse_unsupported
from dpvla.tensors import load_tensors, not_finite, save_tensors
from dpvla.training import checkpoint
from dpvla.training.config import LoopConfig
from dpvla.training.order import step_seed

REHEARSALS = 3  # steps before a capture, in which cuBLAS and autograd allocate what they need
MOST_USEFUL_THREADS = 8  # for layers of 512 and batches of 256


LossFunction = Callable[[Batch, Draws, int], tuple[Tensor, Info]]
"""``Agent.loss``."""


class StackedUpdate:
    """An ``Update`` of ``training.loop`` for an ``Agent``; its batches are the ``Replay`` to draw from."""

    def __init__(self, agent: Agent, config: LoopConfig, launch: UpdateConfig) -> None:
        refuse_unsupported(config)
        check_launch(launch, agent.device)
        self.agent, self.stride = agent, launch.per_step
        self.device = agent.device
        on_gpu = self.device.type == "cuda"
        if on_gpu:
            torch.set_float32_matmul_precision("high" if launch.tf32 else "highest")
        else:
            torch.set_num_threads(launch.threads or own_cores())
        self._capture = on_gpu and launch.cuda_graph
        self._loss: LossFunction = torch.compile(agent.loss, dynamic=False) if launch.compile else agent.loss
        self._graphs: dict[int, tuple[torch.cuda.CUDAGraph, dict[str, Tensor]]] = {}
        self.names = [name for name, parameter in agent.named_parameters() if parameter.requires_grad]
        self.parameters = [parameter for parameter in agent.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(  # Adam where the weight decay is 0
            self.parameters,
            lr=torch.tensor(config.lr, device=self.device) if on_gpu else config.lr,
            betas=config.adam_betas,
            weight_decay=config.weight_decay,
            fused=True,
            capturable=on_gpu,
        )
        self._generators = [torch.Generator(self.device) for _ in agent.seeds]
        self._rows = torch.zeros(0, dtype=torch.int64)  # (seed, update, row)
        self._normals = self._uniforms = torch.zeros(0)  # (seed, update, number)

    def step(self, replay: Replay, step: int, lr: float) -> dict[str, Tensor]:
        """``per_step`` updates, the last of which has number ``step``; its losses, averaged over seeds."""
        if len(self._rows) == 0:
            self._make_tape(replay)
        self._draw(replay, step)
        for group in self.optimizer.param_groups:
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(lr)
            else:
                group["lr"] = lr
        phase = (step - self.stride) % self.agent.period
        if not self._capture:
            return self._updates(replay, phase)
        if phase not in self._graphs:
            self._graphs[phase] = self._captured(replay, phase)
        graph, info = self._graphs[phase]
        graph.replay()
        return {name: value.clone() for name, value in info.items()}

    def whole_weights(self, averaged: bool = False) -> AbstractContextManager[None]:
        """The agent's own weights are the ones to evaluate and save."""
        return nullcontext()

    def not_finite(self) -> list[str]:
        """Names of weights and moments that hold NaN or infinity."""
        moments = checkpoint.optimizer_tensors(self.optimizer, self.names)
        return not_finite(self.agent.state_dict()) + not_finite(moments)

    def save(self, state: Path) -> None:
        """All networks, targets included, and Adam's moments."""
        save_tensors(state / "weights.safetensors", self.agent.state_dict())
        save_tensors(state / "optimizer.safetensors", checkpoint.optimizer_tensors(self.optimizer, self.names))

    def load(self, state: Path, step: int) -> None:
        """Read back what ``save`` wrote."""
        path = state / "weights.safetensors"
        checkpoint.load_weights(self.agent, self.agent.state_dict(), load_tensors(path), path)
        weights = dict(zip(self.names, self.parameters))
        moments = checkpoint.read_moments(state / "optimizer.safetensors", weights, step)
        checkpoint.load_optimizer(self.optimizer, self.names, moments)

    def _updates(self, replay: Replay, phase: int) -> dict[str, Tensor]:
        agent = self.agent
        for update in range(self.stride):
            now = (phase + update) % agent.period
            batch = replay.gather(self._rows[:, update], agent.uses_next_actions)
            draws = TapeDraws(self._normals[:, update], self._uniforms[:, update])
            loss, info = self._loss(batch, draws, now)
            loss.sum().backward()  # seeds share no parameters, so each gets the gradient of its own loss
            if agent.coasts:
                for parameter in self.parameters:
                    if parameter.grad is None:
                        parameter.grad = torch.zeros_like(parameter)
            if agent.config.target_lag:
                agent.update_targets(now)
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            if not agent.config.target_lag:
                agent.update_targets(now)
        means = torch.stack([loss.detach(), *info.values()]).mean(-1)
        return dict(zip(("train/loss", *info), means))

    def _make_tape(self, replay: Replay) -> None:
        """Room for the random numbers of one step, as many as a trial of the loss asks for."""
        agent, seeds = self.agent, len(self.agent.seeds)
        size = agent.config.batch_size
        self._rows = torch.zeros(seeds, self.stride, size, dtype=torch.int64, device=self.device)
        counts = [CountingDraws(seeds, self.device) for _ in range(agent.period)]
        with torch.no_grad():
            for phase, counted in enumerate(counts):
                agent.loss(replay.gather(self._rows[:, 0], agent.uses_next_actions), counted, phase)
        normals, uniforms = max(c.normals for c in counts), max(c.uniforms for c in counts)
        self._normals = torch.zeros(seeds, self.stride, normals, device=self.device)
        self._uniforms = torch.zeros(seeds, self.stride, uniforms, device=self.device)

    def _draw(self, replay: Replay, step: int) -> None:
        """Fill the tape: what update n draws depends on its seed and n alone, not on how updates share a launch."""
        for place in range(self.stride):
            number = step - self.stride + 1 + place
            for row, (seed, generator) in enumerate(zip(self.agent.seeds, self._generators)):
                generator.manual_seed(step_seed(seed, number))
                self._normals[row, place].normal_(generator=generator)
                self._uniforms[row, place].uniform_(generator=generator)
            self._rows[:, place] = replay.draw_rows(self._generators, self._rows.shape[2])

    def _captured(self, replay: Replay, phase: int) -> tuple[torch.cuda.CUDAGraph, dict[str, Tensor]]:
        """The updates as a CUDA graph; capturing runs none of them."""
        with torch.cuda.device(self.device):  # streams and captures belong to the current device, which may be another
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                self.rehearse(replay, phase)
            torch.cuda.current_stream().wait_stream(stream)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                info = self._updates(replay, phase)
        return graph, info

    def rehearse(self, replay: Replay, phase: int) -> None:
        """Updates that are undone; what they allocate stays (moments, workspaces of libraries), as a capture needs."""
        kept = [(tensor, tensor.clone()) for tensor in (*self.agent.state_dict().values(), *self._moments())]
        for _ in range(REHEARSALS):
            self._updates(replay, phase)
        with torch.no_grad():
            torch._foreach_zero_(self._moments())  # where the rehearsal made them
            for tensor, before in kept:
                tensor.copy_(before)

    def _moments(self) -> list[Tensor]:
        return [value for values in self.optimizer.state.values() for value in values.values()]


def make_update(launch: UpdateConfig) -> Callable[[nn.Module, LoopConfig, Accelerator], StackedUpdate]:
    """What ``training.loop.train`` takes as ``make``; the module must be an ``Agent``."""

    def make(module: nn.Module, config: LoopConfig, accelerator: Accelerator) -> StackedUpdate:
        assert isinstance(module, Agent)
        refuse_several_processes(accelerator)
        return StackedUpdate(module, config, launch)

    return make


def refuse_several_processes(accelerator: Accelerator) -> None:
    """Raise ConfigError under a launcher of several processes."""
    if accelerator.num_processes > 1:
        raise ConfigError("the state-based track trains several seeds in one process; start it as one process")


def check_launch(launch: UpdateConfig, device: torch.device) -> None:
    """Raise ConfigError when updates cannot be launched like this on ``device``."""
    if not launch.compile:
        return
    if device.type != "cpu":
        raise ConfigError("launch.compile is for the CPU; on a GPU leave it out, launch.cuda_graph does more there")
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler) is None:
        raise ConfigError(f"launch.compile needs a C++ compiler, '{compiler}' is not there; install it or leave it out")


def own_cores() -> int:
    """CPU threads worth using: OMP_NUM_THREADS if set, else the cores this process may use.

    More threads than cores is the expensive mistake: waiting ones spin and steal time from the working ones.
    """
    if (asked := os.environ.get("OMP_NUM_THREADS", "")).isdigit():
        return max(1, int(asked))
    return min(available_cores(), MOST_USEFUL_THREADS)
