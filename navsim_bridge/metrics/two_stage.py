"""From the scores of tokens to the score of a two-stage split, as in the devkit's two-stage script (navsim 2.1.2).

A group of such a split is an original scene, the one 0.5 s before it, and pairs of synthetic scenes that could have
followed both, also 0.5 s apart. It has two halves, the scenes of now and those before. In each half a first-stage plan
ends somewhere; the follow-ups count the more, the nearer to that place they start.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from navsim_bridge.pdm.terms.comfort import two_frame_extended_comfort
from navsim_bridge.splits.two_stage import Group

Float = NDArray[np.float64]

DEVKIT_SPLITS = {
    "navhard_two_stage": "6b9dfc21d608b8ca0cae4461807e4b5d5f54ee918f28a742dfbda74e6448fd26",
    "warmup_two_stage": "b8e9ab815564564084e367ae5ffd55c1b27c1f967382a2238699609800417b48",
}
"""`fingerprint` of the groups of the devkit's splits."""
SIGMA_SQUARED = 0.1
"""[m^2] of the Gaussian kernel over the distance between a plan's end and a follow-up's start."""
_NO_WEIGHT = 1e-8  # a sum of kernels up to it counts as none
_LATEST_PREVIOUS = 0.55  # [s]


@dataclass(frozen=True)
class TwoStageScores:
    """What a two-stage split comes to, by column; NaN where there is nothing to average."""

    combined: dict[str, float]  # mean over groups of the mean of both halves' products of stages
    stage_one: dict[str, float]  # mean over halves
    stage_two: dict[str, float]
    weights: tuple[dict[str, float], ...]  # of each group: token of a follow-up -> weight in its half
    excluded: dict[int, tuple[str, ...]]  # groups that do not count, and their tokens that lack a value

    @property
    def lacking(self) -> dict[str, int]:
        """Token that lacks a value -> groups that do not count because of it."""
        return dict(Counter(token for tokens in self.excluded.values() for token in tokens))


