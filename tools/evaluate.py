"""Score an agent on a split: scores.csv and summary.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from dpvla.cli import parse, reporting_errors
from dpvla.config import Whole
from dpvla.files import check_folder, one_writer
from navsim_bridge.agents.options import SharedAgentOptions
from navsim_bridge.files import roots
from navsim_bridge.files.roots import DataAndMapOptions
from navsim_bridge.metrics.config import PDMSConfig
from navsim_bridge.metrics.registry import AnyMetric, make_metric
from navsim_bridge.splits.coverage import usable_scenes
from navsim_bridge.splits.scene_filter import load_split


@dataclass(frozen=True, kw_only=True)
class Evaluate(SharedAgentOptions, DataAndMapOptions):
    """Score an agent on a split with the PDM score (NAVSIM v1), EPDMS (v2) or a metric of yours, one plan a scene."""

    RENAMED: ClassVar[Mapping[str, str]] = {"human_filter": "metric.human_filter"}

    seed: Whole = 0  # dpvla: of the sampling noise
    split: str  # name of a split, or a YAML, CSV or Parquet file that lists its scenes
    out: str  # folder for scores.csv and summary.json; the same command again replaces its own
    metric: AnyMetric = field(default_factory=PDMSConfig)  # what to score with
    metric_cache: str | None = None  # what tools/cache_metrics.py wrote; default: build the metric scenes on the way
    overwrite: bool = False  # replace what --out holds of another evaluation
    allow_failures: bool = False  # count scenes that fail, leave them out of the averages, and go on
    allow_missing: bool = False  # score what there is, and say so, when logs, images or (cached) scenes are missing


@reporting_errors
def main(argv: Sequence[str] | None = None) -> None:
    options = parse(Evaluate, argv)
    from navsim_bridge.evaluation.metric_scenes import LoadScenes, ScenesFromLogs, recorded_scenes, scenes_from_cache
    from navsim_bridge.evaluation.results import (
        SCORES,
        SUMMARY,
        Identity,
        check_results,
        describe,
        identity,
        keep_whole,
        write_evaluation,
    )
    from navsim_bridge.evaluation.run import evaluate_together
    from navsim_bridge.metric_cache import MetricCache
    from navsim_bridge.metric_cache.builder import require_scorable

    options.check_agent("seed")
    check_folder(options.out)
    crew = options.crew()
    metric = make_metric(options.metric)
    data_root = roots.data_root(options.data_root)
    split = load_split(options.split, data_root, options.data_split)
    cache = MetricCache(options.metric_cache) if options.metric_cache is not None else None
    if cache is not None:
        cache.require_metric(metric)
    elif metric.scene_rules is not None:
        require_scorable(split, metric.scene_rules)
        maps_root = roots.maps_root(options.maps_root)
    agent = options.open_for(crew, data_root, options.seed)
    about: Identity = {
        "agent": options.agent,
        "split": split,
        "data_root": data_root,
        "seed": options.seed,
        "omega": agent.guidance,
        "checkpoint": options.checkpoint,
    }
    with one_writer(options.out):
        check_results(options.out, identity(metric=metric.about, **about), options.overwrite)
        records, coverage = usable_scenes(split, data_root, agent.cameras, options.allow_missing)
        load_scenes: LoadScenes
        reads = [data_root, *([Path(options.checkpoint)] if options.checkpoint else [])]
        if cache is not None:
            records, coverage = cache.usable(records, coverage, options.allow_missing)
            load_scenes, reads = scenes_from_cache(cache), [*reads, cache.path]
        elif metric.scene_rules is not None:
            load_scenes, reads = ScenesFromLogs(records, data_root, maps_root, metric.scene_rules), [*reads, maps_root]
        else:
            load_scenes = recorded_scenes
        keep_whole(options.out, coverage, options.overwrite)
        evaluation = evaluate_together(
            agent.open,
            records,
            load_scenes,
            crew,
            metric=metric,
            allow_failures=options.allow_failures,
            reads=reads,
        )
        keep_whole(options.out, coverage.without("failed", len(evaluation.failures)), options.overwrite)
        summary = write_evaluation(options.out, evaluation, records=records, cache=cache, coverage=coverage, **about)
    print(describe(summary, metric))
    print(f"written: {Path(options.out) / SCORES}, {Path(options.out) / SUMMARY}")


if __name__ == "__main__":
    main()
