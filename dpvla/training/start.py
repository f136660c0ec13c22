"""The weights that training, evaluation or planning starts from, and what they have seen."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypedDict

import torch

from dpvla.checkpoint_layout import ADAPTERS, CONFIG_FILE, MODEL, RUN_FILE, WEIGHTS_FILE
from dpvla.config import ConfigError, NotNegative
from dpvla.manifest import MANIFEST, check_manifest
from dpvla.models import DPVLA, DrivingPolicy
from dpvla.models.adapters import adapter_size
from dpvla.models.config import LoRAConfig
from dpvla.models.policies import open_policy
from dpvla.models.policy_files import PolicyFiles
from dpvla.models.sampling import read_sampling
from dpvla.schema import checked
from dpvla.tensors import CheckpointError
from dpvla.training.checkpoint import resolve_checkpoint
from dpvla.training.config import WhatOfAdapters
from dpvla.training.run_directory import Run, TrainedOn, read_run, read_trained_on


@dataclass(frozen=True)
class Start:
    """Weights on disk."""

    path: Path  # the checkpoint, or the bare model directory
    model: Path
    adapters: Path | None
    trained_on: tuple[TrainedOn, ...]  # every stage behind these weights, oldest first; one unknown stage: nobody knows
    cycles: int = 0  # of roll-outs behind them, as far as they are counted

    def load(self, device: torch.device | str = "cpu") -> DrivingPolicy:
        """The policy, in eval mode, with its adapters and what sampling needs to know of them."""
        if self.adapters is not None:
            return self.load_dpvla(device)
        return open_policy(self.model, device)

    def load_dpvla(self, device: torch.device | str = "cpu") -> DPVLA:
        """The same for who samples plans and trains adapters. Raises ConfigError for a policy without diffusion."""
        policy = DPVLA.from_pretrained(self.model, device)
        if self.adapters is not None and not policy.load_adapters(self.adapters):
            omega = _omega(self.path)  # version 0.1.0 kept it in run.yaml alone
            policy.sampling = policy.sampling if omega is None else replace(policy.sampling, omega=omega)
        return policy.to(device).eval()

    @property
    def precision(self) -> str:
        """What the policy autocasts to: as its adapters say, else as its model does."""
        beside = read_sampling(self.adapters) if self.adapters is not None else None
        return beside.precision if beside else PolicyFiles.read(self.model).precision

    def weights_hash(self) -> str:
        """SHA-256 of the weights of the model and of its adapters."""
        digest = hashlib.sha256()
        files = sorted(self.adapters.glob("*/*.safetensors")) if self.adapters is not None else []
        for path in (self.model / WEIGHTS_FILE, *files):
            with path.open("rb") as file:
                while part := file.read(1 << 24):
                    digest.update(part)
        return digest.hexdigest()

    def without_adapters(self) -> Start:
        """The base model alone, and only what it has seen."""
        kept = tuple(stage for stage in self.trained_on if stage.weights == MODEL)
        return Start(self.path, self.model, None, kept)


def open_start(path: Path | str) -> Start:
    """Find weights: a checkpoint, a run (its newest checkpoint), or a bare model directory (never with adapters).

    Raises CheckpointError or FileNotFoundError when it is none of these, or lacks the adapters that it trained.
    """
    if not str(path):
        raise CheckpointError("the path of the weights is empty; give a run, a checkpoint or a model directory")
    path = Path(path)
    if (path / CONFIG_FILE).is_file():
        beside = path.parent
        seen = _seen(beside) if path.name == MODEL else (TrainedOn.unknown(),)
        return Start(path, path, None, seen).without_adapters()
    found = resolve_checkpoint(path)
    adapters = found / ADAPTERS
    trained_on = _seen(found)
    if not adapters.is_dir() and any(stage.weights == ADAPTERS for stage in trained_on):
        raise CheckpointError(
            f"{adapters} is not there, although {found / RUN_FILE} says that they were trained: get the whole "
            f"checkpoint, or give {found / MODEL} for the model without them"
        )
    cycles = read_run(found).get("cycles", 0) if (found / RUN_FILE).is_file() else 0
    return Start(found, found / MODEL, adapters if adapters.is_dir() else None, trained_on, cycles)


@dataclass(frozen=True)
class StartingPoint:
    """The policy before a round's first update, and what is to be said of it."""

    policy: DPVLA
    trained_on: tuple[TrainedOn, ...]  # every stage behind it
    about: Mapping[str, Any]  # for run.yaml
    model: Path | None  # files that hold the base model as it is in ``policy``


