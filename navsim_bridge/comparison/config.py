"""Options of the comparison, and what its YAML files hold: rows, sizes, studies."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from dpvla.algorithms.config import DipoleConfig
from dpvla.algorithms.registry import AnyAlgorithm
from dpvla.config import ConfigError, Count, NotNegative, Whole, Workers
from dpvla.models.config import LoRAConfig
from dpvla.recipes import RECIPES as BUNDLED
from dpvla.rl.config import RolloutConfig, WatchConfig
from dpvla.training.config import LoopConfig

RECIPES = BUNDLED / "driving"

Budget = Literal["plans", "updates", "parameters"]
"""What rows of a table spend alike: plans scored, updates made, adapter parameters trained."""

MetricName = Literal["pdms", "epdms"]


@dataclass(frozen=True, kw_only=True)
class ComparisonConfig:
    """The comparison on driving: one of --table 4, --figure, --study and --report."""

    table: Literal["4"] | None = None  # 4: all rows beside each other
    figure: Literal["5", "scaling"] | None = None  # 5: beta, omega and stability; scaling: score by plans scored
    study: Literal["selection", "cycles"] | None = None  # selection: hyperparameters; cycles: drift and the anchor
    report: str | None = None  # Markdown page to write from all that --out holds
    out: str = "runs/driving"  # folder of all runs; tables, figures and studies share those they have in common
    rows: str = str(RECIPES / "comparison.yaml")  # YAML file: rows, their grids, studies and figures
    protocol: str = str(RECIPES / "protocol_demo.yaml")  # YAML file: splits, sizes, what all runs have in common
    only: tuple[str, ...] = ()  # rows; none: all of the table or study
    seeds: tuple[Whole, ...] = (0, 1, 2)  # of every cell; the selection takes the first
    final: bool = False  # the table on the test split, made once, when all is chosen; else on the validation split
    data_root: str | None = None  # folder with navsim_logs/; default: OPENSCENE_DATA_ROOT, then the demo world
    maps_root: str | None = None  # folder with nuplan-maps-v1.0.json; default: NUPLAN_MAPS_ROOT, then the demo world
    workers: Workers = 0  # runs side by side, one thread each; 0: one per core
    plugin: tuple[str, ...] = ()  # modules of yours that add algorithms: their names, or .py files
    dry_run: bool = False  # say what is missing and about how long it takes; run nothing

    def __post_init__(self) -> None:
        asked = [name for name in ("table", "figure", "study", "report") if getattr(self, name) is not None]
        if len(asked) != 1:
            raise ConfigError(f"give one of --table 4, --figure, --study and --report, found {len(asked)} of them")
        if not self.seeds or len(set(self.seeds)) != len(self.seeds):
            raise ConfigError(f"seeds must be given and differ, found {list(self.seeds)}")
        if self.only and self.table is None and self.study is None:
            raise ConfigError("only belongs to --table 4 and --study")
        if self.final and self.table is None:
            raise ConfigError("final belongs to --table 4: whatever is chosen is chosen on the validation split")


@dataclass(frozen=True)
class RunOptions:
    """What a run of ``tools/rl_finetune.py`` is told by a row; the words are those of its recipes."""

    algorithm: AnyAlgorithm = field(default_factory=DipoleConfig)  # what is learned from the roll-outs
    rollouts: RolloutConfig = field(default_factory=RolloutConfig)  # cycles and batches
    lora: LoRAConfig = field(default_factory=LoRAConfig)  # size of the adapters
    watch: WatchConfig = field(default_factory=WatchConfig)  # what is looked at beside the reward
    loop: LoopConfig = field(default_factory=LoopConfig)  # optimizer, logging, checkpoints


@dataclass(frozen=True)
class Minutes:
    """Processor minutes of a run at the protocol's size, until this folder has runs to go by."""

    imitation: NotNegative = 0.0  # a run of tools/pretrain.py
    finetune: NotNegative = 0.0  # a run of tools/rl_finetune.py
    evaluation: NotNegative = 0.0  # a run of tools/evaluate.py
    selector: NotNegative = 0.0  # a run of tools/train_selector.py


