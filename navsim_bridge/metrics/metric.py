"""What a metric is: to add one, write one file with a subclass of `Metric` and name it in `registry.METRICS`.

``examples/metric.py`` is a metric to copy. A file of your own needs no other change::

    METRICS["mine"] = MyMetric            # at its end; name the file with --plugin my_metric

Then ``--metric mine`` evaluates with it (tools/evaluate.py), fine-tunes on it (tools/rl_finetune.py, ``score`` is the
reward) and, where it has scene rules, caches its scenes (tools/cache_metrics.py). Tables, pictures, legends and the
lines that tools print take names and labels from ``columns``.
"""

from __future__ import annotations

import copy
import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Generic, Protocol, Self, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dpvla.plan import NUM_POSES, POSE_INTERVAL
from dpvla.registry import ContractError
from dpvla.sub_scores import ScoringRule, SubScore
from navsim_bridge.metrics.config import MetricConfig
from navsim_bridge.metrics.scene_rules import SceneRules
from navsim_bridge.pdm import formula
from navsim_bridge.pdm.formula import Column
from navsim_bridge.pdm.score import check_interval, check_plans
from navsim_bridge.splits.scene_filter import Split
from navsim_bridge.splits.scenes import SceneRecord

Options = TypeVar("Options", bound=MetricConfig)
Terms = Any
"""A dataclass whose fields are tensors, scene axis first: what a metric finds, which everything else is made of."""


class Packed(Protocol):
    """Scenes as tensors.

    One that also has a class method ``concatenate(parts)``, all scenes of some of its kind in order, is packed once a
    scene by a reward whose scenes do not all fit its memory at once; any other kind then is packed for each call.
    """

    def __len__(self) -> int: ...

    @property
    def tokens(self) -> tuple[str, ...]: ...

    @property
    def device(self) -> torch.device: ...

    def to(self, device: torch.device | str) -> Any: ...

    def select(self, index: NDArray[np.int64]) -> Any: ...


@dataclass(frozen=True)
class Result:
    """What an evaluation comes to, in the metric's ``result_columns``."""

    rows: NDArray[np.float64]  # (record, column) NaN where a record has no value
    summary: Mapping[str, float]  # column -> value over all records; NaN where there is none
    parts: Mapping[str, Mapping[str, float]] = field(default_factory=dict)  # name -> the same of a part of the records
    caveats: tuple[str, ...] = ()  # why the summary is not what it should be of; none: it is
    notes: tuple[str, ...] = ()  # what else must be said of it


