"""What a selector's predictions are worth on plans that it has not learned from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from dpvla.sub_scores import SCORE

FEW = 3
"""A score that takes no more values than this is a decision: how well the full ones are told from the others counts."""


def quality(
    predicted: Sequence[Mapping[str, Tensor]], true: Sequence[Tensor], names: Sequence[str]
) -> dict[str, float]:
    """How well scores are predicted, and what choosing by them is worth.

    Args:
        predicted: of each group, by name of score (scene, candidate).
        true: of each group (scene, candidate, score), scores as ``names``; the last is the score.

    Returns:
        ``one``, ``selected``, ``oracle``: the mean score of a plan of a scene, of the one predicted to be best, and of
        the one that is; ``share``: how much of the way from the first to the last the second goes. For each score its
        ``auc`` (how often a full one is predicted above one that is not) or, where it takes many values, the
        ``correlation``; none where all its values are the same.
    """
    found: dict[str, float] = {}
    one = selected = oracle = scenes = 0.0
    for guess, scores in zip(predicted, true):
        score = scores[..., -1].double()
        one += float(score.mean(-1).sum())
        selected += float(score.gather(-1, guess[SCORE].argmax(-1, keepdim=True)).sum())
        oracle += float(score.amax(-1).sum())
        scenes += len(score)
    if scenes:
        found |= {"one": one / scenes, "selected": selected / scenes, "oracle": oracle / scenes}
    if oracle > one:
        found["share"] = (selected - one) / (oracle - one)
    for place, name in enumerate(names):
        values = torch.cat([scores[..., place].flatten() for scores in true]).double()
        guesses = torch.cat([guess[name].flatten() for guess in predicted]).double()
        few = len(values.unique()) <= FEW
        value = auc(guesses, values >= values.max()) if few else correlation(guesses, values)
        if value is not None:
            found[f"{name}_{'auc' if few else 'correlation'}"] = value
    return found


def auc(guesses: Tensor, full: Tensor) -> float | None:
    """How often the guess of a full one is above that of another, ties counting half; None where there are not both."""
    counts = int(full.sum()), int((~full).sum())
    if not all(counts):
        return None
    _, place, many = guesses.unique(return_inverse=True, return_counts=True)
    middle = many.cumsum(0) - (many - 1) / 2  # the mean rank, from 1 on, of equal guesses
    ranks = middle.double()[place]
    return float((ranks[full].sum() - counts[0] * (counts[0] + 1) / 2) / (counts[0] * counts[1]))


def correlation(guesses: Tensor, values: Tensor) -> float | None:
    """Pearson's; None where one of both does not vary."""
    if not len(values) or float(guesses.std()) == 0 or float(values.std()) == 0:
        return None
    return float(torch.corrcoef(torch.stack([guesses, values]))[0, 1])
