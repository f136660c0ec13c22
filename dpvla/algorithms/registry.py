"""The RL algorithms by name; a plug-in adds its own."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from dpvla.algorithms.config import AlgorithmConfig
from dpvla.config import OneOf
from dpvla.registry import ContractError, Registry, look_up

if TYPE_CHECKING:
    from dpvla.algorithms.algorithm import Algorithm

ALGORITHMS = Registry(
    "dpvla.algorithms.algorithm:Algorithm",
    {
        "dipole": "dpvla.algorithms.config:DipoleConfig",
        "weighted_regression": "dpvla.algorithms.config:WeightedRegressionConfig",
        "cfgrl": "dpvla.algorithms.config:CFGRLConfig",
        "best_of_group": "dpvla.algorithms.config:BestOfGroupConfig",
        "grpo": "dpvla.algorithms.config:GRPOConfig",
        "dppo": "dpvla.algorithms.config:DPPOConfig",
    },
    dipole="dpvla.algorithms.dipole:Dipole",
    weighted_regression="dpvla.algorithms.weighted_regression:WeightedRegression",
    cfgrl="dpvla.algorithms.cfgrl:CFGRL",
    best_of_group="dpvla.algorithms.best_of_group:BestOfGroup",
    grpo="dpvla.algorithms.grpo:GRPO",
    dppo="dpvla.algorithms.dppo:DPPO",
)

AnyAlgorithm = Annotated[AlgorithmConfig, OneOf(ALGORITHMS, "algorithm", keeps=False)]
"""Type of a config field that chooses an algorithm by its ``name``."""


def make_algorithm(config: AlgorithmConfig) -> Algorithm:
    """The algorithm that a config names.

    Raises RegistryError for an unknown one, ContractError where its adapters or its sampling cannot be.
    """
    made: Algorithm = look_up(ALGORITHMS, config.name, "algorithm")(config)
    names, where = made.adapters, f"algorithm {config.name}: "
    if not isinstance(names, tuple) or not all(isinstance(name, str) and is_folder_name(name) for name in names):
        raise ContractError(f"{where}adapters must be a tuple of names that folders can have, found {names!r}")
    if len(set(names)) < len(names):
        raise ContractError(f"{where}adapters need names that differ, found {names!r}")
    if strange := [policy for policy in made.sampling().policies if policy not in (None, *names)]:
        raise ContractError(f"{where}sampling names {strange[0]!r}, which is none of its adapters {names!r}")
    return made


def is_folder_name(name: str) -> bool:
    """Whether adapters of this name can be saved: each has a folder."""
    return Path(name).name == name not in ("", "..")
