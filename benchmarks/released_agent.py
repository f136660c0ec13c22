"""Are our agents the official ones? The same updates by both, from the same weights, batches and random numbers.

    python benchmarks/released_agent.py --fql-repo DIR --agent-file FILE --cfgrl-repo DIR --jax-python PYTHON --json OUT

``--agent-file``: the authors' released DIPOLE agent (class DIPOLEAgent); it imports ``utils`` of ``--fql-repo``, a
checkout of github.com/seohongpark/fql, which has ReBRAC, IQL, IFQL and FQL as well. ``--cfgrl-repo``: one of
github.com/kvfrans/cfgrl_submit. ``--jax-python``: a Python with jax, flax, optax, distrax and ml_collections; it runs
the official files as they are. Agents whose files are not given are left out.

Our side is the package's own update with the recipe of ``--env``. Compared at every update: the loss and its parts, the
gradient of every network, DIPOLE's actions of the TD target and the target itself; at the end all weights, target
networks included, and actions. A difference is divided by the largest number of what is compared where that is above 1;
one above ``--most`` ends with status 1. Both sides compute in float64, which leaves no rounding for Adam to make large:
a target network that follows one update late is told from one that does not (about 1e-6). ``--bits 32 --most 1e-3``
shows what float32 adds.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from argparse import ArgumentDefaultsHelpFormatter, ArgumentParser, Namespace
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from official_names import OFFICIAL, Arrays, official_names
from torch import Tensor

from dpvla.cli import reporting_errors
from dpvla.files import check_file, write_json
from dpvla.provenance import made_by
from dpvla.state_based.agents.agent import Agent
from dpvla.state_based.agents.config import AgentConfig
from dpvla.state_based.agents.dipole import Dipole
from dpvla.state_based.agents.recipes import changed, load_recipe
from dpvla.state_based.agents.registry import make_agent
from dpvla.state_based.agents.values import bootstrapped
from dpvla.state_based.data.batch import Batch
from dpvla.state_based.data.replay import Replay
from dpvla.state_based.networks.draws import TapeDraws
from dpvla.state_based.paper.time_estimate import SIZES
from dpvla.state_based.running.config import parse_options
from dpvla.state_based.running.loop_config import STATE_BASED_LOOP, UpdateConfig
from dpvla.state_based.running.tasks import find_task
from dpvla.state_based.running.update import StackedUpdate

WORKER = Path(__file__).with_name("official_agent_worker.py")
FILES = {"cfgrl": "flowiql"}
ACTED_ROWS = 4
PATHS = ("agent_file", "fql_repo", "cfgrl_repo", "jax_python", "json")


class FollowedUpdate(StackedUpdate):
    """The package's update on given batches and random numbers; keeps the gradients that reach the optimizer."""

    def __init__(self, agent: Agent) -> None:
        super().__init__(agent, STATE_BASED_LOOP, UpdateConfig(threads=1))
        self.gradients: dict[str, Tensor] = {}
        self.optimizer.register_step_pre_hook(self._note)
        self._batch: Batch | None = None

    def follow(self, batch: Batch, normals: Sequence[Tensor], uniforms: Sequence[Tensor], number: int) -> None:
        """Update ``number`` (from 0)."""
        self._batch = batch
        self._rows = torch.zeros(1, 1, 1, dtype=torch.int64)
        self._normals, self._uniforms = tape(normals, batch)[:, None], tape(uniforms, batch)[:, None]
        self.info = self._updates(cast(Replay, self), number % self.agent.period)

    def gather(self, rows: Tensor, next_actions: bool) -> Batch:
        """What a replay would have gathered."""
        assert self._batch is not None
        return self._batch

    def _note(self, *_: Any) -> None:
        weights = zip(self.names, self.parameters, strict=True)
        self.gradients = {name: weight.grad.clone() for name, weight in weights if weight.grad is not None}


