"""The main job from nothing, on the built-in demo world: `make demo`, or `python tools/demo.py`.

World, imitation pretraining, DIPOLE on navtrain and on navtest, the control without reward (beta 0), evaluation,
submission, pictures. A step that is finished is not done again, so an interrupted demo goes on.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from tqdm import tqdm

from dpvla.cli import parse, reporting_errors
from dpvla.config import NotNegative, Whole
from dpvla.files import check_folder, write_json, write_text
from dpvla.parallel import available_cores, run_jobs
from dpvla.registry import import_plugin
from dpvla.report.scene_picture import DrawnPlan
from dpvla.report.table import markdown_table
from dpvla.training.checkpoint import resolve_checkpoint
from navsim_bridge.agents import AGENTS, Agent, PolicyAgent, find_agent
from navsim_bridge.data.training_data import own_metric_cache
from navsim_bridge.demo_world import DemoWorldConfig, make_demo_world
from navsim_bridge.evaluation.pictures import save_scene_picture
from navsim_bridge.evaluation.run import Evaluation, evaluate, scenes_from_cache, write_evaluation
from navsim_bridge.splits.scene_filter import load_split
from navsim_bridge.splits.scenes import SceneRecord, select_scenes

HERE = Path(__file__).resolve().parent
TABLE = ("no_at_fault_collisions", "drivable_area_compliance", "time_to_collision_within_bound", "comfort",
         "ego_progress", "score")  # fmt: skip
"""Columns of the metric that the table shows, in the order of the paper's."""
FAILED, SUCCEEDED = 0.5, 0.8


@dataclass(frozen=True)
class DemoConfig:
    """Everything `make demo` does."""

    out: str = "runs/demo"  # results
    seed: Whole = 0  # of every training stage and of sampling
    omega: NotNegative = 1.0  # greediness w; fixed here, before any test score is looked at
    world: DemoWorldConfig = field(default_factory=DemoWorldConfig)  # the demo world
    pretrain_config: str = str(HERE.parent / "configs" / "pretrain_demo.yaml")  # recipe of tools/pretrain.py
    dipole_config: str = str(HERE.parent / "configs" / "dipole_demo.yaml")  # recipe of tools/rl_finetune.py
    pictures: Whole = 8  # scenes drawn where imitation failed and DIPOLE succeeded
    plugin: tuple[str, ...] = ()  # modules of yours that add encoders, ...: names or .py files


@reporting_errors
def main(argv: Sequence[str] | None = None) -> None:
    """Run all of it and print the table."""
    config = parse(DemoConfig, argv, __doc__)
    check_folder(config.out)
    out = Path(config.out)
    seconds: dict[str, float] = {}
    with timed(seconds, "world"):
        make_demo_world(config.world)
    with timed(seconds, "pretraining"):
        launch(
            "pretrain.py",
            "--config",
            config.pretrain_config,
            "--out",
            str(out / "pretrain"),
            *shared_options(config),
            *fewer_validation_logs(config),
        )
    with timed(seconds, "fine-tuning"):
        fine_tune(config, out)
    with timed(seconds, "evaluation"):
        rows, scored = score_everything(config, out)
    with timed(seconds, "submission"):
        export_submission(config, out)
    with timed(seconds, "pictures"):
        draw_pictures(config, out, scored)
    table = markdown_table(rows)
    write_json(out / "summary.json", rows)
    write_text(out / "summary.md", table + "\n")
    write_json(out / "seconds.json", {name: round(value, 1) for name, value in seconds.items()})
    print(f"\n{table}\n")
    print("Rows trained on navtest are scored on the scenes they were trained on (adaptation, not generalisation).")
    print(", ".join(f"{name} {value:.0f} s" for name, value in seconds.items()))
    print(f"results in {out}: summary.json, summary.md, submission.pkl, pictures/")


def shared_options(config: DemoConfig) -> list[str]:
    """Options of both training tools."""
    images = str(Path(config.world.root) / "image_cache")
    return ["--data-root", config.world.root, "--maps-root", f"{config.world.root}/maps", "--image-cache", images,
            "--loop.seed", str(config.seed), *plugins(config)]  # fmt: skip


