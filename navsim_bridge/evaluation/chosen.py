"""A plan that was chosen among several: what the choice is worth, where all of them were scored, too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from navsim_bridge.evaluation.evaluation import Evaluation
from navsim_bridge.evaluation.samples import oracle
from navsim_bridge.metrics.metric import Metric


def over_choice(chosen: Evaluation, among: Sequence[Evaluation]) -> dict[str, Any]:
    """The scores that a choice lies between: one plan of ``among``, in the mean, and the best by the true score.

    ``share`` is how much of the way from the first to the second ``chosen`` goes; None where there is no way.
    """
    one = float(np.mean([plans.averages["score"] for plans in among]))
    best = float(oracle(among).averages["score"])
    score = float(chosen.averages["score"])
    return {
        "plans": len(among),
        "one": one,
        "oracle_best": best,
        "oracle_best_is": f"of each scene the plan of {len(among)} with the highest true score: no method knows it",
        "share": (score - one) / (best - one) if best > one else None,
    }


def describe_choice(selection: Mapping[str, Any], found: Mapping[str, Any] | None, metric: Metric[Any]) -> list[str]:
    """What to print of a choice and, where it is known, of `over_choice`."""
    sources = ", ".join(f"{count} of {name}" for name, count in selection["sources"].items())
    lines = [f"chosen among {selection['plans_per_scene']} plans a scene ({sources}) by {selection['selector']}"]
    learned = {key: value for key, value in selection["predicts"].items() if key != "metric"}
    if learned != metric.about:
        lines.append(
            f"the selector was trained to predict {selection['predicts'].get('metric', 'another metric')!s:.80}, "
            "with other options or of another version than what is scored here"
        )
    if found is not None:
        score = replace(metric.columns[-1], label=metric.title)
        share = "" if found["share"] is None else f"; the choice goes {100 * found['share']:.0f} % of the way"
        lines.append(
            f"one of these plans: {score.shown(found['one'])}; oracle best of {found['plans']}, chosen by the true "
            f"score, so no method: {score.shown(found['oracle_best'])}{share}"
        )
    return lines
