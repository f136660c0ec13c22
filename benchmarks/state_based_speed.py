"""Speed of a state-based update, beside a straight-line prototype and, if asked for, the official JAX code.

    OMP_NUM_THREADS=1 python benchmarks/state_based_speed.py --json speed.json
    ... --fql-repo DIR --jax-python PYTHON    # a checkout of github.com/seohongpark/fql and a Python with JAX and flax

All contestants take turns in one run, `--updates` each for `--rounds` rounds. On the CPU the numbers are CPU seconds of
the process (other jobs make wall time useless), on a GPU wall time with the device waited for. Sizes: cube-single's
28 observations and 5 actions, batches of 256, networks as in the paper (DIPOLE 3 x 512 tanh, FQL's code 4 x 512 gelu).
"""

from __future__ import annotations

import itertools
import os
import statistics
import subprocess
import time
from argparse import ArgumentDefaultsHelpFormatter, ArgumentParser, Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from dpvla.cli import reporting_errors
from dpvla.files import write_json
from dpvla.provenance import made_by
from dpvla.state_based.agents.config import AgentConfig
from dpvla.state_based.agents.registry import agent_class, make_agent
from dpvla.state_based.data.replay import Replay
from dpvla.state_based.data.transitions import Transitions
from dpvla.state_based.running.loop_config import STATE_BASED_LOOP, UpdateConfig
from dpvla.state_based.running.update import StackedUpdate

OBSERVATION, ACTION, BATCH, ROWS = 28, 5, 256, 100_000
WORKER = Path(__file__).with_name("fql_jax_worker.py")


class Contestant(Protocol):
    """Something that makes updates."""

    seeds: int

    def run(self, updates: int) -> float:
        """Seconds that ``updates`` updates took."""


class Timer:
    """Seconds of this process on the CPU, or of the wall once the GPU is done."""

    def __init__(self, device: torch.device) -> None:
        self._gpu, self._device = device.type == "cuda", device

    def seconds(self, work: Callable[[], object]) -> float:
        """How long ``work`` takes."""
        clock = time.perf_counter if self._gpu else time.process_time
        if self._gpu:
            torch.cuda.synchronize(self._device)
        begin = clock()
        work()
        if self._gpu:
            torch.cuda.synchronize(self._device)
        return clock() - begin


class OurUpdate:
    """The package's own update, through its replay and its tape of random numbers."""

    def __init__(
        self, name: str, config: AgentConfig, data: Transitions, seeds: int, per_step: int, device: torch.device
    ) -> None:
        self.seeds, self.stride = seeds, per_step
        agent = make_agent(name, config, OBSERVATION, ACTION, range(seeds)).to(device)
        self._replay = Replay(data, range(seeds), device=device)
        self._update = StackedUpdate(agent, STATE_BASED_LOOP, UpdateConfig(per_step=per_step))
        self._timer, self._step = Timer(device), 0

    def run(self, updates: int) -> float:
        """Seconds that ``updates`` updates took; a multiple of ``per_step``."""

        def work() -> None:
            for _ in range(0, updates, self.stride):
                self._step += self.stride
                self._update.step(self._replay, self._step, 3e-4)

        return self._timer.seconds(work)


