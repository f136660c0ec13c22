"""A run's directory: its config, what made it, and whether the same command goes on or starts."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from dpvla.config import ConfigError, to_dict, to_yaml
from dpvla.files import write_json, write_text
from dpvla.provenance import collect

FREE_KEYS = ("out", "restart", "stop_after_step", "num_workers", "loop.stop_after_step", "loop.keep_checkpoints")
"""Options that do not change what a run computes, so that a run may go on with other ones."""


def open_run(out: Path | str, config: Any, seed: int, restart: bool) -> Path:
    """Create ``out`` for ``config``, or go on in it when it was made with the same config.

    Raises:
        ConfigError: ``out`` holds a run with another config (names the first key that differs).
    """
    out = Path(out)
    if restart and (out / "run.yaml").exists():
        shutil.rmtree(out)
    ours = to_dict(config)
    if (out / "run.yaml").exists():
        theirs = yaml.safe_load((out / "run.yaml").read_text(encoding="utf-8"))
        for key, mine, other in _differences(ours, theirs):
            raise ConfigError(
                f"{out} holds a run with {key} = {other!r}, this one has {mine!r}; choose another --out, "
                "or discard that run with --restart"
            )
        return out
    write_json(out / "provenance.json", collect(seed))
    write_text(out / "run.yaml", to_yaml(config))
    return out


def _differences(ours: Mapping[str, Any], theirs: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    for key in dict.fromkeys([*ours, *theirs]):
        mine, other = ours.get(key), theirs.get(key)
        if prefix + key in FREE_KEYS or mine == other:
            continue
        if isinstance(mine, Mapping) and isinstance(other, Mapping):
            yield from _differences(mine, other, f"{prefix}{key}.")
        else:
            yield prefix + key, mine, other
