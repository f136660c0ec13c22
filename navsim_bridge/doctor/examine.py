"""Is this machine fit to train and score? Every check looks at one thing and reports; none of them stops the others."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

from navsim_bridge.doctor.data import Missing, check_cache, check_checkpoint, check_data, check_environment
from navsim_bridge.doctor.finding import ERROR, Finding
from navsim_bridge.doctor.machine import (
    check_gpu,
    check_linear_algebra,
    check_navsim,
    check_packages,
    check_python,
    check_torchvision,
)
from navsim_bridge.doctor.scores import check_scores


def examine(
    data_root: str | None = None,
    maps_root: str | None = None,
    splits: Sequence[str] = (),
    cache: str | None = None,
    data_split: str | None = None,
    cameras: Sequence[str] = (),
    checkpoint: str | None = None,
    synthetic_root: str | None = None,
    lost: list[Missing] | None = None,
) -> Iterator[Finding]:
    """All findings, in order.

    Args:
        data_root, maps_root: as the tools' options; default: the environment, then the demo world.
        splits: also count the logs and scenes of these, and missing or empty camera files.
        cache: also check every byte of this metric cache.
        data_split: folder of the split's logs, where it does not say it or another is meant.
        cameras: as encoders call them; default: those that an encoder looks at where nothing else is said.
        checkpoint: also check every byte of this run, checkpoint or model.
        synthetic_root: folder of the splits' second stage.
        lost: scenes of ``splits`` that cannot be used are added to it.
    """
    checks: list[Callable[[], Iterator[Finding]]] = [
        check_python, check_packages, check_navsim, check_torchvision, check_gpu, check_linear_algebra, check_scores,
        check_environment,
        partial(check_data, data_root, maps_root, splits, data_split, cameras, synthetic_root, cache, lost),
    ]  # fmt: skip
    if cache is not None:
        checks.append(partial(check_cache, cache))
    if checkpoint is not None:
        checks.append(partial(check_checkpoint, checkpoint))
    yield from each(checks)


def each(checks: Sequence[Callable[[], Iterator[Finding]]]) -> Iterator[Finding]:
    """The findings of checks, in order; one that fails is a finding."""
    for check in checks:
        try:
            yield from check()
        except Exception as error:  # a check that fails is a finding, and the others still run
            name = getattr(check, "func", check).__name__
            text = " ".join(str(error).split())
            yield Finding(ERROR, f"{name} failed ({type(error).__name__}: {text})", "see the findings above")