def tape(numbers: Iterable[Tensor], batch: Batch) -> Tensor:
    """Drawn numbers of one seed in a row, (1, number), as ``TapeDraws`` reads them."""
    return torch.cat([batch.rewards.new_zeros(0), *(part.flatten() for part in numbers)])[None]


@dataclass
class Comparison:
    """Largest differences by what was compared, with the update (from 1) where they were found."""

    largest: dict[str, tuple[float, int]] = field(default_factory=dict)

    def add(self, what: str, ours: Any, theirs: Any, update: int) -> None:
        """Compare two arrays of one shape."""
        a, b = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
        if a.shape != b.shape:
            raise ValueError(f"{what} is {a.shape} here and {b.shape} there")
        found, before = float(np.abs(a - b).max() / max(1.0, np.abs(b).max())), self.largest.get(what, (-1.0, 0))[0]
        if not (found <= before or np.isnan(before)):  # NaN is the largest difference, and stays
            self.largest[what] = (found, update)

    def add_all(self, what: str, ours: Mapping[str, Any], theirs: Mapping[str, Any], update: int) -> None:
        """Compare arrays by name, network by network; what is there alone must be zero (of targets: no gradient)."""
        if missing := ours.keys() - theirs.keys():
            raise ValueError(f"{what}: there is no {sorted(missing)[0]}")
        for name, array in theirs.items():
            module = name.split("/")[0].removeprefix("modules_")
            self.add(f"{what} of {module}", ours.get(name, np.zeros_like(array)), array, update)


@dataclass(frozen=True)
class Job:
    """One agent's comparison: what both sides get."""

    name: str
    config: AgentConfig
    sizes: tuple[int, int]  # observation and action
    updates: int
    bits: int = 64

    @property
    def dtype(self) -> torch.dtype:
        """Of everything on our side."""
        return torch.float64 if self.bits == 64 else torch.float32

    def agent(self) -> Agent:
        """Ours, with weights that are not as fresh as at a start: biases and targets are away from zero and online."""
        agent = make_agent(self.name, self.config, *self.sizes, [0])
        draw, stacks = torch.Generator().manual_seed(1), [stack for stack, *_ in OFFICIAL[self.name].networks.values()]
        with torch.no_grad():
            for name, parameter in agent.named_parameters():
                if name.startswith(tuple(stacks)):  # a constant of ours, such as IQL's deviation, stays what it is
                    parameter.add_(0.05 * torch.randn(parameter.shape, generator=draw))
        return agent.to(self.dtype)

    def batches(self) -> list[Batch]:
        """Random rows of the task's sizes, some of them true ends."""
        draw, (o, a), rows = torch.Generator().manual_seed(2), self.sizes, self.config.batch_size

        def normal(*shape: int) -> Tensor:
            return torch.randn(1, *shape, generator=draw).to(self.dtype)

        def uniform(*shape: int) -> Tensor:
            return torch.rand(1, *shape, generator=draw).to(self.dtype)

        return [
            Batch(normal(rows, o), 2 * uniform(rows, a) - 1, -uniform(rows), normal(rows, o),
                  (uniform(rows) < 0.9).to(self.dtype), 2 * uniform(rows, a) - 1, torch.ones(1, rows, dtype=self.dtype))
            for _ in range(self.updates)
        ]  # fmt: skip

    def write(self, folder: Path, agent: Agent, batches: Sequence[Batch], observations: Tensor) -> None:
        """What the official side reads."""
        official = OFFICIAL[self.name]
        made = {name: getattr(self.config, o) if isinstance(o, str) else o(self.config)
                for name, o in official.options.items()}  # fmt: skip
        asked = {"agent": self.name, "bits": self.bits, "updates": self.updates, "acting": official.acting(self.config)}
        write_json(folder / "job.json", asked | {"config": made | {"lr": STATE_BASED_LOOP.lr}})
        weights = official_names(agent, dict(agent.named_parameters()), official)
        given = {f"weights/{name}": array for name, array in weights.items()}
        for name in ("observations", "actions", "rewards", "next_observations", "masks", "next_actions"):
            given[f"batch/{name}"] = np.stack([getattr(batch, name)[0].numpy() for batch in batches])
        np.savez(folder / "given.npz", observations=observations.numpy(), **cast(Any, given))