class Metric(ABC, Generic[Options]):
    """Scores plans in scenes.

    A scene is a `MetricScene` made by ``scene_rules``. A metric without rules needs nothing but plan and recording, and
    its scenes are `SceneRecord`s.
    """

    Config: ClassVar[type[MetricConfig]]
    """Its options, a frozen dataclass."""
    version: ClassVar[str]
    """What results say that they are of: change it when numbers change."""
    columns: ClassVar[tuple[Column, ...]]
    """Its sub-scores in the order of tables, and last ``score``: the total, of which more is better."""
    scene_rules: ClassVar[SceneRules | None] = None
    """How its scenes are made, or None."""
    average_row: ClassVar[str] = "average"
    """What the row of averages in scores.csv is called."""
    any_sampling: ClassVar[bool] = False
    """Whether ``terms`` and ``explain`` go by ``interval``: plans may have any number of poses then."""

    interval: float | None = None
    """[s] Between the poses of plans; None: 8 poses as usual. `sampled_every` sets it."""

    def __init__(self, config: Options | None = None) -> None:
        """``config``: the defaults if not given."""
        self.config: Options = self.Config() if config is None else config  # type: ignore[call-arg,assignment]

    @abstractmethod
    def pack(self, scenes: Sequence[Any]) -> Packed:
        """Scenes as tensors, such as ``SceneBatch.from_scenes(scenes)`` or ``RecordedPlans.of(scenes)``."""

    @abstractmethod
    def terms(self, scenes: Any, plans: Tensor) -> Terms:
        """Score plans (scene, candidate, 8, 3), float64 and checked, each as if it were its scene's only one."""

    @abstractmethod
    def values(self, terms: Terms) -> dict[str, Tensor]:
        """Every column (scene, candidate), float64; an optional one is NaN here: no other frame is known."""

    def explain(self, scenes: Any, plans: Tensor, terms: Terms) -> list[list[str]]:
        """Per scene and candidate what cost points, as one line; empty when nothing did."""
        return [[""] * plans.shape[1] for _ in range(len(scenes))]

    @property
    def result_columns(self) -> tuple[Column, ...]:
        """Of an evaluation's rows and summary, and last ``score``; those of a plan, unless scenes differ in what counts
        for them."""
        return self.columns

    def on(self, split: Split) -> Metric[Any]:
        """The metric as it is scored on a split; raises ValueError where it is not."""
        if split.two_stage is not None:
            raise ValueError(
                f"split {split.name} has two stages, which --metric {self.config.name} does not score; "
                "use --metric epdms"
            )
        return self

    def finish(self, records: Sequence[SceneRecord], terms: Terms) -> Result:
        """The rows and the summary of an evaluation.

        Args:
            records: the scored scenes, in order.
            terms: of their plans, one a scene.
        """
        return self.means(self.values(terms))

    def total(self, values: Mapping[str, Tensor]) -> Tensor:
        """The score that sub-scores come to, by the columns' weights and multipliers."""
        return formula.total(self.columns[:-1], values)

    # what follows is the same for all metrics

    def sampled_every(self, interval: float) -> Self:
        """The same metric for plans of any number of poses, ``interval`` seconds apart, the first at it.

        Raises ValueError for an interval that is none, and where the metric takes the usual 8 poses alone.
        """
        check_interval(interval)
        if not self.any_sampling:
            raise ValueError(
                f"metric {self.config.name} scores plans of {NUM_POSES} poses, {POSE_INTERVAL:g} s apart, and no others"
            )
        made = copy.copy(self)
        made.interval = interval
        return made

    def judge(self, scenes: Packed, plans: Tensor | NDArray[Any]) -> Terms:
        """``terms`` of plans (scene, candidate, 8, 3) of any float type; of other samplings see `sampled_every`.

        Raises:
            TypeError: plans that are neither a tensor nor an array of numbers.
            ValueError: wrong shapes; NaN, infinite or absurdly far plans (names scene token and candidate).
            ContractError: terms that are no dataclass.
        """
        terms = self.terms(scenes, check_plans(scenes, plans, self.interval))
        if not dataclasses.is_dataclass(terms):
            raise ContractError(
                f"metric {self.config.name}: terms gives a {type(terms).__name__}, not a dataclass of tensors"
            )
        return terms

    def columns_of(self, terms: Terms, scenes: int, candidates: int) -> dict[str, Tensor]:
        """``values``; raises ContractError where a column is missing or of another shape."""
        values = self.values(terms)
        for column in self.columns:
            found = values.get(column.name) if isinstance(values, Mapping) else None
            if not isinstance(found, Tensor) or tuple(found.shape) != (scenes, candidates):
                what = "is missing" if found is None else f"is {tuple(getattr(found, 'shape', ()))}"
                raise ContractError(
                    f"metric {self.config.name}: values: column {column.name!r} {what}, not (scene, candidate) = "
                    f"{(scenes, candidates)}"
                )
        return values

    def means(self, values: Mapping[str, Tensor]) -> Result:
        """Every scene a row of the first candidate's values, and the mean of those that there are."""
        rows = torch.stack([values[column.name][:, 0] for column in self.columns], dim=-1).cpu().numpy()
        found = [column[~np.isnan(column)] for column in rows.T]
        summary = {c.name: float(some.mean()) if len(some) else np.nan for c, some in zip(self.columns, found)}
        return Result(rows, summary)

    @property
    def options(self) -> dict[str, Any]:
        """The config without its name and what is not given."""
        found = {f.name: getattr(self.config, f.name) for f in dataclasses.fields(self.config)}
        return {name: value for name, value in found.items() if name != "name" and value is not None}

    @property
    def needs_traffic(self) -> bool:
        """Whether its scenes must hold what vehicles need to move (`EPDMSInputs.traffic`)."""
        return False

    @property
    def setting(self) -> dict[str, Any]:
        """What else results should say of how plans are scored, plain JSON values."""
        return {}

    @property
    def about(self) -> dict[str, Any]:
        """Version and options, for provenance."""
        return {"name": self.version, **self.options}

    @property
    def rule(self) -> ScoringRule:
        """What plans of one scene are scored by: columns that hang on other frames are left out, as in a reward."""
        kept = [c for c in self.columns[:-1] if not c.optional]
        about = {"metric": self.config.name, **self.about}
        return ScoringRule(about, tuple(SubScore(c.name, c.multiplies, c.weight) for c in kept))

    @property
    def title(self) -> str:
        """'PDMS', 'EPDMS (human filter v2.1.2)'."""
        options = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in self.options.items())
        return self.columns[-1].label + (f" ({options})" if options else "")

    def describe(
        self, summary: Mapping[str, float | None], parts: Mapping[str, Mapping[str, float | None]]
    ) -> list[str]:
        """A result as lines for people; the first is of all records. ``None`` where there is no value."""
        columns = (*self.result_columns[:-1], dataclasses.replace(self.result_columns[-1], label=self.title))
        return ["  ".join(c.shown(value) for c in columns if (value := summary.get(c.name)) is not None)]

    def note(self, values: Mapping[str, float]) -> str:
        """'PDMS 0.42 (DAC 0)' of one plan: the score, and what counts and is not full."""
        lost = [f"{c.label} {values[c.name]:.2g}" for c in self.columns[:-1]
                if (c.multiplies or c.weight) and values[c.name] < 1 - 1e-6]  # fmt: skip
        return f"{self.columns[-1].label} {values['score']:.2f}" + (f" ({', '.join(lost)})" if lost else "")