def plugins(config: DemoConfig) -> list[str]:
    """The same modules for another tool."""
    return ["--plugin", *config.plugin] if config.plugin else []


def fewer_validation_logs(config: DemoConfig) -> list[str]:
    """Hold out at most a quarter of the training logs (one of two or three), however small the world."""
    recipe = yaml.safe_load(Path(config.pretrain_config).read_text(encoding="utf-8"))
    wanted = int(recipe.get("validation_logs", 0))
    root = Path(config.world.root)
    logs = len({r.log_name for r in select_scenes(load_split("navtrain", root), root)})
    most = logs // 4 if logs >= 4 else min(1, logs - 1)
    return ["--validation-logs", str(most)] if wanted > most else []


def fine_tune(config: DemoConfig, out: Path) -> None:
    """The two DIPOLE runs and the control, side by side on separate cores."""
    common = [
        "--config",
        config.dipole_config,
        *shared_options(config),
        "--checkpoint",
        str(out / "pretrain"),
        "--algorithm.omega",
        str(config.omega),
    ]
    jobs = [
        ["--split", "navtest", "--out", str(out / "dipole_navtest")],
        ["--split", "navtrain", "--out", str(out / "dipole_navtrain")],
        ["--split", "navtrain", "--out", str(out / "control_beta0"), "--algorithm.beta", "0"],
    ]
    cores = available_cores()
    at_once = max(1, min(len(jobs), cores))
    with ThreadPoolExecutor(at_once) as pool:
        runs = [pool.submit(launch, "rl_finetune.py", *common, *job, threads=max(1, cores // at_once)) for job in jobs]
        for run in runs:
            run.result()


def launch(tool: str, *options: str, threads: int | None = None) -> None:
    """Run a tool of this repository in its own process, as a user would."""
    environment = dict(os.environ) | ({"OMP_NUM_THREADS": str(threads)} if threads else {})
    command = [sys.executable, str(HERE / tool), *options]
    print("$ python tools/" + " ".join([tool, *options]), flush=True)
    if subprocess.run(command, env=environment).returncode:
        raise ValueError(
            f"tools/{tool} failed, see above; when the cause is gone, the same demo command goes on from what is done"
        )


@dataclass(frozen=True)
class Row:
    """One method of the table."""

    method: str
    trained_on: str  # split of the last training stage
    name: str  # baseline, or run directory below --out


ROWS = (
    Row("constant velocity", "", "constant_velocity"),
    Row("stand still", "", "stand_still"),
    Row("human", "", "human"),
    Row("DP-VLA imitation", "navtrain", "pretrain"),
    Row("DP-VLA + DIPOLE", "navtrain", "dipole_navtrain"),
    Row("DP-VLA + DIPOLE", "navtest", "dipole_navtest"),
    Row("control, beta 0", "navtrain", "control_beta0"),
)


def policy_agent(config: DemoConfig, out: Path, name: str, image_cache: Path | None = None) -> PolicyAgent:
    """The newest checkpoint of a run as an agent."""
    checkpoint = resolve_checkpoint(out / name)
    return PolicyAgent.from_checkpoint(
        checkpoint, config.world.root, omega=config.omega, seed=config.seed, image_cache=image_cache, batch_size=256
    )


def score_everything(config: DemoConfig, out: Path) -> tuple[list[dict[str, Any]], dict[str, Evaluation]]:
    """Every method on the filtered and the unfiltered test split, one sample a scene.

    The filtered split is part of the unfiltered one, so one pass over the latter scores both.
    """
    root = Path(config.world.root)
    everything, filtered = load_split("navtest_all", root), load_split("navtest", root)
    records = select_scenes(everything, root)
    inside = {r.token for r in select_scenes(filtered, root)}
    jobs = [(config, out, row.name) for row in ROWS]
    found = dict(tqdm(run_jobs(score_method, jobs, available_cores()), total=len(jobs), unit="method"))
    cache = own_metric_cache(filtered, root, root / "maps", workers=1)
    rows: dict[str, list[dict[str, Any]]] = {"navtest": [], "navtest_all": []}
    scored = {}
    for row in ROWS:
        learned = row.name not in AGENTS
        scored[row.name] = found[row.name].restricted(inside)
        for split, evaluation in ((filtered, scored[row.name]), (everything, found[row.name])):
            write_evaluation(
                out / "evaluation" / f"{row.name}_{split.name}",
                evaluation,
                agent="dpvla" if learned else row.name,
                split=split,
                records=[r for r in records if r.token in inside or split is everything],
                data_root=root,
                seed=config.seed,
                omega=config.omega if learned else None,
                checkpoint=resolve_checkpoint(out / row.name) if learned else None,
                cache=cache,
            )
            means = evaluation.averages
            label = {column.name: column.label for column in evaluation.metric.columns}
            numbers = {label[name]: 100 * means[name] for name in TABLE}
            about = {"method": row.method, "trained_on": row.trained_on, "split": split.name}
            rows[split.name].append(about | numbers | {"scenes": len(evaluation.tokens)})
    return rows["navtest"] + rows["navtest_all"], scored


def score_method(config: DemoConfig, out: Path, name: str) -> tuple[str, Evaluation]:
    """One row's plans on the unfiltered test split, scored; for a process of its own."""
    for module in config.plugin:
        import_plugin(module)
    root = Path(config.world.root)
    split = load_split("navtest_all", root)
    cache = own_metric_cache(split, root, root / "maps", workers=1)
    agent: Agent = find_agent(name) if name in AGENTS else policy_agent(config, out, name, root / "image_cache")
    return name, evaluate(agent, select_scenes(split, root), scenes_from_cache(cache), progress=False)


def export_submission(config: DemoConfig, out: Path) -> None:
    """The leaderboard file of the model that never saw the test split."""
    launch(
        "export_submission.py", "--checkpoint", str(out / "dipole_navtrain"), "--split", "navtest",
        "--data-root", config.world.root, "--out", str(out / "submission.pkl"), "--omega", str(config.omega),
        "--team-name", "dpvla demo", "--authors", "dpvla", "--email", "demo@example.org",
        "--institution", "demo world", "--country", "none", "--overwrite", *plugins(config),
    )  # fmt: skip


def draw_pictures(config: DemoConfig, out: Path, scored: dict[str, Evaluation]) -> None:
    """Test scenes where imitation failed and DIPOLE, trained on other scenes, succeeded: spread over logs.

    Where there is none, those in which DIPOLE gained most.
    """
    root = Path(config.world.root)
    records = {r.token: r for r in select_scenes(load_split("navtest", root), root)}
    cache = own_metric_cache(load_split("navtest", root), root, root / "maps", workers=1)
    before, after = scored["pretrain"], scored["dipole_navtrain"]
    was, now = before.values[:, -1], after.values[:, -1]  # the score
    better = np.flatnonzero((was < FAILED) & (now > SUCCEEDED))
    if not len(better):
        better = np.argsort(was - now, kind="stable")[: config.pictures]
    runs = [("imitation", policy_agent(config, out, "pretrain"), before),
            ("DIPOLE", policy_agent(config, out, "dipole_navtrain"), after)]  # fmt: skip
    tokens = spread([records[before.tokens[i]] for i in better], config.pictures)
    for number, token in enumerate(tokens):
        record = records[token]
        drawn = [DrawnPlan("recorded", record.plan())]
        for label, agent, evaluation in runs:
            plan = agent([record])[0]
            values = dict(zip(evaluation.columns, evaluation.values[evaluation.tokens.index(token)].tolist()))
            drawn.append(DrawnPlan(label, plan.astype(np.float64), evaluation.metric.note(values)))
        path = out / "pictures" / f"{number:02d}_{token}.png"
        save_scene_picture(path, record, cache.load([token])[0], root, drawn, f"{record.log_name}  {token}")


def spread(records: Sequence[SceneRecord], count: int) -> list[str]:
    """Tokens of up to ``count`` records, evenly through the list."""
    chosen = np.unique(np.linspace(0, len(records) - 1, min(count, len(records))).round().astype(int))
    return [records[i].token for i in chosen]


@contextmanager
def timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    """Note how long a step took."""
    print(f"== {name}", flush=True)
    began = time.perf_counter()
    yield
    seconds[name] = time.perf_counter() - began


if __name__ == "__main__":
    main()
