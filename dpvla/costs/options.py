"""Options of ``--plan``, and the GPUs that it knows."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Annotated, Literal

from dpvla.cli import refuse_given
from dpvla.config import Count, Positive, Range, Whole
from dpvla.files import check_file

GPUS: dict[str, tuple[float, float]] = {
    # (memory in 10^9 bytes, dense bf16 TFLOP/s), as the data sheets have them
    "h100": (80, 989),
    "h200": (141, 989),
    "a100-80": (80, 312),
    "a100-40": (40, 312),
    "l40s": (48, 362),
    "rtx4090": (24, 165),
}
SCENES = {"navtrain": 103_288, "navtest": 12_146}
"""Of the public splits."""


@dataclass(frozen=True)
class PlanOptions:
    """What a planned run would be made on."""

    plan: bool = False  # say what this run takes in memory, operations, hours and disk, and do nothing else
    json: str | None = None  # with --plan: write it here, too
    gpu: Literal["h100", "h200", "a100-80", "a100-40", "l40s", "rtx4090"] = "h100"  # with --plan: the kind
    gpus: Count = 1  # with --plan: how many, over all machines
    mfu: Annotated[Positive, Range(most=1)] = 0.35  # with --plan: share of the GPU's bf16 peak that is assumed
    scenes: Whole = 0  # with --plan: of the split; 0: as many as the public split of this name has

    def check_plan(self) -> None:
        """Raise ConfigError or OSError for options that belong to --plan without it, and for a file that cannot be."""
        if not self.plan:
            refuse_given(self, PLAN_KEYS[1:], "--plan")
        elif self.json is not None:
            check_file(self.json)


PLAN_KEYS = tuple(field.name for field in fields(PlanOptions))
"""Keys that say nothing about a run."""
