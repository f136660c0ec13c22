"""What the state-based track reads: recorded data, states to go on from, collectors."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from tests.faults.case import Call, Case, as_typed, at
from tests.faults.groups.training import STEP, everything
from tests.faults.mutants import arrays, files, tensors, texts
from tests.faults.sample import SHORT_EPISODES

DATA = "pointmaze-medium-navigate-v0"
TRAIN = Call(
    "train_state_based",
    ("--config", "state.yaml", "--out", "new"),
    ("state.yaml", "ogbench"),
    ("new/checkpoints/*/**/*.safetensors",),
    ("new", "new/**/*"),
    SHORT_EPISODES,
)
RESUME = Call(
    "train_state_based",
    ("--config", "state.yaml", "--out", "run", "--online-steps", "4"),
    ("state.yaml", "ogbench", "interrupted/state as run"),
    ("run/checkpoints/step_00000008/**/*.safetensors", "run/metrics.csv"),
    ("run", "run/**/*"),
    SHORT_EPISODES,
)
GENERATE = Call(
    "make_ogbench_data",
    as_typed("--env pointmaze-medium-navigate --episodes 2 --steps 40 --workers 1 --quiet --out ogbench"),
    ("ogbench",),
    ("ogbench/*.npz",),
    ("ogbench", "ogbench/*"),
)
WALK = Call(
    "train_state_based",
    ("--config", "state.yaml", "--env", "walker-walk", "--data", "exorl", "--out", "new"),
    ("state.yaml", "exorl"),
    ("new/checkpoints/*/**/*.safetensors",),
    ("new", "new/**/*", "exorl/walker/rnd/rewards", "exorl/walker/rnd/rewards/*"),
    "tests.faults.short_episodes:use_for_walker",
)
COLLECT = Call(
    "collect_exorl",
    as_typed(
        "--domain walker --episodes 3 --steps 20 --hidden 8 "
        "--batch-size 4 --random-steps 10 --checkpoint-every 1 --quiet --out exorl"
    ),
    ("exorl",),
    ("exorl/walker/rnd/buffer/episode_000002*.npz",),
    ("exorl", "exorl/**/*"),
)


def ogbench(samples: Path) -> Iterator[Case]:
    """OGBench data: npz files, and the sidecar of data that was made here."""
    for part in ("", "-val"):
        file = f"ogbench/{DATA}{part}.npz"
        for name, change in files.befallen(130, 3, Path(f"ogbench/{DATA}.json")):
            yield Case("ogbench", f"data{part}_{name}", TRAIN, at(file, change), (DATA,))
        for name, words, change in arrays.changes(samples / file):
            yield Case("ogbench", f"data{part}_{name}", TRAIN, at(file, change), (DATA, *words))
    sidecar = f"ogbench/{DATA}.json"
    for name, change in files.befallen(131, 0):
        yield Case("ogbench", f"sidecar_{name}", TRAIN, at(sidecar, change), (DATA,))
        yield Case("ogbench", f"made_again_{name}", GENERATE, at(sidecar, change), (DATA,))
    for call, kind in ((TRAIN, "sidecar"), (GENERATE, "made_again")):
        for name, words, change in texts.changes(samples / sidecar, 2, 132, 1, most=12):
            yield Case("ogbench", f"{kind}_{name}", call, at(sidecar, change), (DATA, *words))
    for name, change in files.befallen(133, 2):
        yield Case(
            "ogbench",
            f"made_again_data_{name}",
            GENERATE,
            at(f"ogbench/{DATA}.npz", change),
            (DATA,),
        )


def exorl(samples: Path) -> Iterator[Case]:
    """ExORL episodes."""
    folder = "exorl/walker/rnd/buffer"
    file = f"{folder}/episode_000001_20.npz"
    words = ("episode_000001_20", "exorl")
    for name, change in files.befallen(140, 3, Path("exorl/walker/rnd/collection.json")):
        accepted = "a buffer says nowhere how many episodes it has" if name == "deleted" else ""
        yield Case("exorl", name, WALK, at(file, change), (*words, "buffer"), accepted)
    for name, more, change in arrays.changes(samples / file, ("observation", "action", "physics", "discount")):
        yield Case("exorl", name, WALK, at(file, change), (*words, *more))
    for name, other in (
        ("longer", "episode_000001_21.npz"),
        ("huge", "episode_000001_99999999999.npz"),
        ("without_number", "episode_x.npz"),
        ("twice", "episode_000000_20.npz.npz"),
    ):
        yield Case(
            "exorl",
            f"name_{name}",
            WALK,
            at(file, partial(_renamed, name=other)),
            (other, "buffer"),
        )
    about = "exorl/walker/rnd/collection.json"
    for name, change in files.befallen(141, 0):
        yield Case("exorl", f"collection_{name}", WALK, at(about, change), ("collection.json",))
    for name, more, change in texts.changes(samples / about, 2, 142, 1, most=15):
        yield Case("exorl", f"collection_{name}", WALK, at(about, change), ("collection.json", *more))
    yield Case("exorl", "no_episodes", WALK, at(folder, shutil.rmtree), ("exorl",))


def _renamed(path: Path, name: str) -> None:
    path.rename(path.parent / name)


def collector(samples: Path) -> Iterator[Case]:
    """What collecting goes on from."""
    file = "exorl/walker/rnd/collector.safetensors"
    words = ("collector.safetensors", "exorl")
    for name, change in files.befallen(150, 6, Path("exorl/walker/rnd/collection.json")):
        yield Case("collector", name, COLLECT, at(file, change), words)
    for name, more, change in tensors.changes(samples / file):
        yield Case("collector", name, COLLECT, at(file, change), (*words, *more))
    about = "exorl/walker/rnd/collection.json"
    for name, change in files.befallen(151, 0):
        yield Case(
            "collector",
            f"collection_{name}",
            COLLECT,
            at(about, change),
            ("collection.json", "exorl", "buffer"),
        )
    for name, more, change in texts.changes(samples / about, 2, 152, 1, most=15):
        yield Case(
            "collector",
            f"collection_{name}",
            COLLECT,
            at(about, change),
            ("collection.json", *more),
        )
    episode = "exorl/walker/rnd/buffer/episode_000001_20.npz"
    for name, change in files.befallen(153, 2):
        yield Case(
            "collector",
            f"episode_{name}",
            COLLECT,
            at(episode, change),
            ("episode_000001", "buffer", "collector."),
        )


def state_resume(samples: Path) -> Iterator[Case]:
    """The state that a state-based run goes on from, and what stands beside its checkpoints."""
    at = f"checkpoints/{STEP['state']}"
    for file in (
        "trainer_state/weights.safetensors",
        "trainer_state/optimizer.safetensors",
        "trainer_state/replay.safetensors",
        "trainer_state/online.safetensors",
        "trainer_state/loop.json",
        "model/model.safetensors",
        "model/config.json",
    ):
        yield from everything(
            "state-based resume",
            RESUME,
            samples,
            f"run/{at}/{file}",
            f"interrupted/state/{at}/{file}",
            160,
            (STEP["state"],),
            None,
            flips=2,
            most=12,
        )
    for file in ("data.json", "evaluations.json", "run.yaml", "metrics.csv"):
        yield from everything(
            "state-based resume",
            RESUME,
            samples,
            f"run/{file}",
            f"interrupted/state/{file}",
            161,
            ("run",),
            None,
            flips=0,
            most=12,
        )
    finished = Call(
        RESUME.tool,
        RESUME.argv,
        ("state.yaml", "ogbench", "runs/state as run"),
        ("-",),
        ("run", "run/**/*"),
        SHORT_EPISODES,
    )
    yield from everything(
        "state-based resume",
        finished,
        samples,
        "run/result.json",
        "runs/state/result.json",
        162,
        ("run",),
        None,
        flips=0,
        most=30,
    )
