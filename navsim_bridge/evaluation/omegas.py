"""One policy under several omegas: results of each in a folder of its own, and a table of them all."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dpvla.files import write_texts_together
from dpvla.report.table import markdown_table
from navsim_bridge.evaluation.evaluation import Evaluation
from navsim_bridge.evaluation.floors import describe_floors
from navsim_bridge.evaluation.results import (
    Identity,
    ResultsError,
    data_fingerprint,
    keep_whole,
    remarks,
    write_evaluation,
)
from navsim_bridge.metric_cache.cache import MetricCache
from navsim_bridge.metrics.metric import Metric
from navsim_bridge.splits.coverage import Coverage
from navsim_bridge.splits.scenes import SceneRecord

TABLE = ("omega.csv", "omega.md")
OVER_SAMPLES = {"mean": "mean of {}", "standard_deviation": "deviation", "oracle_best": "oracle best of {}"}
"""What the table has of several samples, by key of the summary, and what it is called beside the score's label."""


def folder_of(out: Path | str, omega: float) -> Path:
    """Where the results of an omega go: ``omega_0.5``, ``omega_1``."""
    return Path(out) / f"omega_{repr(float(omega)).removesuffix('.0')}"


def write_omegas(
    out: Path | str,
    runs: Mapping[Path, Identity],
    samples: Sequence[Sequence[Evaluation]],
    *,
    trained_with: float | None,
    overwrite: bool,
    records: Sequence[SceneRecord],
    cache: MetricCache | None,
    coverage: Coverage,
    floors: Mapping[str, Any] | None = None,
) -> tuple[str, list[Path]]:
    """Write each omega's results to its folder, and ``omega.csv`` and ``omega.md``, a row per omega, to ``out``.

    Args:
        runs: by folder what is evaluated, its omega among it.
        samples: for each of ``runs``, as `write_evaluation` takes them.
        trained_with: the policy's own omega, whose row is marked.
        overwrite: as for `keep_whole`.
        records, cache, coverage, floors: as for `write_evaluation`.

    Returns:
        What to print, and where everything lies.

    Raises:
        ResultsError: of an omega all scenes failed, or some, where its folder holds results of all. The others are
            written before.
    """
    tables = [Path(out) / name for name in TABLE]
    for table in tables:
        table.unlink(missing_ok=True)  # of results that are replaced
    fingerprint = data_fingerprint(records, next(iter(runs.values()))["data_root"])
    summaries: dict[float, dict[str, Any]] = {}
    lost = []
    for (folder, about), of_omega in zip(runs.items(), samples):
        omega = about["omega"]
        assert omega is not None
        failed = next((one.failures for one in of_omega if not one.parts), None)
        try:
            keep_whole(folder, coverage.without("failed", len(of_omega[0].failures)), overwrite)
            if failed is not None:
                token, why = next(iter(failed.items()))
                raise ResultsError(f"all {len(records)} scenes failed; first {token}: {why}")
        except ResultsError as error:
            lost.append(f"omega {omega:g}: {error}")
            continue
        summaries[omega] = write_evaluation(
            folder,
            *of_omega,
            records=records,
            cache=cache,
            coverage=coverage,
            fingerprint=fingerprint,
            floors=floors,
            **about,
        )
    text = ""
    if summaries:
        metric = samples[0][0].metric
        rows = [_row(omega, summary, metric, omega == trained_with) for omega, summary in summaries.items()]
        text = f"{metric.title}\n\n{markdown_table([_shown(row, metric, len(samples[0])) for row in rows])}\n"
        write_texts_together(dict(zip(tables, (_csv(rows), text))))
    if lost:
        raise ResultsError("; ".join([*lost, f"the other {len(summaries)} omegas are written"]))
    beside = describe_floors(floors, samples[0][0].metric)
    return "\n".join([text, *beside, *_remarks(summaries)]), [*tables, *runs]


def _row(omega: float, summary: Mapping[str, Any], metric: Metric[Any], is_own: bool) -> dict[str, Any]:
    """A line of ``omega.csv``; None where there is no number."""
    about = {name: summary[name] for name in ("scenes", "scenes_scored", "failed")}
    averages = {column.name: summary["averages"][column.name] for column in metric.result_columns}
    over = summary["over_samples"] or {}
    of_samples = {f"score_{key}": over[key]["score"] for key in OVER_SAMPLES if over}
    return {"omega": omega, "trained_with": is_own, **about, **averages, **of_samples}


def _csv(rows: Sequence[Mapping[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)  # None is an empty cell
    return text.getvalue()


def _shown(row: Mapping[str, Any], metric: Metric[Any], count: int) -> dict[str, str]:
    """The same for people."""
    score = metric.columns[-1]
    omega = f"{row['omega']:g}" + (" (trained with)" if row["trained_with"] else "")
    numbers = {column.label: column.number(row[column.name]) for column in metric.result_columns}
    over = {f"{score.label}, {words.format(count)}": score.number(row[f"score_{key}"])
            for key, words in OVER_SAMPLES.items() if count > 1}  # fmt: skip
    return {"omega": omega, "scenes": str(row["scenes_scored"]), **numbers, **over}


def _remarks(summaries: Mapping[float, dict[str, Any]]) -> list[str]:
    """What must be said beside the table: once where it holds for all."""
    said = {omega: remarks(summary) for omega, summary in summaries.items()}
    common = [line for line in next(iter(said.values())) if all(line in lines for lines in said.values())]
    return common + [
        f"omega {omega:g}: {line}" for omega, lines in said.items() for line in lines if line not in common
    ]
