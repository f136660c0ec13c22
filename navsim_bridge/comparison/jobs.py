"""The work behind a cell: which tool with which options, in which folder, after which other work.

A folder's name holds a digest of all that its run is told, so that rows, studies and figures share the runs that they
have in common, and none takes another's for its own.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dpvla.config import from_dict
from dpvla.files import read_yaml
from navsim_bridge.comparison.config import ComparisonConfig, RunOptions
from navsim_bridge.comparison.rows import ReadRow, Rows

IMITATION, FINETUNE, EVALUATION, SELECTOR = "imitation", "finetune", "evaluation", "selector"


@dataclass(frozen=True)
class Job:
    """One call of a tool."""

    name: str  # folder of what it makes, below --out
    kind: str  # `IMITATION`, `EVALUATION`, `SELECTOR`, or `FINETUNE` and the algorithm
    tool: str
    arguments: tuple[str, ...]
    needs: tuple[str, ...] = ()  # names of jobs that come before it
    work: float = 1.0  # how much it is, to compare jobs of a kind
    recipe: tuple[str, Mapping[str, Any]] | None = None  # file below --out that its tool reads, and its content
    scored_in: tuple[str, str] | None = None  # split and metric whose metric cache it reads

    @property
    def seed(self) -> int:
        """Of the run; the last number of what it is called with."""
        return int(self.arguments[self.arguments.index("--loop.seed" if self.tool != "evaluate.py" else "--seed") + 1])


class Jobs:
    """The jobs of a comparison; asked for again, a job is the same."""

    def __init__(self, config: ComparisonConfig, rows: Rows, data_root: Path, maps_root: Path) -> None:
        self.out, self.rows, self.protocol = Path(config.out), rows, rows.protocol
        self.asked: dict[str, Job] = {}
        """By name, what they need before them."""
        self._pretrain = rows.pretrain
        self._plugins = ("--plugin", *config.plugin) if config.plugin else ()
        self._roots = ("--data-root", str(data_root), "--maps-root", str(maps_root))
        self._images = ("--image-cache", str(data_root / "image_cache"))
        self._usual = _work(from_dict(RunOptions, self.protocol.finetune, rows.protocol_file))

    def train(self, row: ReadRow, split: str, seed: int) -> Job:
        """The run of a row that is trained, on ``split``; of imitation, which is trained on one split."""
        recipe_of_start = row.pretrain or self._pretrain
        given = {"recipe": read_yaml(recipe_of_start), "split": self.protocol.train}
        imitation = f"{IMITATION}-{_digest(given)}"
        start = self._add(
            Job(
                f"runs/{imitation}/{self.protocol.train}/seed_{seed}",
                IMITATION if row.pretrain is None else f"{IMITATION} {Path(row.pretrain).stem}",
                "pretrain.py",
                ("--config", recipe_of_start, "--split", self.protocol.train, *self._shared(seed)),
            )
        )
        if row.options is None:
            return start
        options = row.full()
        key = f"{row.algorithm}-{_digest({'options': row.options, 'start': imitation})}"
        recipe = f"recipes/{key}.yaml"
        return self._add(
            Job(
                f"runs/{key}/{split}/seed_{seed}",
                f"{FINETUNE} {row.algorithm}",
                "rl_finetune.py",
                ("--config", str(self.out / recipe), "--checkpoint", str(self.out / start.name), "--split", split,
                 *self._shared(seed)),
                (start.name,),
                _work(options) / self._usual,
                (recipe, row.options),
            )
        )  # fmt: skip

    def selector(self, row: ReadRow, split: str, seed: int) -> Job:
        """What learned to choose among plans from the roll-outs of a row's run."""
        run, recipe = self.train(row, split, seed), self.rows.selector
        key = f"selector-{_digest({'run': run.name, 'recipe': read_yaml(recipe)})}"
        return self._add(
            Job(
                f"runs/{key}/{split}/seed_{seed}",
                SELECTOR,
                "train_selector.py",
                ("--config", recipe, "--roll-outs", str(self.out / run.name), "--checkpoint",
                 str(self.out / run.needs[0]), "--split", split, *self._shared(seed)),
                (run.name,),
            )
        )  # fmt: skip

    def score(self, row: ReadRow, trained_on: str, split: str, metric: str, seed: int, **evaluate: float | str) -> Job:
        """A row's run, or its agent, on ``split``; ``evaluate``: further options over those of the row."""
        given = {**row.evaluate, **evaluate}
        name = "_".join([split, metric, *(f"{key}-{value}" for key, value in sorted(given.items()))])
        options = [word for key, value in given.items() for word in (f"--{key.replace('_', '-')}", str(value))]
        if row.is_trained:
            run = self.train(row, trained_on, seed)
            folder = run.name.replace("runs/", "scores/", 1)
            needs: tuple[str, ...] = (run.name,)
            options = ["--checkpoint", str(self.out / run.name), "--seed", str(seed), *options]
            if row.select:
                chooser = self.selector(row, trained_on, seed)
                name, needs = f"{name}_{chooser.name.split('/')[1]}-{row.select}", (*needs, chooser.name)
                options += ["--select", str(row.select), "--selector", str(self.out / chooser.name)]
        else:
            folder, needs = f"scores/{row.agent}", ()
        return self._add(
            Job(
                f"{folder}/{name}",
                EVALUATION,
                "evaluate.py",
                ("--agent", row.agent, *options, "--split", split, "--metric", metric, *self._roots, *self._plugins),
                needs,
                scored_in=(split, metric),
            )
        )

    def _shared(self, seed: int) -> Sequence[str]:
        return (*self._roots, *self._images, "--loop.seed", str(seed), *self._plugins)

    def _add(self, job: Job) -> Job:
        return self.asked.setdefault(job.name, job)


def _work(options: RunOptions) -> float:
    """How much a run of RL is, in arbitrary units: sampling its plans, and learning from each in every epoch."""
    rollouts = options.rollouts
    plans = rollouts.cycles * (rollouts.scenes_per_cycle or 1000) * rollouts.group_size
    return float(plans * (10 + 6 * rollouts.epochs_per_cycle))


def _digest(content: Mapping[str, Any]) -> str:
    """10 hexadecimal digits of some options."""
    text = json.dumps(content, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:10]
