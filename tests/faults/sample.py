"""Tiny pristine samples of everything that the tools read and write, made once by the tools themselves."""

from __future__ import annotations

import shutil
from pathlib import Path

import yaml

from tests.faults.server import Ended, Job, Server
from tests.navsim_bridge.two_stage_world import write_two_stage_world
from tests.paths import FIXTURES, ROOT

MODEL = {
    "encoder": {"name": "timm:test_convnext", "pretrained": False, "image_width": 48, "image_height": 24, "stride": 12,
                "width": 48, "timm_options": {"patch_size": 6, "dims": [8, 16, 16, 16], "depths": [1, 1, 1, 1]}},
    "head": {"preset": "tiny", "width": 16, "heads": 2, "blocks": ["1 modulated self cross mlp"]},
}  # fmt: skip
PRETRAIN = {
    "data_root": "world", "maps_root": "world/maps", "split": "navtrain_all",
    "model": MODEL,
    "imitation": {"epochs": 1, "batch_size": 2},
    "loop": {"lr": 1e-3, "save_every": 2, "log_every": 1, "ema_decay": 0.9, "trackers": []},
}  # fmt: skip
DIPOLE = {
    "data_root": "world", "maps_root": "world/maps", "split": "navtest_all", "metric_cache": "cache",
    "checkpoint": "runs/pre",
    "rollouts": {"group_size": 2, "cycles": 2, "epochs_per_cycle": 1, "batch_size": 2, "keep": True},
    "lora": {"rank": 2, "alpha": 2},
    "watch": {"picture": False},
    "loop": {"lr": 1e-2, "save_every": 1, "log_every": 1, "trackers": []},
}  # fmt: skip
HELD_OUT = {key: value for key, value in DIPOLE.items() if key != "metric_cache"} | {
    "split": "navtrain_all", "validation_logs": 1,
    "plugin": [str(ROOT / "examples" / "metric.py")], "metric": {"name": "ade", "scale": 20.0},
    "rollouts": {"group_size": 2, "cycles": 3, "epochs_per_cycle": 1, "scenes_per_cycle": 2, "batch_size": 2},
    "watch": {"metrics": [], "scenes": 1, "picture": False},
    "loop": {"lr": 1e-2, "save_every": 1, "log_every": 1, "keep_checkpoints": 1, "trackers": []},
}  # fmt: skip
SELECTOR = {
    "data_root": "world", "maps_root": "world/maps", "split": "navtest_all", "metric_cache": "cache",
    "roll_outs": ["runs/dip"], "checkpoint": "runs/pre", "validation_logs": 0,
    "selector": {"width": 16, "heads": 2, "layers": 1},
    "training": {"epochs": 2, "batch_size": 2, "plans_per_scene": 2},
    "loop": {"lr": 1e-3, "save_every": 1, "log_every": 1, "trackers": []},
}  # fmt: skip
STATE = {
    "env": "pointmaze-medium-navigate-singletask-v0", "agent": "dipole", "seeds": [0, 1], "data": "ogbench", "steps": 4,
    "eval_episodes": 1, "environments": 2, "workers": 0, "width": 8, "options": ["flow_steps=2", "batch_size=8"],
    "loop": {"log_every": 2, "evaluate_every": 4, "save_every": 2, "trackers": []},
}  # fmt: skip
TEAM = ("--team-name", "a", "--authors", "b", "--email", "c", "--institution", "d", "--country", "e")
WORLD = ("--num-train-logs", "2", "--num-test-logs", "1", "--log-seconds", "11", "--image-width", "64",
         "--image-height", "36", "--workers", "1", "--quiet", "--cameras", "CAM_F0", "CAM_L0", "CAM_R0")  # fmt: skip