def compare(job: Job, run_official: Callable[[Path], None]) -> Comparison:
    """Both sides' updates, ours after the official one's, which leaves what it drew."""
    agent, batches, official, found = job.agent(), job.batches(), OFFICIAL[job.name], Comparison()
    observations = torch.randn(ACTED_ROWS, job.sizes[0], generator=torch.Generator().manual_seed(3)).to(job.dtype)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        job.write(folder, agent, batches, observations)
        run_official(folder)
        how = FollowedUpdate(agent)
        for number, batch in enumerate(batches):
            theirs = _read(folder / f"update_{number}.npz")
            normals = [torch.from_numpy(theirs[f"normal/{place}"]) for place in official.draws]
            uniforms = [torch.from_numpy(theirs[f"uniform/{place}"]) for place in official.uniforms]
            if "target/0" in theirs:
                _compare_targets(cast(Dipole, agent), batch, normals[0], theirs, number + 1, found)
            how.follow(batch, normals, uniforms, number)
            found.add("loss", how.info["train/loss"], theirs["loss"], number + 1)
            for part, ours in official.losses.items():
                found.add(f"loss {ours}", how.info[ours], theirs[f"part/{part}"], number + 1)
            gradients = official_names(agent, how.gradients, official)
            found.add_all("gradient", gradients, _group(theirs, "gradient"), number + 1)
        theirs = _read(folder / "end.npz")
    ours = official_names(agent, dict(agent.named_parameters()), official)
    found.add_all("weights", ours, _group(theirs, "weights"), job.updates)
    drawn = [torch.from_numpy(array) for _, array in sorted(_group(theirs, "normal").items(), key=lambda i: int(i[0]))]
    draws = TapeDraws(tape(drawn, batches[0]), torch.zeros(1, 0))
    actions = np.stack([array for _, array in sorted(_group(theirs, "action").items(), key=lambda i: int(i[0]))])
    found.add("actions", agent.act(observations[None], draws)[0], actions, job.updates)
    return found


def _compare_targets(
    agent: Dipole, batch: Batch, noise: Tensor, theirs: Arrays, update: int, found: Comparison
) -> None:
    next_value = agent.next_value(batch, TapeDraws(tape([noise], batch), torch.zeros(1, 0)))
    assert next_value is not None
    found.add("TD targets", bootstrapped(batch, agent.config.discount, next_value)[0], theirs["target/0"], update)
    if noise.shape[1] == 1:  # of several the targets tell which was chosen
        omega = agent.config.omega if agent.config.next_omega is None else agent.config.next_omega
        with torch.no_grad():
            ours = agent.sample(batch.next_observations, TapeDraws(tape([noise], batch), torch.zeros(1, 0)), omega)
        found.add("actions of TD targets", ours[0], theirs["next_actions/0"], update)


def _read(path: Path) -> Arrays:
    with np.load(path) as arrays:
        return {name: arrays[name] for name in arrays.files}


def _group(arrays: Arrays, kind: str) -> Arrays:
    return {name[len(kind) + 1 :]: array for name, array in arrays.items() if name.startswith(f"{kind}/")}


def official_run(python: Path, repo: Path, file: Path, folder: Path) -> None:
    """The worker's updates; what it says goes to stderr."""
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false"}
    command = [str(python), str(WORKER), str(folder), str(repo), str(file)]
    done = subprocess.run(command, stdout=sys.stderr, env=environment)
    if done.returncode:
        raise ValueError(f"the official side of {file} ended with status {done.returncode}; its message is above")


