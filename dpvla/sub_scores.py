"""What a total score is made of, as data: sub-scores by name, what each counts for, and the one way they make a total.

A metric states it, whoever learns from its scores reads it; this package knows none of the metrics.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol, TypedDict

from torch import Tensor

from dpvla.config import NotNegative

SCORE = "score"
"""The total among a plan's scores."""


class Counts(Protocol):
    """A sub-score as far as the total goes."""

    @property
    def name(self) -> str: ...
    @property
    def multiplies(self) -> bool:
        """Whether the mean of those with a weight is multiplied by it."""

    @property
    def weight(self) -> float:
        """In that mean."""

    @property
    def optional(self) -> bool:
        """Whether it may be NaN, or absent: then it has no weight."""


@dataclass(frozen=True)
class SubScore:
    """A sub-score and what it counts for; see ``Counts``."""

    name: str
    multiplies: bool = False
    weight: float = 0.0
    optional: bool = False


@dataclass(frozen=True)
class ScoringRule:
    """What plans are scored by."""

    about: Mapping[str, Any]  # the metric's name or version and its options, plain JSON values: for comparison
    sub_scores: tuple[SubScore, ...]  # in the order of the sums; the total is no part of them

    def total(self, values: Mapping[str, Tensor]) -> Tensor:
        """The score that sub-scores come to."""
        return total(self.sub_scores, values)

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {"about": dict(self.about), "sub_scores": [asdict(one) for one in self.sub_scores]}

    @classmethod
    def of(cls, data: RuleOnDisk) -> ScoringRule:
        """Inverse of ``as_dict``."""
        return cls(data["about"], tuple(SubScore(**one) for one in data["sub_scores"]))


class _SubScore(TypedDict):
    name: str
    multiplies: bool
    weight: NotNegative
    optional: bool


class RuleOnDisk(TypedDict):
    """``ScoringRule.as_dict``, to check a file against."""

    about: dict[str, Any]
    sub_scores: list[_SubScore]


def total(columns: Sequence[Counts], values: Mapping[str, Tensor]) -> Tensor:
    """The multipliers' product times the weighted mean of the others; one stands for a mean of none.

    Args:
        columns: in the order of the sums.
        values: by name of column, all of one shape; optional ones may be left out.
    """
    product: Any = 1.0
    weighted: Any = 0.0
    weights: Any = 0.0
    for column in columns:
        if column.optional and column.name not in values:
            continue
        if column.multiplies:
            product = product * values[column.name]
        elif column.optional:
            known = ~values[column.name].isnan()
            weighted = weighted + column.weight * values[column.name].nan_to_num(0.0)
            weights = weights + column.weight * known
        elif column.weight:
            weighted = weighted + column.weight * values[column.name]
            weights = weights + column.weight
    result: Tensor = product if isinstance(weighted, float) else product * weighted / weights
    return result