@dataclass(frozen=True)
class Protocol:
    """What all runs have in common."""

    pretrain: str  # recipe of tools/pretrain.py, beside this file
    selector: str | None = None  # recipe of tools/train_selector.py, beside this file
    finetune: dict[str, Any] = field(default_factory=dict)  # keys of a recipe of tools/rl_finetune.py, for every row
    train: str = "navtrain"  # split of imitation and of RL
    adapt: str | None = "navtest"  # split of the setting that is scored on what it was trained on; null: none
    validation: str = "navval"  # where everything is chosen
    test: str = "navtest"  # looked at once
    metrics: tuple[MetricName, ...] = ("pdms", "epdms")  # the first is what is chosen by
    minutes: Minutes = field(default_factory=Minutes)  # for --dry-run

    def __post_init__(self) -> None:
        if not self.metrics or len(set(self.metrics)) != len(self.metrics):
            raise ConfigError(f"metrics must be given and differ, found {list(self.metrics)}")
        if self.validation in (self.train, self.test, self.adapt):
            raise ConfigError(f"validation is {self.validation}, which is trained on or tested on as well")


@dataclass(frozen=True)
class Row:
    """A line of a table: an agent, imitation (no ``agent`` and no ``algorithm``), or an RL run that starts from it."""

    title: str = ""  # as printed; its key where there is none
    agent: str | None = None  # one that needs no training: stand_still, constant_velocity, human
    pretrain: str | None = None  # recipe of tools/pretrain.py that it starts from; default: the protocol's
    like: str | None = None  # a row whose options it takes, with its own laid over them
    algorithm: dict[str, Any] = field(default_factory=dict)  # keys of `algorithm` in a recipe
    rollouts: dict[str, Any] = field(default_factory=dict)  # keys of `rollouts`
    lora: dict[str, Any] = field(default_factory=dict)  # keys of `lora`
    loop: dict[str, Any] = field(default_factory=dict)  # keys of `loop`
    evaluate: dict[str, Any] = field(default_factory=dict)  # further options of tools/evaluate.py
    select: Whole = 0  # plans that a selector chooses from, which learned from the run's own roll-outs; 0: one plan
    # dotted key of a recipe -> values, of which the selection tries every combination
    grid: dict[str, Any] = field(default_factory=dict)

    @property
    def own(self) -> dict[str, dict[str, Any]]:
        """Groups of a recipe that the row says something of."""
        groups = {name: getattr(self, name) for name in ("algorithm", "rollouts", "lora", "loop")}
        return {name: group for name, group in groups.items() if group}


@dataclass(frozen=True)
class Study:
    """Rows beside those of the table."""

    equal: tuple[Budget, ...] = ("plans", "updates", "parameters")  # what its rows spend alike
    rows: dict[str, Any] = field(default_factory=dict)  # key -> keys of `Row`


@dataclass(frozen=True)
class FollowedLoss:
    """A loss that is followed as beta grows."""

    like: str  # row
    key: str = "algorithm.beta"  # dotted key of a recipe that beta is given to
    algorithm: dict[str, Any] = field(default_factory=dict)  # keys of `algorithm` laid over the row's


@dataclass(frozen=True)
class Figure5:
    """Which runs the figure of beta and omega shows."""

    like: str  # row whose beta and omega are changed
    betas: tuple[NotNegative, ...]  # temperatures that are trained with
    omegas: tuple[NotNegative, ...]  # greediness in training and evaluation
    later_omegas: tuple[NotNegative, ...] = ()  # in evaluation alone, of the runs with the row's own omega
    losses: dict[str, Any] = field(default_factory=dict)  # title -> keys of `FollowedLoss`


@dataclass(frozen=True)
class Scaling:
    """Which runs the figure of plans scored shows."""

    like: str  # row whose roll-outs are changed
    series: dict[str, Any]  # title of a line -> list of `rollouts`, a run each


@dataclass(frozen=True)
class Comparison:
    """The rows and what is made of them."""

    rows: dict[str, Any]  # key -> keys of `Row`, in the order of the table
    equal: tuple[Budget, ...] = ("plans", "updates", "parameters")  # what RL rows of the table spend alike
    # rows that the table has where --only names them, such as the benchmark's baselines: key -> keys of `Row`
    beside: dict[str, Any] = field(default_factory=dict)
    baseline: str = "imitation"  # row that differences are taken to
    bootstrap: Count = 10_000  # resamples of logs behind an interval
    cycles: Study = field(default_factory=Study)
    figure_5: dict[str, Any] = field(default_factory=dict)  # keys of `Figure5`
    scaling: dict[str, Any] = field(default_factory=dict)  # keys of `Scaling`


def nested(key: str, value: Any) -> dict[str, Any]:
    """``{"a": {"b": value}}`` of ``a.b``."""
    first, _, rest = key.partition(".")
    return {first: nested(rest, value) if rest else value}


def overlaid(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """``over`` laid over ``under``, group by group."""
    result = dict(under)
    for key, value in over.items():
        below = result.get(key)
        both = isinstance(value, Mapping) and isinstance(below, Mapping)
        result[key] = overlaid(below, value) if both else value  # type: ignore[arg-type]
    return result
