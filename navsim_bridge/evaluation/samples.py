"""Several plans a scene of one agent: what they come to together, and what the best of them would.

Sample 0 is the plan of an evaluation with one; each other has its own noise, which is fixed by seed, scene and number.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from navsim_bridge.evaluation.evaluation import Evaluation, cell, in_order
from navsim_bridge.metrics.metric import Metric


def over_samples(samples: Sequence[Evaluation]) -> dict[str, Any]:
    """By column over the averages of each sample their mean and standard deviation (n - 1), and the `oracle`'s.

    None where a column has no value. Raises ValueError where a sample has no scene that did not fail.
    """
    averages = [sample.averages for sample in samples]
    table = {name: np.array([each[name] for each in averages]) for name in averages[0]}
    best = oracle(samples)
    return {
        "mean": {name: _or_none(values.mean()) for name, values in table.items()},
        "standard_deviation": {name: _or_none(values.std(ddof=1)) for name, values in table.items()},
        "failed": [len(sample.failures) for sample in samples],
        "oracle_best": {name: _or_none(mean) for name, mean in best.averages.items()},
        "oracle_best_is": f"of each scene the plan of {len(samples)} with the highest true score: no method knows it",
    }


def oracle(samples: Sequence[Evaluation]) -> Evaluation:
    """Of each scene the sample with the highest true score, as if that alone had been given; the first of equal ones.

    It uses what it is measured with: a bound for whoever chooses among the samples, and no method. A scene fails where
    all samples do.
    """
    scores = np.stack([sample.values[:, -1] for sample in samples])
    chosen = np.where(np.isnan(scores), -np.inf, scores).argmax(axis=0)
    parts = [
        part.only(kept)
        for number, sample in enumerate(samples)
        for part in sample.parts
        if (kept := [i for i, row in enumerate(part.rows) if chosen[row] == number])
    ]
    failed = set.intersection(*(set(sample.failures) for sample in samples))
    failures = {token: why for token, why in samples[0].failures.items() if token in failed}
    return replace(samples[0], parts=in_order(parts), failures=failures)


def samples_csv(samples: Sequence[Evaluation]) -> str:
    """A row per scene and sample, in the columns of ``scores.csv`` and ``sample``; no row of averages."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["token", "sample", "valid", *samples[0].columns, "reason"])
    found = [(sample.valid.tolist(), sample.values.tolist(), sample.reasons) for sample in samples]
    for row, token in enumerate(samples[0].tokens):
        for number, (valid, values, reasons) in enumerate(found):
            writer.writerow([token, number, valid[row], *map(cell, values[row]), reasons.get(token, "")])
    return text.getvalue()


def describe_samples(found: dict[str, Any], metric: Metric[Any]) -> list[str]:
    """What to print of `over_samples`."""
    score = replace(metric.columns[-1], label=metric.title)
    count = len(found["failed"])
    mean, spread = found["mean"]["score"], found["standard_deviation"]["score"]
    return [
        f"mean of {count} samples a scene: {score.shown(mean)} (standard deviation {score.number(spread)}); "
        "the line above and scores.csv are of the first",
        f"oracle best of {count}, chosen by the true score, so no method: {score.shown(found['oracle_best']['score'])}",
    ]


def _or_none(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
