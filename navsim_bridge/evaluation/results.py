"""The results of an evaluation on disk: one row per scene, averages, and what made them."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

import numpy as np

from dpvla.files import FileError, check_file, check_folder, read_json, short, write_texts_together
from dpvla.manifest import sha256_of
from dpvla.provenance import made_by
from navsim_bridge.evaluation.chosen import describe_choice, over_choice
from navsim_bridge.evaluation.evaluation import Evaluation
from navsim_bridge.evaluation.floors import describe_floors
from navsim_bridge.evaluation.samples import describe_samples, over_samples, samples_csv
from navsim_bridge.files.logs import log_path
from navsim_bridge.files.odd import odd_lines
from navsim_bridge.metric_cache.cache import MetricCache
from navsim_bridge.metrics.metric import Metric
from navsim_bridge.metrics.pdms import PDMS
from navsim_bridge.splits.coverage import Coverage
from navsim_bridge.splits.scene_filter import Split
from navsim_bridge.splits.scenes import SceneRecord
from navsim_bridge.splits.token_list import SUFFIXES

SCORES, SUMMARY, SAMPLES = "scores.csv", "summary.json", "samples.csv"
CHOOSE = "choose another --out, or replace them with --overwrite"
PDMS_V1 = PDMS()


class _Identity(TypedDict):
    agent: str
    split: Split
    data_root: Path | str
    seed: int
    omega: float | None
    checkpoint: Path | str | None


class Identity(_Identity, total=False):
    """What is evaluated on what, as `identity` and `write_evaluation` take it."""

    selection: Mapping[str, Any] | None  # how a plan is chosen among several
    submission: Mapping[str, str] | None  # path and sha256 of the file that holds the plans


class ResultsError(ValueError):
    """A folder that cannot take the results; the message says why and what to do."""


def write_evaluation(
    out: Path | str,
    *samples: Evaluation,
    agent: str,
    split: Split,
    records: Sequence[SceneRecord],
    data_root: Path | str,
    seed: int,
    omega: float | None = None,
    checkpoint: Path | str | None = None,
    cache: MetricCache | None = None,
    coverage: Coverage | None = None,
    fingerprint: str | None = None,
    selection: Mapping[str, Any] | None = None,
    submission: Mapping[str, str] | None = None,
    chosen_among: Sequence[Evaluation] = (),
    floors: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Write ``scores.csv`` and ``summary.json`` to ``out``; returns the summary.

    ``samples``: one evaluation, or several of the same agent with other noise. Then ``samples.csv`` has the scores of
    all, and the summary what they come to (`over_samples`); ``scores.csv`` and ``averages`` are those of the first: the
    score of a row is what its sub-scores come to, as readers expect.

    ``omega`` and ``checkpoint`` belong to the dpvla agent alone; ``cache`` when the metric scenes came from one;
    ``coverage``: how much of the split ``records`` are (default: all of it); ``fingerprint``: `data_fingerprint` of the
    records, where it is known. ``selection``: how the plan was chosen, as its agent says; ``submission``: the file
    that it stands in; ``chosen_among``: of all
    plans that it was chosen among, where they were scored, too. ``floors``: `floors_of` a split that has them.
    """
    evaluation, several = samples[0], len(samples) > 1
    trained_on = training_stages(checkpoint) if checkpoint else None if submission else []
    if selection is not None and trained_on is not None:
        trained_on = [*trained_on, *(s for s in stages_of_selector(selection["selector"]) if s not in trained_on)]
    precision = weights_of(checkpoint)[1] if checkpoint else None
    part = (coverage or Coverage.whole(len(records))).without("failed", len(evaluation.failures))
    summary = {
        **identity(
            agent, split, data_root, evaluation.about, seed, omega, checkpoint, len(samples), selection, submission
        ),
        "precision": precision,
        "scenes": len(evaluation.tokens),
        "scenes_scored": part.used,
        **part.as_dict(),
        "failed": len(evaluation.failures),
        "failures": evaluation.failures,
        "odd": evaluation.odd,
        "averages": _or_none(evaluation.averages),
        "part_averages": {name: _or_none(means) for name, means in evaluation.part_averages.items()},
        "caveats": list(evaluation.caveats),
        "notes": list(evaluation.notes),
        "floors": floors,
        "over_samples": over_samples(samples) if several else None,
        "chosen_among": over_choice(evaluation, chosen_among) if chosen_among else None,
        "metric": evaluation.about,
        "metric_cache": cache.provenance if cache else None,
        "data_fingerprint": fingerprint or data_fingerprint(records, data_root),
        "trained_on": trained_on,
        "trained_on_evaluation_split": saw_split(trained_on, split, records),
        "candidates_per_scene": 1,  # plans that a scene's score comes from
        "provenance": made_by(seed, "cpu") | {"device": evaluation.device},
    }
    texts = {
        SUMMARY: json.dumps(summary, indent=2, allow_nan=False) + "\n",  # first: it says which evaluation it is of
        SCORES: evaluation.to_csv(part.is_whole),
        **({SAMPLES: samples_csv(samples)} if several else {}),
    }
    if not several:
        (Path(out) / SAMPLES).unlink(missing_ok=True)  # of other results, which are replaced
    write_texts_together({Path(out) / name: text for name, text in texts.items()})
    return summary


