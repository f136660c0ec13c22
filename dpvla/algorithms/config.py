"""Hyperparameters of the algorithms."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from dpvla.config import FormerSwitch, NotNegative, Positive, Range, Steps, Whole

SPREAD_FLOOR = 0.01
"""Of the standard deviation of a group's rewards: one point of 100. Of 400 groups of the demo's second cycle 24 are
flat, 3 more lie below it, and 26 between it and 0.02."""

OMEGA = 1.0
"""Where none is given; the paper names none for driving."""

Anchor = Literal["none", "behavior"]


@dataclass(frozen=True)
class AlgorithmConfig:
    """What every algorithm has; its own hyperparameters come in a subclass."""

    name: str  # in the registry of algorithms
    roll_out_sampler: Literal["ode", "sde", "ddim"] = "ode"  # ode: as plans are sampled later; sde, ddim: with noise


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
    omega: NotNegative | None = None  # w: greediness of roll-outs and later sampling; default: as before, or 1
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
    omega: NotNegative | None = None  # guidance w is 1 + omega (published: 1, 1.5, 2, 3); default: as before, or 1
    spread_floor: Positive = SPREAD_FLOOR  # a group whose rewards have a smaller standard deviation has advantages of 0


@dataclass(frozen=True)
class BestOfGroupConfig(AlgorithmConfig):
    """Which plans are imitated."""

    name: str = "best_of_group"  # of the algorithm
    only_when: Literal["always", "beats_mean"] = "always"  # beats_mean: the best exceeds the mean reward of the cycle
    spread_floor: Positive = SPREAD_FLOOR  # a group whose rewards have a smaller standard deviation teaches nothing


_UpToOne = Annotated[float, Range(above=0, most=1)]
_ClipWidth = Annotated[float, Range(above=0, below=1)]


@dataclass(frozen=True)
class ChainConfig(AlgorithmConfig):
    """What algorithms have that learn from the steps of a stochastic sampler; deviations are of normalized plans."""

    roll_out_sampler: Literal["sde", "ddim"] = "sde"  # SDE-DPM-Solver++(2M), or DDIM, which is of order 1 (published)
    num_steps: Annotated[Steps, Range(least=2)] | None = None  # of that sampler (published: 5; default: the model's)
    eta: _UpToOne = 1.0  # share of the noise that the schedule allows
    min_sampling_std: NotNegative = 0.04  # no step's noise is smaller, the last one's neither
    min_logprob_std: Positive = 0.1  # no log-probability is taken with a smaller deviation
    noise_clip: Positive = 5.0  # standard normal noise of a step is clipped to this
    gamma_denoising: _UpToOne = 1.0  # a step's advantage is discounted by this for every step behind it
    steps_per_update: Whole = 0  # a plan's steps that an update learns from, at most, drawn afresh; 0: all
    spread_floor: Positive = SPREAD_FLOOR  # a group whose rewards have a smaller standard deviation prefers nothing
    reference_weight: NotNegative = 0.0  # of imitating chains of the head without adapters, one a scene and update


@dataclass(frozen=True)
class GRPOConfig(ChainConfig):
    """GRPO; defaults are ReCogDrive's."""

    name: str = "grpo"  # of the algorithm
    gamma_denoising: _UpToOne = 0.6  # a step's advantage is discounted by this for every step behind it
    clip: _ClipWidth = 0.2  # ratios count up to 1 plus or minus this
    reference_weight: NotNegative = 0.1  # of imitating chains of the head without adapters, one a scene and update


@dataclass(frozen=True)
class DPPOConfig(ChainConfig):
    """DPPO; defaults are its authors' for state-based control. The DIPOLE paper gives none for its DPPO row."""

    name: str = "dppo"  # of the algorithm
    min_sampling_std: NotNegative = 0.1  # no step's noise is smaller, the last one's neither
    noise_clip: Positive = 3.0  # standard normal noise of a step is clipped to this
    gamma_denoising: _UpToOne = 0.99  # a step's advantage is discounted by this for every step behind it
    clip: _ClipWidth = 0.01  # ratios of the last step count up to 1 plus or minus this
    clip_base: _ClipWidth = 0.001  # ratios of the first step do
    clip_rate: Positive = 3.0  # how late the width grows from the one to the other: exponentially
    baseline: Literal["group", "critic"] = "group"  # what a reward is compared with: its group's mean, or a learned V
    value_weight: Positive = 0.5  # of the critic's loss
