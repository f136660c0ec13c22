"""Hyperparameters of the algorithms."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from dpvla.config import FormerSwitch, NotNegative, Positive, Range

SPREAD_FLOOR = 0.01
"""Of the standard deviation of a group's rewards: one point of 100. Of 400 groups of the demo's second cycle 24 are
flat, 3 more lie below it, and 26 between it and 0.02."""

Anchor = Literal["none", "behavior"]


@dataclass(frozen=True)
class AlgorithmConfig:
    """What every algorithm has; its own hyperparameters come in a subclass."""

    name: str  # in the registry of algorithms


@dataclass(frozen=True)
class DipoleConfig(AlgorithmConfig):
    """The weights and the loss of DIPOLE."""

    RENAMED: ClassVar[Mapping[str, FormerSwitch]] = {
        "control_variate": FormerSwitch("anchor", on="behavior", off="none")
    }
    FORMERLY: ClassVar[Mapping[str, Any]] = {"spread_floor": 1e-6}

    name: str = "dipole"  # of the algorithm: one of docs/algorithms.md, or of a plug-in
    beta: NotNegative = 1.0  # of sigmoid(beta G + shift); 0: the control (with the anchor its gradient is exactly zero)
    shift: float = 0.0  # k of App. D.2; 0 in driving
    omega: NotNegative = 1.0  # w: greediness of the roll-outs, and of later sampling; not given by the paper
    anchor: Anchor = "none"  # none: Eq. 9 as written; behavior: the two policies mix to the one that rolled out
    spread_floor: Positive = SPREAD_FLOOR  # a group whose rewards have a smaller standard deviation prefers nothing


@dataclass(frozen=True)
class WeightedRegressionConfig(AlgorithmConfig):
    """The weights of exponentially weighted regression (Eq. 4). Neither beta nor clip is given by the paper."""

    name: str = "weighted_regression"  # of the algorithm
    beta: Annotated[Positive, Range(most=100)] = 1.0  # temperature of the weights exp(beta G)
    clip: Positive | None = 100.0  # no weight is larger (DPPO's RWR: 100); null: as Eq. 4 has it
    normalize: bool = False  # divide the weights by their mean over the cycle (not in Eq. 4, nor in DPPO's RWR)
    spread_floor: Positive = SPREAD_FLOOR  # a group whose rewards have a smaller standard deviation prefers nothing


@dataclass(frozen=True)
class CFGRLConfig(AlgorithmConfig):
    """CFGRL with an adapter for each label."""

    name: str = "cfgrl"  # of the algorithm
    threshold: float = 0.0  # plans whose advantage is at least this are positive (published: 0)
    omega: NotNegative = 1.0  # guidance w is 1 + omega (published: w of 1, 1.5, 2 and 3 are tried)
    spread_floor: Positive = SPREAD_FLOOR  # a group whose rewards have a smaller standard deviation has advantages of 0


@dataclass(frozen=True)
class BestOfGroupConfig(AlgorithmConfig):
    """Which plans are imitated."""

    name: str = "best_of_group"  # of the algorithm
    only_when: Literal["always", "beats_mean"] = "always"  # beats_mean: the best exceeds the mean reward of the cycle
    spread_floor: Positive = SPREAD_FLOOR  # a group whose rewards have a smaller standard deviation teaches nothing