def _or_none(values: Mapping[str, float]) -> dict[str, float | None]:
    return {name: None if np.isnan(value) else value for name, value in values.items()}


def identity(
    agent: str,
    split: Split,
    data_root: Path | str,
    metric: dict[str, Any],
    seed: int,
    omega: float | None = None,
    checkpoint: Path | str | None = None,
    samples: int = 1,
    selection: Mapping[str, Any] | None = None,
    submission: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """What tells an evaluation from others: two with the same values are the same command. ``metric``: its `about`."""
    return {
        "agent": agent,
        "checkpoint": os.path.abspath(checkpoint) if checkpoint else None,
        "weights": weights_of(checkpoint)[0] if checkpoint else None,  # found there: of a run the newest
        "split": split.name,
        "split_file": os.path.abspath(split.path) if split.path else None,
        "data_split": split.data_split,
        "data_root": os.path.abspath(data_root),
        "omega": omega,
        "seed": seed,
        "metric": metric,
        "samples_per_scene": samples,  # plans drawn from the agent
        "selection": dict(selection) if selection is not None else None,
        **({"submission": dict(submission)} if submission is not None else {}),  # summaries of before have no such key
    }


def check_results(out: Path | str, wanted: dict[str, Any], overwrite: bool = False) -> None:
    """Raise ResultsError when ``out`` cannot take results, or holds those of another evaluation than ``wanted``.

    ``wanted`` is an `identity`. Results of the same evaluation may be replaced; with ``overwrite`` any.
    """
    folder = Path(out)
    check_folder(folder)
    for name in (SCORES, SUMMARY, SAMPLES):
        check_file(folder / name)
    if overwrite or not any((folder / name).exists() for name in (SCORES, SUMMARY)):
        return
    try:
        found = read_json(folder / SUMMARY)
        there = {**found, "metric": {key: found["metric"].get(key) for key in wanted["metric"]}}
        differ = [
            f"{key} {_plain(there[key])} there, {_plain(wanted[key])} asked for"
            for key in wanted
            if there[key] != wanted[key]
        ]
    except (OSError, FileError, KeyError, TypeError, AttributeError):
        raise ResultsError(
            f"{folder} holds a {SCORES} or {SUMMARY} that does not say which evaluation it is of; {CHOOSE}"
        ) from None
    if differ:
        raise ResultsError(f"{folder} holds the results of another evaluation ({'; '.join(differ)}); {CHOOSE}")


def keep_whole(out: Path | str, coverage: Coverage, overwrite: bool = False) -> None:
    """Raise ResultsError when ``out`` holds results of a whole split and those to come, of ``coverage``, are of a part.

    Not with ``overwrite``. Call it when `check_results` has passed.
    """
    summary = Path(out) / SUMMARY
    if overwrite or coverage.is_whole or not summary.exists():
        return
    if read_json(summary).get("whole_split"):
        raise ResultsError(
            f"{out} holds results of the whole split, and now it would be {coverage} ({coverage.why}); {CHOOSE}"
        )


def _plain(value: Any) -> str:
    """A value of an `identity` in words."""
    if isinstance(value, dict):  # of a metric
        shown = {key: v if isinstance(v, str) else short(v) for key, v in value.items() if v is not None}
        texts = [v if key == "name" else f"{key} {v}" for key, v in shown.items()]
        return repr(", ".join(texts))[:400]
    return "none" if value is None else short(value)


def weights_of(checkpoint: Path | str) -> tuple[str, str]:
    """Where the weights of a checkpoint, a run or a model directory lie, and what they are sampled in (no, bf16)."""
    from dpvla.training.start import open_start

    start = open_start(checkpoint)
    return os.path.abspath(start.path), start.precision


def training_stages(checkpoint: Path | str) -> list[dict[str, Any]] | None:
    """Stage, split, scenes and logs behind the weights of a checkpoint, oldest first.

    None when no ``run.yaml`` says what the weights have seen (a bare model directory).
    """
    from dpvla.training.run_directory import UNKNOWN
    from dpvla.training.start import open_start

    stages = open_start(checkpoint).trained_on
    if stages and all(stage.stage == UNKNOWN for stage in stages):
        return None
    return [dataclasses.asdict(stage) | {"logs": list(stage.logs)} for stage in stages]


def stages_of_selector(folder: Path | str) -> list[dict[str, Any]]:
    """Stage, split, scenes and logs behind a selector; an unknown one where no ``run.yaml`` beside it says."""
    from dpvla.checkpoint_layout import RUN_FILE
    from dpvla.training.run_directory import TrainedOn, read_trained_on

    beside = Path(folder).parent
    stages = read_trained_on(beside) if (beside / RUN_FILE).is_file() else [TrainedOn.unknown()]
    return [dataclasses.asdict(stage) | {"logs": list(stage.logs)} for stage in stages]


def saw_split(trained_on: Sequence[dict[str, Any]] | None, split: Split, records: Sequence[SceneRecord]) -> bool | None:
    """Whether any stage trained on the split or on a log that it holds; None when that is unknown."""
    from dpvla.training.run_directory import UNKNOWN

    if trained_on is None:
        return None
    logs = {r.log_name for r in records}
    is_list = split.path is not None and split.path.suffix.lower() in SUFFIXES  # any list may be called scores.csv
    if any((stage["split"] == split.name and not is_list) or logs & set(stage["logs"]) for stage in trained_on):
        return True
    return None if any(stage["stage"] == UNKNOWN for stage in trained_on) else False


def data_fingerprint(records: Sequence[SceneRecord], data_root: Path | str) -> str:
    """Hash over the scenes' tokens and the content of their logs."""
    logs = sorted({(r.data_split, r.log_name) for r in records if r.synthetic is None})
    content = [[name, sha256_of(log_path(data_root, data_split, name))] for data_split, name in logs]
    content += sorted([r.token, sha256_of(r.synthetic.file)] for r in records if r.synthetic)
    return hashlib.sha256(json.dumps([[r.token for r in records], content]).encode()).hexdigest()


def describe(summary: dict[str, Any], metric: Metric[Any] = PDMS_V1) -> str:
    """What to print of a summary."""
    total, *of_parts = metric.describe(summary["averages"], summary.get("part_averages", {}))
    part = Coverage(summary["scenes_scored"], summary["scenes_in_split"], summary["left_out"])
    of = f"{part}, NOT official" if summary.get("caveats") else str(part)
    lines = [f"{summary['agent']} on {summary['split']} ({of}): {total}", *of_parts]
    lines += describe_floors(summary.get("floors"), metric)
    if summary.get("over_samples"):
        lines += describe_samples(summary["over_samples"], metric)
    if summary.get("selection"):
        lines += describe_choice(summary["selection"], summary["chosen_among"], metric)
    return "\n".join([*lines, *remarks(summary)])


def remarks(summary: dict[str, Any]) -> list[str]:
    """What must be said beside the numbers of a summary: whose they are, and what they are not."""
    part = Coverage(summary["scenes_scored"], summary["scenes_in_split"], summary["left_out"])
    lines = [f"weights: {summary['weights']}"] if summary["weights"] is not None else []
    if not part.is_whole:
        lines.append(f"NOT the score of {summary['split']}, and not to be compared with scores of it: {part.why}.")
    lines += [f"NOT an official score of {summary['split']}: {why}." for why in summary.get("caveats", ())]
    if summary["failed"]:
        first = next(iter(summary["failures"]))
        lines.append(
            f"{summary['failed']} of {summary['scenes']} scenes FAILED and are not in the averages; first {first}: "
            f"{summary['failures'][first]}"
        )
    lines += [f"{line}: scored nevertheless." for line in odd_lines(summary["odd"], part.used)]
    lines += [f"{note}." for note in summary.get("notes", ())]
    if summary["trained_on_evaluation_split"]:
        lines.append(
            "trained_on_evaluation_split: true. The weights were trained on scenes or logs of "
            f"{summary['split']}: not a held-out score."
        )
    if summary["trained_on_evaluation_split"] is None:
        lines.append("What the weights were trained on is unknown, at least in part: no run.yaml tells it.")
    return lines