class Prototype:
    """DIPOLE with the V target written down straight, without the package: batched matmuls, one fused Adam.

    What the package's layers cost is its distance from this.
    """

    seeds = 1

    def __init__(self, data: Transitions, device: torch.device) -> None:
        self._timer, self._data, self._device = Timer(device), data, device
        self._columns = [getattr(data, name).to(device) for name in
                         ("observations", "actions", "rewards", "next_observations", "masks")]  # fmt: skip
        self.policy = self._network(2, OBSERVATION + ACTION + 1, ACTION, norm=False)
        self.q = self._network(2, OBSERVATION + ACTION, 1, norm=True)
        self.v = self._network(1, OBSERVATION, 1, norm=True)
        self.target = [tensor.detach().clone() for tensor in self.q]
        trained = [*self.policy, *self.q, *self.v]
        self.adam = torch.optim.Adam(trained, lr=3e-4, fused=True)

    def _network(self, members: int, inputs: int, outputs: int, norm: bool) -> list[Tensor]:
        tensors, sizes = [], [inputs, 512, 512, 512, outputs]
        for layer, (i, o) in enumerate(itertools.pairwise(sizes)):
            tensors += [torch.randn(members, i, o) / i**0.5, torch.zeros(members, 1, o)]
            if norm and layer < 3:
                tensors += [torch.ones(members, 1, o), torch.zeros(members, 1, o)]
        return [tensor.to(self._device).requires_grad_() for tensor in tensors]

    @staticmethod
    def _forward(tensors: list[Tensor], x: Tensor, norm: bool) -> Tensor:
        members = tensors[0].shape[0]
        x = x.expand(members, *x.shape)
        per = 4 if norm else 2
        for layer in range(3):
            weight, bias = tensors[per * layer : per * layer + 2]
            x = torch.tanh(torch.baddbmm(bias, x, weight))
            if norm:
                gain, offset = tensors[per * layer + 2 : per * layer + 4]
                x = F.layer_norm(x, (512,)) * gain + offset
        return torch.baddbmm(tensors[-1], x, tensors[-2])

    def _update(self) -> None:
        rows = torch.randint(ROWS, (BATCH,), device=self._device)
        s, a, r, following, mask = (column[rows] for column in self._columns)
        sa = torch.cat((s, a), 1)
        with torch.no_grad():
            target_q = self._forward(self.target, sa, True).squeeze(-1).amin(0)
            y = r + 0.99 * mask * self._forward(self.v, following, True)[0, :, 0]
        v = self._forward(self.v, s, True)[0, :, 0]
        d = target_q - v
        loss = (torch.where(d >= 0, 0.9, 0.1) * d.square()).mean()
        loss = loss + (self._forward(self.q, sa, True).squeeze(-1) - y).square().sum(0).mean()
        noise, t = torch.randn_like(a), torch.rand(BATCH, 1, device=self._device)
        predicted = self._forward(self.policy, torch.cat((s, torch.lerp(noise, a, t), t), 1), False)
        good = torch.sigmoid(d.detach())
        error = (predicted - (a - noise)).square().mean(-1)
        loss = loss + (torch.stack((good, 1 - good)) * error).sum(0).mean()
        loss.backward()
        self.adam.step()
        self.adam.zero_grad(set_to_none=True)
        with torch.no_grad():
            torch._foreach_lerp_(self.target, self.q, 0.005)

    def run(self, updates: int) -> float:
        """Seconds that ``updates`` updates took."""

        def work() -> None:
            for _ in range(updates):
                self._update()

        return self._timer.seconds(work)


