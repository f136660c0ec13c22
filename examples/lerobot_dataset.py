"""DIPOLE, or any other agent, on recordings of a robot in LeRobot's format (v2 or v3); needs pyarrow.

python examples/lerobot_dataset.py --data data/lerobot/pusht --out runs/pusht --steps 100000

The same command goes on where it was stopped. ``Robot("runs/pusht").act(state)`` then gives actions in the robot's own
units. A vision-language-action model comes in by the same door: what it makes of the pictures stands in the data set as
one more feature ``observation.*`` of numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch

from dpvla.checkpoint_layout import CheckpointLayout
from dpvla.cli import parse, reporting_errors
from dpvla.config import Count, Whole, from_dict, to_dict
from dpvla.files import read_json, write_json
from dpvla.state_based.agents.agent_files import load_agent
from dpvla.state_based.agents.recipes import changed
from dpvla.state_based.agents.registry import agent_class, make_agent
from dpvla.state_based.data.lerobot import Scaling, load_lerobot
from dpvla.state_based.data.replay import Replay
from dpvla.state_based.networks.draws import FreshDraws
from dpvla.state_based.running.config import parse_options
from dpvla.state_based.running.loop_config import STATE_BASED_LOOP, UpdateConfig
from dpvla.state_based.running.stage import AgentStage
from dpvla.state_based.running.training_run import FREE, NOTED
from dpvla.state_based.running.update import make_update
from dpvla.training.checkpoint import resolve_checkpoint
from dpvla.training.launch import make_accelerator
from dpvla.training.loop import train
from dpvla.training.run_directory import TrainedOn, open_run


@dataclass(frozen=True)
class LeRobotConfig:
    """An agent and the recordings that it learns from."""

    data: str  # folder of the data set: meta/info.json and data/
    agent: str = "dipole"  # who learns
    options: tuple[str, ...] = ()  # hyperparameters that are not the agent's defaults, e.g. --options beta=2 omega=0.5
    steps: Count = 100_000  # updates
    save_every: Count = 10_000  # updates between checkpoints
    seed: Whole = 0  # of everything random
    out: str = "runs/lerobot"  # run directory
    launch: UpdateConfig = field(default_factory=UpdateConfig)  # how updates are launched


@reporting_errors
def main(argv: Sequence[str] | None = None) -> None:
    """Train; checkpoints are as those of every other run, ``scaling.json`` is beside them."""
    config = parse(LeRobotConfig, argv, __doc__)
    data = load_lerobot(config.data)
    rows, seeds = data.transitions, (config.seed,)
    recipe = changed(agent_class(config.agent).Config(), parse_options(config.options), "--options")
    loop = replace(STATE_BASED_LOOP, steps=config.steps, seed=config.seed, save_every=config.save_every)
    accelerator = make_accelerator(loop, config.out)
    agent = make_agent(config.agent, recipe, rows.observation_dim, rows.action_dim, seeds).to(accelerator.device)
    replay = Replay(rows, seeds, device=accelerator.device)
    with open_run(config.out, config, False, accelerator, (*FREE, "save_every"), NOTED) as run:
        run.begin(config.seed, [TrainedOn("offline", data.about["dataset"], len(rows), ())], config.steps, data.about)
        write_json(run.path / "scaling.json", to_dict(data.scaling))
        stage = AgentStage(agent, replay, run.describe, stride=config.launch.per_step)
        train(stage, loop, run.path, accelerator, make_update(config.launch))


class Robot:
    """The trained policy in the robot's own units."""

    def __init__(self, out: str) -> None:
        self._scaling = from_dict(Scaling, read_json(Path(out) / "scaling.json"), f"{out}/scaling.json")
        self._agent = load_agent(CheckpointLayout(resolve_checkpoint(out)).model)
        self._draws = FreshDraws(self._agent.seeds, "cpu")

    def act(self, state: np.ndarray) -> np.ndarray:
        """The action (action,) for a state (observation,): the data set's observations behind each other."""
        observed = torch.from_numpy(self._scaling.observed(state))[None, None]
        return self._scaling.commanded(self._agent.act(observed, self._draws, temperature=0.0)[0, 0].numpy())


if __name__ == "__main__":
    main()