def jobs(options: Namespace) -> Iterator[tuple[Job, Path, Path]]:
    """Jobs, repositories and files of all agents whose official code is given."""
    task = find_task(options.env)
    for name, official in OFFICIAL.items():
        repo = options.cfgrl_repo and options.cfgrl_repo / "ogbench" if name == "cfgrl" else options.fql_repo
        file = options.agent_file if name == "dipole" else repo and repo / "agents" / f"{FILES.get(name, name)}.py"
        if repo is None or file is None or (options.agents and name not in options.agents):
            continue
        config = load_recipe(name, task.name)
        if options.width:
            config = config.with_width(options.width)
        config = changed(config, parse_options(options.options), f"--options, of {name}")
        if options.batch:
            config = replace(config, batch_size=options.batch)
        yield Job(name, config, SIZES[task.domain], options.updates or official.updates, options.bits), repo, file


@reporting_errors
def main(argv: list[str] | None = None) -> None:
    """Compare, print a table and, if asked for, write it as JSON."""
    parser = ArgumentParser(description=__doc__, formatter_class=ArgumentDefaultsHelpFormatter)
    parser.add_argument("--agents", nargs="*", choices=OFFICIAL, default=(), help="none: all whose code is given")
    parser.add_argument("--env", default="cube-single-play-singletask-v0", help="task whose recipe and sizes are taken")
    parser.add_argument("--options", nargs="*", default=(), help="other hyperparameters, as omega=2 next_omega=0.5")
    parser.add_argument("--agent-file", type=Path, help="the authors' released DIPOLE agent")
    parser.add_argument("--fql-repo", type=Path, help="checkout of github.com/seohongpark/fql")
    parser.add_argument("--cfgrl-repo", type=Path, help="checkout of github.com/kvfrans/cfgrl_submit")
    parser.add_argument("--jax-python", type=Path, default="python", help="Python with jax, flax, optax, distrax")
    parser.add_argument("--updates", type=int, default=0, help="0: 20 of DIPOLE, 40 of the others")
    parser.add_argument("--width", type=int, default=64, help="of the layers; 0: the recipe's")
    parser.add_argument("--batch", type=int, default=64, help="rows of an update; 0: the recipe's")
    parser.add_argument("--bits", type=int, choices=(32, 64), default=64, help="of the numbers computed with")
    parser.add_argument("--most", type=float, default=1e-9, help="difference that is taken for equal")
    parser.add_argument("--json", type=Path, help="write the numbers here")
    options = parser.parse_args(argv)
    todo = list(jobs(options))
    if not todo:
        parser.error("no official code is given: --fql-repo, --agent-file or --cfgrl-repo")
    if options.json:
        try:
            check_file(options.json)
        except OSError as error:
            parser.error(f"--json: {error}")
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    for job, repo, file in todo:
        found = compare(job, lambda folder: official_run(options.jax_python, repo, file, folder))  # noqa: B023
        print(f"{job.name}: {job.updates} updates of {job.config.batch_size} rows, layers {list(job.config.hidden)}")
        for what, (difference, update) in found.largest.items():
            equal = difference <= options.most
            print(f"  {what:32s} {difference:9.2e} at update {update}{'' if equal else '   DIFFERENT'}", flush=True)
            number = difference if np.isfinite(difference) else None  # JSON has no NaN
            row = {"agent": job.name, "what": what, "difference": number, "update": update, "equal": equal}
            rows.append(row | {"updates": job.updates})
    if options.json:
        asked = {name: str(value) for name, value in vars(options).items() if name not in PATHS}
        write_json(options.json, {"options": asked, "rows": rows, "provenance": made_by()})
    if different := [row for row in rows if not row["equal"]]:
        names = ", ".join(dict.fromkeys(row["agent"] for row in different))
        raise SystemExit(
            f"error: {len(different)} of {len(rows)} numbers differ by more than {options.most:g}: {names}"
        )
    print(f"all {len(rows)} equal within {options.most:g}")


if __name__ == "__main__":
    main()
