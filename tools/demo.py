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
from typing import TYPE_CHECKING, Any

from dpvla.cli import parse, reporting_errors
from dpvla.config import ConfigError, NotNegative, Whole
from dpvla.files import check_folder, read_yaml, short, write_json, write_text
from dpvla.parallel import available_cores
from dpvla.recipes import RECIPES
from dpvla.report.table import markdown_table
from navsim_bridge.agents import AGENTS
from navsim_bridge.demo_world import DemoWorldConfig, make_demo_world
from navsim_bridge.splits.scene_filter import load_split
from navsim_bridge.splits.scenes import SceneRecord, select_scenes

if TYPE_CHECKING:
    from navsim_bridge.evaluation.evaluation import Evaluation
    from navsim_bridge.evaluation.methods import Method

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
    omega: NotNegative | None = None  # greediness w, instead of the recipe's: set before any test score is looked at
    world: DemoWorldConfig = field(default_factory=DemoWorldConfig)  # the demo world
    pretrain_config: str = str(RECIPES / "pretrain_demo.yaml")  # recipe of tools/pretrain.py
    dipole_config: str = str(RECIPES / "dipole_demo.yaml")  # recipe of tools/rl_finetune.py
    pictures: Whole = 8  # scenes drawn where imitation failed and DIPOLE succeeded
    plugin: tuple[str, ...] = ()  # modules of yours that add encoders, ...: names or .py files


@reporting_errors
def main(argv: Sequence[str] | None = None) -> None:
    """Run all of it and print the table."""
    config = parse(DemoConfig, argv, __doc__)
    check_folder(config.out)
    for recipe in (config.pretrain_config, config.dipole_config):
        read_yaml(recipe)  # what cannot be read is told before the work
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
    print("Rows trained on navtest are scored on the scenes they were trained on (adaptation, not generalization).")
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
    recipe = read_yaml(config.pretrain_config)
    wanted = recipe.get("validation_logs", 0) if isinstance(recipe, dict) else 0
    if not isinstance(wanted, int):
        raise ConfigError(f"{config.pretrain_config}: validation_logs: expected a number, found {short(wanted)}")
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
        *(["--algorithm.omega", str(config.omega)] if config.omega is not None else []),
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


def methods(config: DemoConfig, out: Path) -> dict[str, Method]:
    """By name; of trained ones the newest checkpoint."""
    from dpvla.training.checkpoint import resolve_checkpoint
    from navsim_bridge.evaluation.methods import Method

    return {
        row.name: Method(row.name, seed=config.seed)
        if row.name in AGENTS
        else Method(row.name, resolve_checkpoint(out / row.name), seed=config.seed)
        for row in ROWS
    }


def score_everything(config: DemoConfig, out: Path) -> tuple[list[dict[str, Any]], dict[str, Evaluation]]:
    """Rows of the table, every method on the filtered and the unfiltered test split; evaluations on the filtered."""
    from navsim_bridge.evaluation.methods import score_methods

    root = Path(config.world.root)
    everything, filtered = load_split("navtest_all", root), load_split("navtest", root)
    scored = score_methods(
        [*methods(config, out).values()], everything, filtered, root, out / "evaluation", workers=available_cores(),
        plugin=config.plugin,
    )  # fmt: skip
    rows = []
    for split, which in ((filtered, 0), (everything, 1)):
        for row in ROWS:
            evaluation = scored[row.name][which]
            label = {column.name: column.label for column in evaluation.metric.columns}
            numbers = {label[name]: 100 * evaluation.averages[name] for name in TABLE}
            about = {"method": row.method, "trained_on": row.trained_on, "split": split.name}
            rows.append(about | numbers | {"scenes": len(evaluation.tokens)})
    return rows, {name: of_filtered for name, (of_filtered, _) in scored.items()}


def export_submission(config: DemoConfig, out: Path) -> None:
    """The leaderboard file of the model that never saw the test split."""
    launch(
        "export_submission.py", "--checkpoint", str(out / "dipole_navtrain"), "--split", "navtest",
        "--data-root", config.world.root, "--out", str(out / "submission.pkl"), "--overwrite",
        "--team-name", "dpvla demo", "--authors", "dpvla", "--email", "demo@example.org", "--institution",
        "demo world", "--country", "none", *plugins(config),
    )  # fmt: skip


def draw_pictures(config: DemoConfig, out: Path, scored: dict[str, Evaluation]) -> None:
    """Test scenes where imitation failed and DIPOLE, trained on other scenes, succeeded: spread over logs.

    Where there is none, those in which DIPOLE gained most.
    """
    import numpy as np

    from dpvla.report.scene_picture import DrawnPlan
    from navsim_bridge.agents.plans import each
    from navsim_bridge.data.training_data import own_metric_cache
    from navsim_bridge.evaluation.pictures import save_scene_picture

    root = Path(config.world.root)
    records = {r.token: r for r in select_scenes(load_split("navtest", root), root)}
    cache = own_metric_cache(load_split("navtest", root), root, root / "maps", workers=1)
    before, after = scored["pretrain"], scored["dipole_navtrain"]
    was, now = before.values[:, -1], after.values[:, -1]  # the score
    better = np.flatnonzero((was < FAILED) & (now > SUCCEEDED))
    if not len(better):
        better = np.argsort(was - now, kind="stable")[: config.pictures]
    trained = methods(config, out)
    runs = [("imitation", trained["pretrain"].agent(root), before),
            ("DIPOLE", trained["dipole_navtrain"].agent(root), after)]  # fmt: skip
    tokens = spread([records[before.tokens[i]] for i in better], config.pictures)
    for number, token in enumerate(tokens):
        record = records[token]
        drawn = [DrawnPlan("recorded", record.plan())]
        for label, agent, evaluation in runs:
            [plan] = each(agent([record]))
            values = dict(zip(evaluation.columns, evaluation.values[evaluation.tokens.index(token)].tolist()))
            drawn.append(DrawnPlan(label, np.asarray(plan.poses, dtype=np.float64), evaluation.metric.note(values)))
        path = out / "pictures" / f"{number:02d}_{token}.png"
        save_scene_picture(path, record, cache.load([token])[0], root, drawn, f"{record.log_name}  {token}")


def spread(records: Sequence[SceneRecord], count: int) -> list[str]:
    """Tokens of up to ``count`` records, evenly through the list."""
    import numpy as np

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
