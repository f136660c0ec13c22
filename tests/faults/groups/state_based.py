"""What the state-based track reads: recorded data, states to go on from, collectors."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from tests.faults.case import Call, Case
from tests.faults.groups.training import STEP, everything
from tests.faults.mutants import arrays, files, texts
from tests.faults.sample import SHORT_EPISODES

DATA = "pointmaze-medium-navigate-v0"
TRAIN = Call(
    "train_state_based", ("--config", "state.yaml", "--out", "new"), ("state.yaml", "ogbench"),
    ("new/checkpoints/*/**/*.safetensors",), ("new", "new/**/*"), SHORT_EPISODES,
)  # fmt: skip
RESUME = Call(
    "train_state_based", ("--config", "state.yaml", "--out", "run", "--online-steps", "4"),
    ("state.yaml", "ogbench", "interrupted/state as run"), ("run/checkpoints/*/**/*.safetensors", "run/metrics.csv"),
    ("run", "run/**/*"), SHORT_EPISODES,
)  # fmt: skip
GENERATE = Call(
    "make_ogbench_data",
    ("--env", "pointmaze-medium-navigate", "--episodes", "2", "--steps", "40", "--workers", "1", "--quiet", "--out",
     "ogbench"),
    ("ogbench",), ("ogbench/*.npz",), ("ogbench", "ogbench/*"),
)  # fmt: skip
WALK = Call(
    "train_state_based",
    ("--config", "state.yaml", "--env", "walker-walk", "--data", "exorl", "--out", "new"),
    ("state.yaml", "exorl"), ("new/checkpoints/*/**/*.safetensors",),
    ("new", "new/**/*", "exorl/walker/rnd/rewards", "exorl/walker/rnd/rewards/*"),
    "tests.faults.short_episodes:use_for_walker",
)  # fmt: skip
COLLECT = Call(
    "collect_exorl",
    ("--domain", "walker", "--episodes", "3", "--steps", "20", "--hidden", "8", "--batch-size", "4", "--random-steps",
     "10", "--checkpoint-every", "1", "--quiet", "--out", "exorl"),
    ("exorl",), ("exorl/**/*.npz",), ("exorl", "exorl/**/*"),
)  # fmt: skip


def ogbench(samples: Path) -> Iterator[Case]:
    """OGBench data: npz files, and the sidecar of data that was made here."""
    for part in ("", "-val"):
        file = f"ogbench/{DATA}{part}.npz"
        for name, change in files.befallen(130, 3, Path(f"ogbench/{DATA}.json")):
            yield Case("ogbench", f"data{part}_{name}", TRAIN, lambda place, f=file, c=change: c(place / f), (DATA,))  # type: ignore[misc]
        for name, words, change in arrays.changes(samples / file):
            yield Case("ogbench", f"data{part}_{name}", TRAIN, lambda place, f=file, c=change: c(place / f), (DATA, *words))  # type: ignore[misc]
    sidecar = f"ogbench/{DATA}.json"
    for name, change in files.befallen(131, 0):
        yield Case("ogbench", f"sidecar_{name}", TRAIN, lambda place, c=change: c(place / sidecar), (DATA,))  # type: ignore[misc]
        yield Case("ogbench", f"made_again_{name}", GENERATE, lambda place, c=change: c(place / sidecar), (DATA,))  # type: ignore[misc]
    for call, kind in ((TRAIN, "sidecar"), (GENERATE, "made_again")):
        for name, words, change in texts.changes(samples / sidecar, 2, 132, 1, most=12):
            yield Case("ogbench", f"{kind}_{name}", call, lambda place, c=change: c(place / sidecar), (DATA, *words))  # type: ignore[misc]
    for name, change in files.befallen(133, 2):
        yield Case("ogbench", f"made_again_data_{name}", GENERATE, lambda place, c=change: c(place / f"ogbench/{DATA}.npz"), (DATA,))  # type: ignore[misc]


def exorl(samples: Path) -> Iterator[Case]:
    """ExORL episodes."""
    folder = "exorl/walker/rnd/buffer"
    file = f"{folder}/episode_000001_20.npz"
    words = ("episode_000001_20", "exorl")
    for name, change in files.befallen(140, 3, Path("exorl/walker/rnd/collection.json")):
        yield Case("exorl", name, WALK, lambda place, c=change: c(place / file), (*words, "buffer"))  # type: ignore[misc]
    for name, more, change in arrays.changes(samples / file, ("observation", "action", "physics", "discount")):
        yield Case("exorl", name, WALK, lambda place, c=change: c(place / file), (*words, *more))  # type: ignore[misc]
    for name, other in (("longer", "episode_000001_21.npz"), ("huge", "episode_000001_99999999999.npz"),
                        ("without_number", "episode_x.npz"), ("twice", "episode_000000_20.npz.npz")):  # fmt: skip
        yield Case("exorl", f"name_{name}", WALK, lambda place, o=other: (place / file).rename(place / folder / o), (other, "buffer"))  # type: ignore[misc]
    about = "exorl/walker/rnd/collection.json"
    for name, change in files.befallen(141, 0):
        yield Case("exorl", f"collection_{name}", WALK, lambda place, c=change: c(place / about), ("collection.json",))  # type: ignore[misc]
    for name, more, change in texts.changes(samples / about, 2, 142, 1, most=15):
        yield Case("exorl", f"collection_{name}", WALK, lambda place, c=change: c(place / about), ("collection.json", *more))  # type: ignore[misc]
    yield Case("exorl", "no_episodes", WALK, lambda place: [p.unlink() for p in (place / folder).glob("*.npz")], ("exorl",))


def collector(samples: Path) -> Iterator[Case]:
    """What collecting goes on from."""
    file = "exorl/walker/rnd/collector.pt"
    for name, change in files.befallen(150, 6, Path("exorl/walker/rnd/collection.json")):
        yield Case("collector", name, COLLECT, lambda place, c=change: c(place / file), ("collector.pt", "exorl"))  # type: ignore[misc]
    for name, change in _states():
        yield Case("collector", name, COLLECT, lambda place, c=change: c(place / file), ("collector.pt",))  # type: ignore[misc]
    about = "exorl/walker/rnd/collection.json"
    for name, change in files.befallen(151, 0):
        yield Case("collector", f"collection_{name}", COLLECT, lambda place, c=change: c(place / about), ("collection.json", "exorl", "buffer"))  # type: ignore[misc]
    for name, more, change in texts.changes(samples / about, 2, 152, 1, most=15):
        yield Case("collector", f"collection_{name}", COLLECT, lambda place, c=change: c(place / about), ("collection.json", *more))  # type: ignore[misc]
    episode = "exorl/walker/rnd/buffer/episode_000001_20.npz"
    for name, change in files.befallen(153, 2):
        yield Case("collector", f"episode_{name}", COLLECT, lambda place, c=change: c(place / episode), ("episode_000001", "buffer", "collector.pt"))  # type: ignore[misc]


def _states() -> Iterator[tuple[str, files.Change]]:
    """States with other content."""
    import torch

    def changed(change: object) -> files.Change:
        def write(path: Path) -> None:
            content = torch.load(path, weights_only=True)
            assert callable(change)
            torch.save(change(content), path)

        return write

    def each(content: object, on: object) -> object:
        if isinstance(content, dict):
            return {key: each(value, on) for key, value in content.items()}
        if isinstance(content, (list, tuple)):
            return type(content)(each(value, on) for value in content)
        assert callable(on)
        return on(content) if isinstance(content, torch.Tensor) else content

    yield "a_list", changed(lambda content: [content])
    yield "empty", changed(lambda content: {})
    yield "nan", changed(lambda content: each(content, lambda t: t * torch.nan if t.is_floating_point() else t))
    yield "flat", changed(lambda content: each(content, lambda t: t.reshape(-1)))
    yield "float64", changed(lambda content: each(content, lambda t: t.double() if t.is_floating_point() else t))
    yield "texts", changed(lambda content: dict.fromkeys(content, "text"))
    yield "nothings", changed(lambda content: dict.fromkeys(content))

    def without(content: dict[str, object], number: int) -> dict[str, object]:
        key = list(content)[number % len(content)]
        return {k: v for k, v in content.items() if k != key}

    for number in range(4):
        yield f"lacks_{number}", changed(lambda content, n=number: without(content, n))
    yield "episodes_more", changed(lambda c: {k: v + 7 if isinstance(v, int) else v for k, v in c.items()})
    yield "episodes_negative", changed(lambda c: {k: -v if isinstance(v, int) else v for k, v in c.items()})


def state_resume(samples: Path) -> Iterator[Case]:
    """The state that a state-based run goes on from, and what stands beside its checkpoints."""
    at = f"checkpoints/{STEP['state']}"
    for file in ("trainer_state/weights.safetensors", "trainer_state/optimizer.safetensors", "trainer_state/replay.safetensors",
                 "trainer_state/online.safetensors", "trainer_state/loop.json", "model/model.safetensors",
                 "model/config.json"):  # fmt: skip
        yield from everything("state-based resume", RESUME, samples, f"run/{at}/{file}", f"interrupted/state/{at}/{file}", 160,
                           (STEP["state"],), None, flips=2, most=12)  # fmt: skip
    for file in ("data.json", "evaluations.json", "run.yaml", "metrics.csv"):
        yield from everything("state-based resume", RESUME, samples, f"run/{file}", f"interrupted/state/{file}", 161, ("run",), None,
                           flips=0, most=12)  # fmt: skip
    finished = Call(RESUME.tool, RESUME.argv, ("state.yaml", "ogbench", "runs/state as run"), ("run/result.json", "-"),
                    ("run", "run/**/*"), SHORT_EPISODES)  # fmt: skip
    yield from everything("state-based resume", finished, samples, "run/result.json", "runs/state/result.json", 162, ("run",), None,
                       flips=0, most=30)  # fmt: skip