def starting_point(start: Start, adapters: WhatOfAdapters, names: Sequence[str], lora: LoRAConfig) -> StartingPoint:
    """The policy of ``start``, with its adapters kept, merged into the model as they are sampled, or left out.

    Raises ConfigError where kept adapters have other names, another rank or alpha than given.
    """
    about: dict[str, Any] = {"path": str(start.path), "weights_sha256": start.weights_hash()}
    if start.adapters is None:
        return StartingPoint(start.load_dpvla(), start.trained_on, about | {"adapters": "new"}, start.model)
    if adapters == "discard":
        bare = start.without_adapters()
        about["adapters"] = "new, its own discarded"
        return StartingPoint(bare.load_dpvla(), bare.trained_on, about, start.model)
    policy = start.load_dpvla()
    about["cycles"] = start.cycles
    guided = policy.sampling.is_guided
    if guided:
        about["omega"] = policy.sampling.omega
    if adapters == "merge":
        policy.merge_adapters()
        merged = tuple(replace(stage, weights=MODEL) for stage in start.trained_on)
        about["adapters"] = "new, its own merged into the model" + (f" with omega {about['omega']:g}" if guided else "")
        return StartingPoint(policy, merged, about, None)
    if policy.head.adapters != tuple(names):
        raise ConfigError(
            f"{start.path} has the adapters {', '.join(policy.head.adapters)}, this algorithm trains "
            f"{', '.join(names) or 'the whole head'}: give --adapters merge, or discard"
        )
    found = adapter_size(policy.head)
    rank, alpha = lora.of(names)
    if found != (rank, alpha):
        times = lora.times(names)
        theirs = f"--lora.rank {found[0] // times} --lora.alpha {found[1] / times:g}, or "
        raise ConfigError(
            f"the adapters of {start.path} have rank {found[0]} and alpha {found[1]:g}, this run asks for {rank} and "
            f"{alpha}: give {'' if found[0] % times or found[1] % times else theirs}--adapters merge"
        )
    return StartingPoint(policy, start.trained_on, about | {"adapters": "its own kept"}, start.model)


def refuse_other_start(run: Run, option: str, path: str | None) -> None:
    """A run goes on from its own checkpoint, which holds all it needs; what it started from must still be meant.

    Raises ConfigError where ``option`` names other weights than it did; another path to the same ones is fine.
    """
    theirs = run.before["config"].get(option)
    if path == theirs:
        return
    recorded = (run.before.get("start") or {}).get("weights_sha256")
    given = open_start(path) if path is not None else None
    if given is not None and recorded is None and run.last is not None and option == "checkpoint":
        # Runs of version 0.1.0 kept no hash; their checkpoints repeat the model, and always started without adapters.
        given, recorded = given.without_adapters(), open_start(run.last / MODEL).weights_hash()
    if given is None or recorded is None or given.weights_hash() != recorded:
        raise ConfigError(
            f"{run.path} started from {option} = {theirs!r}, this one has {path!r}, which holds other weights: choose "
            "another --out, or discard that run with --restart"
        )


class _Dipole(TypedDict, total=False):
    omega: NotNegative


def _omega(checkpoint: Path) -> float | None:
    settings = read_run(checkpoint)["config"].get("dipole", {}) if (checkpoint / RUN_FILE).is_file() else {}
    omega = checked(settings, _Dipole, f"{checkpoint / RUN_FILE}: config.dipole").get("omega")
    return None if omega is None else float(omega)


def _seen(checkpoint: Path) -> tuple[TrainedOn, ...]:
    """What the weights of a checkpoint have seen, after a look at whether model and adapters are its own."""
    parts = [f"{part}/{MANIFEST}" for part in (MODEL, ADAPTERS) if (checkpoint / part).is_dir()]
    known = check_manifest(checkpoint, [RUN_FILE, *parts])
    if not known and not (checkpoint / RUN_FILE).is_file():
        return (TrainedOn.unknown(),)
    return tuple(read_trained_on(checkpoint))
