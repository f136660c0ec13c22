"""Whether what an algorithm gives is what its contract says: ContractError names the algorithm and what it gave."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from dpvla.algorithms.advantages import ZERO_SPREAD
from dpvla.algorithms.algorithm import Algorithm
from dpvla.batch import RewardFunction
from dpvla.config import ConfigError
from dpvla.plan import NUM_POSES
from dpvla.registry import ContractError
from dpvla.tensors import not_finite, shown


def check_roll_outs(algorithm: Algorithm, given: Any, scenes: int, candidates: int) -> None:
    """``plans`` (scene, candidate, 8, 3) that are finite, and (scene, candidate, ...) whatever else."""
    where = _of(algorithm, "roll_out")
    _check_group(where, given, (scenes, candidates))
    if "plans" not in given:
        raise ContractError(f"{where} gave no plans: it gave {', '.join(given) or 'nothing'}")
    plans, shape = given["plans"], (scenes, candidates, NUM_POSES, 3)
    if tuple(plans.shape) != shape or not plans.is_floating_point():
        raise ContractError(f"{where} gave plans of {shown(plans)}, not (scene, candidate, 8, 3) = {shape} real ones")
    _refuse_not_finite(where, {"plans": plans})


def check_targets(algorithm: Algorithm, given: Any, scenes: int, candidates: int) -> None:
    """(scene, candidate, ...) each, and finite."""
    where = _of(algorithm, "targets")
    _check_group(where, given, (scenes, candidates))
    _refuse_not_finite(where, given)


def refuse_constant(reward: RewardFunction, names: Sequence[str], scores: Tensor, flat: Tensor) -> None:
    """Raise ConfigError for a reward that tells no plans apart, before updates are spent on it.

    Args:
        names: of scenes that are looked at. scores: (scene, candidate) of their plans. flat: (scene,) of all scenes of
            the first cycle, whether the plans of a group have the same reward.
    """
    if not flat.all():
        return
    standing = reward(names, torch.zeros(len(names), 1, NUM_POSES, 3))["score"].cpu()
    if bool(((standing - scores).abs() < ZERO_SPREAD).all()):
        raise ConfigError(
            f"in all {len(flat)} scenes the reward is the same for all plans, even for standing still (such as "
            f"{float(scores[0, 0]):g} in scene {names[0]}): nothing can be learned from it. See that --metric is the "
            "one you mean"
        )


def check_weights(algorithm: Algorithm, given: Any, scenes: int, candidates: int) -> None:
    """(scene, candidate) each, finite and not negative."""
    where = _of(algorithm, "weights")
    _check_group(where, given, (scenes, candidates))
    _refuse_not_finite(where, given)
    for name, value in given.items():
        if value.dim() != 2 or (value < 0).any():
            raise ContractError(f"{where} gave {name!r} as {shown(value)}, not (scene, candidate) numbers from 0 on")


def check_loss(algorithm: Algorithm, given: Any) -> None:
    """A number to descend, and numbers to log; whether they are finite is the loop's to see."""
    where = _of(algorithm, "loss")
    if not (isinstance(given, tuple) and len(given) == 2 and isinstance(given[1], Mapping)):
        raise ContractError(f"{where} gave {shown(given)}, not the loss and a dict of what to log")
    loss, info = given
    if not isinstance(loss, Tensor) or loss.dim() or not loss.is_floating_point():
        raise ContractError(f"{where} gave {shown(loss)} as the loss, not a tensor of one number: take a mean")
    if not loss.requires_grad:
        raise ContractError(f"{where} depends on nothing that is trained: it has no gradient")
    for name, value in info.items():
        if not isinstance(value, Tensor) or value.dim():
            raise ContractError(f"{where} logs {name!r} as {shown(value)}, not a tensor of one number")


def _check_group(where: str, given: Any, leading: tuple[int, int]) -> None:
    if not isinstance(given, Mapping):
        raise ContractError(f"{where} gave {shown(given)}, not a dict of tensors")
    for name, value in given.items():
        if not isinstance(value, Tensor) or tuple(value.shape[:2]) != leading:
            raise ContractError(f"{where} gave {name!r} as {shown(value)}, not (scene, candidate, ...) = {leading}")


def _refuse_not_finite(where: str, given: Mapping[str, Tensor]) -> None:
    if bad := not_finite(given):
        rows = (~given[bad[0]].isfinite()).flatten(1).any(-1).nonzero().flatten().tolist()
        raise ContractError(f"{where} gave NaN or infinity in {bad[0]!r}, for {len(rows)} scenes, first {rows[0]}")


def _of(algorithm: Algorithm, method: str) -> str:
    return f"algorithm {algorithm.config.name}: {method}"
