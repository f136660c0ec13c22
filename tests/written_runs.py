"""``run.yaml`` of weights that a test makes without a run."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from dpvla.checkpoint_layout import RUN_FILE
from dpvla.config import to_dict
from dpvla.files import write_text
from dpvla.provenance import made_by
from dpvla.training.run_directory import TrainedOn


def write_run(directory: Path, config: Any, seed: int, trained_on: Sequence[TrainedOn]) -> None:
    """Config, seed, versions, commit, and the scenes seen, as a run has them."""
    content = {
        "config": to_dict(config),
        "trained_on": [asdict(stage) | {"logs": list(stage.logs)} for stage in trained_on],
        "provenance": made_by(seed),
    }
    write_text(directory / RUN_FILE, yaml.safe_dump(content, sort_keys=False))
