"""The RL algorithms by name; a plug-in adds its own."""

from __future__ import annotations

from typing import Annotated, Any

from dpvla.algorithms.algorithm import Algorithm, AlgorithmConfig
from dpvla.config import OneOf
from dpvla.registry import look_up

ALGORITHMS: dict[str, Any] = {
    "dipole": "dpvla.algorithms.dipole:Dipole",
}

AnyAlgorithm = Annotated[AlgorithmConfig, OneOf(ALGORITHMS, "algorithm")]
"""Type of a config field that chooses an algorithm by its ``name``."""


def make_algorithm(config: AlgorithmConfig) -> Algorithm:
    """The algorithm that a config names."""
    made: Algorithm = look_up(ALGORITHMS, config.name, "algorithm")(config)
    return made
