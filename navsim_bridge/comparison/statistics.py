"""How sure a mean over scenes is: scenes of one log are alike, so logs are resampled, not scenes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

LEVEL = 0.95
"""Share of worlds in which an interval holds the true mean."""


@dataclass(frozen=True)
class Interval:
    """A mean, and where it may lie."""

    mean: float
    low: float
    high: float


def over_logs(values: NDArray[np.float64], logs: Sequence[str], resamples: int, seed: int = 0) -> Interval:
    """Mean over scenes, with the percentile interval of ``resamples`` draws of as many logs with replacement.

    For a paired comparison give the differences of two methods on the same scenes. What another training run would
    change is no part of it: that is the spread over seeds.

    Args:
        values: (scene,).
        logs: (scene,) which log each scene is of.

    Raises ValueError for no scenes, or values that are not finite.
    """
    if not len(values) or len(values) != len(logs) or not np.isfinite(values).all():
        raise ValueError("an interval needs a finite value for each of at least one scene")
    _, which = np.unique(np.asarray(logs), return_inverse=True)
    sums, counts = np.bincount(which, weights=values), np.bincount(which)
    random = np.random.default_rng(seed)
    drawn = random.multinomial(len(sums), np.full(len(sums), 1 / len(sums)), size=resamples)
    means = (drawn @ sums) / (drawn @ counts)
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(values.mean()), float(low), float(high))


def spread(values: Sequence[float]) -> float | None:
    """Standard deviation over seeds; None for a single one."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else None