ROOTS = ("--data-root", "world", "--maps-root", "world/maps")
SAMPLES: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("make_demo_world", ("--root", "world", *WORLD)),
    ("pack_images", ("--data-root", "world", "--split", "navtrain_all", "--size", "48x24", "--workers", "1", "--out",
                     "store")),
    ("cache_metrics", (*ROOTS, "--split", "navtest_all", "--workers", "1", "--out", "cache")),
    *(("cache_metrics", (*ROOTS, "--split", "navtrain_all", "--workers", "1", "--shard", f"{k}/2", "--out", "shards"))
      for k in (1, 2)),
    ("pretrain", ("--config", "pretrain.yaml", "--out", "runs/pre")),
    ("pretrain", ("--config", "pretrain.yaml", "--out", "runs/cached", "--image-cache", "images")),
    ("rl_finetune", ("--config", "dipole.yaml", "--out", "runs/dip", "--tokens.directory", "tokens")),
    ("evaluate", (*ROOTS, "--split", "navtest_all", "--agent", "human", "--metric-cache", "cache", "--out", "scores")),
    ("export_submission", ("--data-root", "world", "--split", "navtest_all", "--agent", "constant_velocity", *TEAM,
                           "--out", "submission.pkl")),
    ("make_ogbench_data", ("--env", "pointmaze-medium-navigate", "--episodes", "2", "--steps", "40", "--workers", "1",
                           "--quiet", "--out", "ogbench")),
    ("train_state_based", ("--config", "state.yaml", "--out", "runs/state", "--online-steps", "4")),
    ("collect_exorl", ("--domain", "walker", "--episodes", "2", "--steps", "20", "--hidden", "8", "--batch-size", "4",
                       "--random-steps", "10", "--checkpoint-every", "1", "--quiet", "--out", "exorl")),
)  # fmt: skip
"""Calls that make them, in order."""


class SampleError(RuntimeError):
    """A tool that makes a sample failed."""


SHORT_EPISODES = "tests.faults.short_episodes:use"
"""Environments whose episodes last a few steps."""


def call(server: Server, place: Path, tool: str, argv: tuple[str, ...], said: Path, cpu_s: float = 300) -> Ended:
    """A tool in ``place``."""
    before = SHORT_EPISODES if tool == "train_state_based" else ""
    return server.run(Job(f"tools.{tool}", argv, str(place), str(said), cpu_s, before))


def make(server: Server, place: Path) -> Path:
    """All samples below ``place``; a place that is complete stays as it is."""
    done = place / "complete"
    if done.exists():
        return place
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    for name, recipe in (("pretrain", PRETRAIN), ("dipole", DIPOLE), ("held_out", HELD_OUT), ("selector", SELECTOR),
                         ("state", STATE)):  # fmt: skip
        (place / f"{name}.yaml").write_text(yaml.safe_dump(recipe))
    for tool, argv in SAMPLES:
        said = place.with_name("said")
        ended = call(server, place, tool, argv, said)
        if ended.status != 0:
            raise SampleError(
                f"{tool} {' '.join(argv)}: {ended}\n{said.read_text()}\n{Path(f'{said}.err').read_text()}"
            )
    shutil.copytree(FIXTURES / "official_metric_cache_v1", place / "official", ignore=shutil.ignore_patterns("scores"))
    write_two_stage_world(place / "stages")
    _token_list(place)
    for run in ("pre", "dip", "state"):
        _interrupted(place / "runs" / run, place / "interrupted" / run)
    done.touch()
    return place


def _token_list(place: Path) -> None:
    """The scenes of navtest_all as a list."""
    rows = [line.split(",")[0] for line in (place / "scores/scores.csv").read_text().splitlines()[1:]]
    tokens = [token for token in rows if len(token) == 16]
    (place / "list.csv").write_text("token\n" + "\n".join(tokens) + "\n")


def _interrupted(run: Path, target: Path) -> None:
    """The run as it stood when its last checkpoint was not there yet."""
    shutil.copytree(run, target)
    shutil.rmtree(sorted((target / "checkpoints").glob("step_*"))[-1])
    (target / "result.json").unlink(missing_ok=True)
