"""Hyperparameters of the algorithms."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from dpvla.config import FormerSwitch, NotNegative

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

    name: str = "dipole"  # of the algorithm: dipole, or one of a plug-in
    beta: NotNegative = 1.0  # of sigmoid(beta G + shift); 0: the control (with the anchor its gradient is exactly zero)
    shift: float = 0.0  # k of App. D.2; 0 in driving
    omega: NotNegative = 1.0  # w: greediness of the roll-outs, and of later sampling; not given by the paper
    anchor: Anchor = "none"  # none: Eq. 9 as written; behavior: the two policies mix to the one that rolled out
