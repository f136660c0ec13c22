"""Hyperparameters of the algorithms."""

from __future__ import annotations

from dataclasses import dataclass

from dpvla.config import NotNegative


@dataclass(frozen=True)
class AlgorithmConfig:
    """What every algorithm has; its own hyperparameters come in a subclass."""

    name: str  # in the registry of algorithms


@dataclass(frozen=True)
class DipoleConfig(AlgorithmConfig):
    """The weights and the loss of DIPOLE."""

    name: str = "dipole"  # of the algorithm: dipole, or one of a plug-in
    beta: NotNegative = 1.0  # temperature of the weights sigmoid(beta G + shift); not given by the paper
    shift: float = 0.0  # k of App. D.2; 0 in driving
    omega: NotNegative = 1.0  # w: greediness of the roll-outs, and of later sampling; not given by the paper
    control_variate: bool = False  # anchors the pair to the policy that rolled out (algorithms.dipole.Dipole.loss)
