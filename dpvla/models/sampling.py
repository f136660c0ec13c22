"""How plans are sampled from a head with adapters: kept beside them, obeyed unless a caller says otherwise."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

from dpvla import files
from dpvla.checkpoint_layout import SAMPLING_FILE
from dpvla.config import NotNegative, Range, Steps, from_dict
from dpvla.manifest import check_manifest, require_manifest
from dpvla.models.head import BASE_POLICY, Policies
from dpvla.precision import Precision

SolverSteps = Annotated[Steps, Range(least=2)]

FORMER_ADAPTERS = ("positive", "negative")
"""Adapters of files that do not name theirs: they are DIPOLE's."""


@dataclass(frozen=True)
class Sampling:
    """One policy, or two combined: ``(1 + omega) first - omega second`` (paper eq. 10)."""

    policies: Policies = BASE_POLICY  # one or two, by the name of their adapter; None: the head without any
    omega: NotNegative = 0.0  # greediness w, where there are two
    num_steps: SolverSteps | None = None  # of the solver; None: as the model's config has it

    def __post_init__(self) -> None:
        if len(self.policies) not in (1, 2):
            raise ValueError(f"plans are sampled from one policy or two, found {len(self.policies)}")
        if len(set(self.policies)) < len(self.policies):
            raise ValueError(f"two policies that are combined must differ, found {files.short(self.policies, 80)}")

    @property
    def is_guided(self) -> bool:
        """Whether two policies are combined, so that omega means something."""
        return len(self.policies) == 2

    def shares(self) -> dict[str, float]:
        """How much of each adapter the combination holds: ``{"positive": 1 + omega, "negative": -omega}``."""
        weights = (1 + self.omega, -self.omega) if self.is_guided else (1.0,)
        return {name: weight for name, weight in zip(self.policies, weights) if name is not None}


@dataclass(frozen=True)
class AdaptersOnDisk:
    """What stands beside adapters in ``sampling.json``: their names in order, and how to sample with them."""

    omega: NotNegative  # of ``Sampling``
    precision: Precision = "no"  # they were trained in
    policies: Policies = FORMER_ADAPTERS  # of ``Sampling``
    num_steps: SolverSteps | None = None  # of ``Sampling``
    adapters: tuple[str, ...] = FORMER_ADAPTERS  # folders beside the file
    manifest: bool = False  # whether their checksums stand there, too

    def __post_init__(self) -> None:
        if wrong := [name for name in self.adapters if Path(name).name != name or name == ".."]:
            raise ValueError(f"adapters hold {files.short(wrong[0], 80)}, which is no folder beside it")
        if len(set(self.adapters)) < len(self.adapters):
            raise ValueError(f"adapters need names that differ, found {files.short(self.adapters, 80)}")
        if missing := [name for name in self.sampling.policies if name is not None and name not in self.adapters]:
            raise ValueError(f"policies name {files.short(missing[0], 80)}, which is none of its adapters")

    @property
    def sampling(self) -> Sampling:
        """How to sample with them."""
        return Sampling(self.policies, self.omega, self.num_steps)


def write_sampling(directory: Path, sampling: Sampling, adapters: tuple[str, ...], precision: Precision) -> None:
    """Write ``sampling.json`` into a directory of adapters."""
    content: dict[str, Any] = asdict(sampling) | {"adapters": adapters, "precision": precision, "manifest": True}
    files.write_json(directory / SAMPLING_FILE, content)


def read_sampling(directory: Path) -> AdaptersOnDisk | None:
    """What ``sampling.json`` says, or None where there is none: adapters of version 0.1.0, or PEFT's own.

    Raises ConfigError or FileError for a file that holds anything else, and where there was one, by the manifest.
    """
    path = directory / SAMPLING_FILE
    if not path.is_file():
        if check_manifest(directory, ()):
            raise files.FileError(f"{path} is missing, although there is a manifest: use another copy of {directory}")
        return None
    found = from_dict(AdaptersOnDisk, files.read_json(path), str(path))
    require_manifest(directory, found.manifest, [SAMPLING_FILE])
    return found