class OfficialJAX:
    """An agent of the official FQL code, unmodified, in a process of its own on one core."""

    seeds = 1

    def __init__(self, agent: str, repo: Path, python: Path, device: torch.device) -> None:
        environment = dict(os.environ)
        command = [str(python), str(WORKER), str(repo), agent, str(OBSERVATION), str(ACTION), str(BATCH)]
        if device.type == "cpu":
            environment |= {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false"}
            command.append("--one-core")
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def run(self, updates: int) -> float:
        """Seconds that ``updates`` updates took: CPU seconds of its process on a CPU, else wall seconds."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(f"{updates}\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError(f"the JAX process ended with status {self._process.wait()}; its message is above")
        return float(answer)

    def close(self) -> None:
        """End the process."""
        self._process.communicate("0\n")


def synthetic_rows() -> Transitions:
    """Random rows of cube-single's sizes."""
    generator = torch.Generator().manual_seed(0)
    return Transitions(
        torch.randn(ROWS, OBSERVATION, generator=generator),
        2 * torch.rand(ROWS, ACTION, generator=generator) - 1,
        -torch.rand(ROWS, generator=generator),
        torch.randn(ROWS, OBSERVATION, generator=generator),
        torch.ones(ROWS),
        (torch.arange(ROWS) % 1000 == 999).float(),
    )


def contestants(options: Namespace, device: torch.device) -> dict[str, Contestant]:
    """Who takes part, by name."""
    data, stride = synthetic_rows(), options.per_step

    def ours(name: str, seeds: int = 1, **changes: Any) -> Contestant:
        return OurUpdate(name, agent_class(name).Config(**changes), data, seeds, stride, device)

    found: dict[str, Contestant] = {
        "DIPOLE, V target": ours("dipole", q_target="value", activation="tanh"),
        "prototype of the same": Prototype(data, device),
        "IFQL": ours("ifql"),
    }
    if options.fql_repo:
        found["IFQL, official JAX"] = OfficialJAX("ifql", options.fql_repo, options.jax_python, device)
    if options.all:
        found["DIPOLE, policy TD target"] = ours("dipole", activation="tanh")
        found["FQL"] = ours("fql")
        if options.fql_repo:
            found["FQL, official JAX"] = OfficialJAX("fql", options.fql_repo, options.jax_python, device)
    if options.seeds > 1:
        found[f"DIPOLE, V target, {options.seeds} seeds"] = ours(
            "dipole", options.seeds, q_target="value", activation="tanh"
        )
    return found


@reporting_errors
def main(argv: list[str] | None = None) -> None:
    """Measure, print a table and, if asked for, write it as JSON."""
    parser = ArgumentParser(description=__doc__, formatter_class=ArgumentDefaultsHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15, help="turns of every contestant")
    parser.add_argument("--updates", type=int, default=5, help="updates in a turn; a multiple of --per-step")
    parser.add_argument("--per-step", type=int, default=1, help="updates in one launch (and in one CUDA graph)")
    parser.add_argument("--seeds", type=int, default=1, help="also so many seeds side by side")
    parser.add_argument("--all", action="store_true", help="also FQL and DIPOLE's policy TD target")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--fql-repo", type=Path, help="checkout of github.com/seohongpark/fql")
    parser.add_argument("--jax-python", type=Path, default="python", help="Python with jax, flax, optax, distrax")
    parser.add_argument("--json", type=Path, help="write the numbers here")
    options = parser.parse_args(argv)
    if options.updates % options.per_step:
        parser.error("--updates must be a multiple of --per-step")
    device = torch.device(options.device)
    takers = contestants(options, device)
    times: dict[str, list[float]] = {name: [] for name in takers}
    try:
        for taker in takers.values():
            taker.run(2 * options.per_step)  # allocation, compilation, capture
        order = list(takers.items())
        for number in range(options.rounds):
            first = number % len(order)  # nobody always follows the same one
            for name, taker in order[first:] + order[:first]:
                times[name].append(1e3 * taker.run(options.updates) / options.updates / taker.seeds)
    finally:
        for taker in takers.values():
            if isinstance(taker, OfficialJAX):
                taker.close()

    unit = "wall ms" if device.type == "cuda" else "CPU ms"
    print(f"{unit} per update and seed: median, least; ratio of DIPOLE, V target to it (median over rounds)")
    table: list[dict[str, Any]] = []
    for name, values in times.items():
        ratio = statistics.median(a / b for a, b in zip(times["DIPOLE, V target"], values))
        table.append({"name": name, "median_ms": statistics.median(values), "least_ms": min(values), "ratio": ratio})
        print(f"{name:32s} {table[-1]['median_ms']:7.1f} {table[-1]['least_ms']:7.1f} {ratio:6.2f}")
    if options.json:
        write_json(options.json, {"unit": unit, "rows": table, "times": times, "provenance": made_by()})


if __name__ == "__main__":
    main()