def aggregate(
    groups: Sequence[Group], tokens: Sequence[str], values: Mapping[str, Float], ends: Float, starts: Float
) -> TwoStageScores:
    """Weigh the follow-ups and average both stages.

    A column of a half has a mean when all tokens of the half have the value, and one of a group when both halves have.
    The means over halves and groups leave out what has none, as the devkit's would. A token may serve several groups.

    Args:
        groups: of the split.
        tokens: (row,) that were scored, each once; those of no group do not count.
        values: column -> (row,), NaN where a token failed.
        ends: (row, 2) global position of the last pose of the token's plan [m].
        starts: (row, 2) global position of the rear axle at t = 0 [m].
    """
    names = list(values)
    none = len(tokens)  # the row of tokens that are not there
    row_of = {token: row for row, token in enumerate(tokens)}
    table = _and_none(np.stack([values[name] for name in names], axis=-1))
    ends, starts = _and_none(ends), _and_none(starts)
    known = ~np.isnan(np.concatenate((table, ends, starts), axis=1).sum(axis=1))
    lacks = [tuple(t for t in dict.fromkeys(tokens_of(group)) if not known[row_of.get(t, none)]) for group in groups]

    # halves in the order now, before of each group; members are the follow-ups of all halves, one after another
    first = np.array([row_of.get(token, none) for group in groups for token in group.first_stage], dtype=np.int64)
    of_half = [[pair[half] for pair in group.pairs] for group in groups for half in (0, 1)]
    member = np.array([row_of.get(token, none) for half in of_half for token in half], dtype=np.int64)
    counts = np.array([len(half) for half in of_half], dtype=np.int64)
    half = np.repeat(np.arange(len(counts)), counts)
    weight = _weights(ends[first], starts[member], half, counts)

    one = table[first]
    two, total = np.zeros_like(one), np.zeros(len(one))
    np.add.at(two, half, weight[:, None] * table[member])
    np.add.at(total, half, weight)
    two = np.where(total[:, None] > 0, two / np.where(total > 0, total, 1.0)[:, None], np.nan)
    products = (one * two).reshape(-1, 2, len(names))
    by_group: list[dict[str, float]] = [{} for _ in groups]
    for number, token, share in zip((half // 2).tolist(), (t for some in of_half for t in some), weight.tolist()):
        by_group[number][token] = share
    return TwoStageScores(
        combined=dict(zip(names, _means((products[:, 0] + products[:, 1]) / 2))),
        stage_one=dict(zip(names, _means(one))),
        stage_two=dict(zip(names, _means(two))),
        weights=tuple(by_group),
        excluded={number: lack for number, lack in enumerate(lacks) if lack},
    )


def _and_none(rows: Float) -> Float:
    """Rows (row, column), and one of NaN behind them."""
    return np.concatenate((rows, np.full((1, rows.shape[1]), np.nan)))


def _means(rows: Float) -> list[float]:
    """Of each column of rows (row, column), over those that have it."""
    there = ~np.isnan(rows)
    count = there.sum(axis=0)
    return np.where(count > 0, np.where(there, rows, 0.0).sum(axis=0) / np.maximum(count, 1), np.nan).tolist()


def _weights(ends: Float, starts: Float, half: NDArray[np.int64], counts: NDArray[np.int64]) -> Float:
    """Weight of each follow-up (member,) in its half; all the same where every one is far from the plan's end.

    Args:
        ends: (half, 2) of the first-stage plans.
        starts: (member, 2) of the follow-ups; NaN where they are not there, which have no weight.
        half: (member,) ascending.
        counts: (half,) members of each.
    """
    distance = ((ends[half] - starts) ** 2).sum(axis=1)
    kernel = np.exp(-distance / (2 * SIGMA_SQUARED))
    total = np.bincount(half, np.nan_to_num(kernel), minlength=len(counts))
    far = total <= _NO_WEIGHT
    return np.where(far[half], 1.0 / counts[half], kernel / np.where(far, 1.0, total)[half])


def pair_comfort(groups: Sequence[Group], tokens: Sequence[str], motion: Tensor, times_us: NDArray[np.int64]) -> Tensor:
    """Two-frame extended comfort (row,) of tokens: that of its pair for both of a pair; NaN where the other is missing.

    NaN as well for a pair that is not less than 0.55 s apart, in its order.

    Args:
        groups, tokens: as for `aggregate`.
        motion: (row, 41, 3) from ``motion_of`` the simulated plans.
        times_us: (row,) of t = 0.
    """
    row_of = {token: row for row, token in enumerate(tokens)}
    pairs = dict.fromkeys(pair for group in groups for pair in pairs_of(group))
    rows = np.array([[row_of[now], row_of[before]] for now, before in pairs if now in row_of and before in row_of])
    comfort = torch.full((len(tokens),), torch.nan, dtype=torch.float64, device=motion.device)
    if len(rows) == 0:
        return comfort
    seconds = times_us * 1e-6  # apart in floating-point seconds, as in the devkit
    apart = seconds[rows[:, 0]] - seconds[rows[:, 1]]
    apart[~((apart < _LATEST_PREVIOUS) & (np.round(apart / 0.1) >= 1))] = np.nan
    now, before = torch.from_numpy(rows).to(motion.device).unbind(-1)
    found = two_frame_extended_comfort(
        motion[now, None], motion[before, None], torch.from_numpy(apart).to(motion.device)
    )[:, 0]
    comfort[now], comfort[before] = found, found
    return comfort


def pairs_of(group: Group) -> list[tuple[str, str]]:
    """(now, before) of both stages."""
    return [group.first_stage, *group.pairs]


def tokens_of(group: Group) -> list[str]:
    """Of both stages."""
    return [token for pair in pairs_of(group) for token in pair]


def fingerprint(groups: Sequence[Group]) -> str:
    """SHA-256 of all tokens, sorted, with commas between."""
    return hashlib.sha256(
        ",".join(sorted(token for group in groups for token in tokens_of(group))).encode()
    ).hexdigest()
