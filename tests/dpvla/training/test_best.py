"""The best checkpoint of a run is kept and marked, and a fall ends the run: whenever it is stopped and goes on."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from dpvla.tensors import CheckpointError
from dpvla.training.best import FallenError, Judge
from dpvla.training.checkpoint import checkpoints, mark_best, marked_best, place, prune, resolve_checkpoint
from dpvla.training.loop import train
from tests.dpvla.training.test_resume import LOOP, assert_same_files

EVERY, STEPS = 2, 8
CONFIG = replace(LOOP, steps=STEPS, evaluate_every=EVERY, save_every=5, log_every=4, keep_checkpoints=1, ema_decay=0.0)


class Weight(nn.Module):
    """A number that is drawn to one that is drawn by chance."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(3))

    def forward(self, batch: object) -> tuple[Tensor, dict[str, Tensor]]:
        return (self.weight - torch.randn(3)).square().sum(), {}


class Scripted:
    """A stage whose evaluations give numbers that are written down before: by evaluation, the start's first."""

    def __init__(self, scores: Sequence[float]) -> None:
        self.module: nn.Module = Weight()
        self.scores = scores

    def batches(self, first_step: int, track: object, whole_weights: object) -> Iterator[None]:
        while True:
            yield None

    def evaluate(self, step: int) -> Mapping[str, float]:
        torch.rand(3)  # what an evaluation draws is nobody else's
        return {"heldout/score": self.scores[step // EVERY], "heldout/comfort": 0.5}

    def save(self, directory: Path) -> None:
        (directory / "model").mkdir()
        (directory / "model" / "config.json").write_text("{}")

    def restore(self, directory: Path) -> None: ...


def run(scores: Sequence[float], out: Path, stops: Sequence[int] = (), bound: float | None = None) -> str:
    """Train to the end, with stops; what the end says."""
    for stop in [*stops, 0]:
        try:
            train(Scripted(scores), replace(CONFIG, stop_after_step=stop), out, Accelerator(cpu=True),
                  judge=Judge("heldout/score", "scenes", bound))  # fmt: skip
        except KeyboardInterrupt:
            continue
        except FallenError as error:
            return str(error)
    return ""


def rows(out: Path) -> list[tuple[str, str]]:
    with (out / "metrics.csv").open(newline="") as file:
        return [(row["step"], row["heldout/score"]) for row in csv.DictReader(file) if row["heldout/score"]]


scores_ = st.lists(st.sampled_from([0.1, 0.2, 0.3, 0.5, 0.8]), min_size=5, max_size=5)
SLOW = settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@SLOW
@given(scores_, st.lists(st.integers(1, STEPS - 1), max_size=2, unique=True).map(sorted), st.sampled_from([None, 0.25]))
def test_wherever_it_is_stopped_a_run_ends_with_the_same_best_and_the_same_fall(
    tmp_path_factory: pytest.TempPathFactory, scores: list[float], stops: list[int], bound: float | None
) -> None:
    folder = tmp_path_factory.mktemp("best")
    said = [run(scores, folder / name, s, bound) for name, s in (("straight", ()), ("broken", stops))]
    assert said[0].replace("straight", "") == said[1].replace("broken", "")
    after = dict(enumerate(scores))
    made = [n for n in range(1, 5) if bound is None or all(after[m] >= max(scores[:m]) - bound for m in range(1, n))]
    best = max(made, key=lambda n: (after[n], -n)) * EVERY
    for name in ("straight", "broken"):
        assert marked_best(folder / name) == place(folder / name, best)
        assert resolve_checkpoint(folder / name / "best") == place(folder / name, best)
        assert place(folder / name, best) in checkpoints(folder / name)
    assert rows(folder / "straight") == rows(folder / "broken")
    assert [int(step) for step, _ in rows(folder / "straight")] == [0, *(n * EVERY for n in made)]
    assert_same_files(checkpoints(folder / "straight")[-1], checkpoints(folder / "broken")[-1])


def test_judging_changes_nothing_of_what_is_learned(tmp_path: Path) -> None:
    run([0.1, 0.2, 0.3, 0.2, 0.1], tmp_path / "judged")
    plain = Scripted([0.0] * 5)
    train(plain, CONFIG, tmp_path / "plain", Accelerator(cpu=True))
    assert_same_files(checkpoints(tmp_path / "judged")[-1], checkpoints(tmp_path / "plain")[-1])
    assert not (tmp_path / "plain" / "best").exists()


def test_a_fall_is_saved_names_the_best_and_stays_one_until_the_bound_is_another(tmp_path: Path) -> None:
    scores = [0.4, 0.5, 0.6, 0.2, 0.7]
    said = run(scores, tmp_path / "run", bound=0.3)
    assert "heldout/score fell to 0.2000, more than 0.3 below 0.6000 at step 4" in said
    assert f"{tmp_path / 'run' / 'best'} (0.6000, step 4)" in said and "\n" not in said
    assert [path.name for path in checkpoints(tmp_path / "run")] == ["step_00000004", "step_00000006"]
    assert run(scores, tmp_path / "run", bound=0.3) == said
    assert rows(tmp_path / "run")[-1] == ("6", "0.2")
    assert run(scores, tmp_path / "run", bound=0.45) == ""
    assert marked_best(tmp_path / "run") == place(tmp_path / "run", 8)


def test_a_fall_below_the_start_is_told_as_one(tmp_path: Path) -> None:
    said = run([0.9, 0.1, 0.9, 0.9, 0.9], tmp_path, bound=0.5)
    assert "fell to 0.1000, more than 0.5 below 0.9000 before the first update" in said
    assert f"the best checkpoint is {tmp_path / 'best'} (0.1000, step 2)" in said


def test_other_scenes_begin_a_new_judgment(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run([0.1, 0.9, 0.2, 0.3, 0.4], tmp_path, stops=[])
    judge = Judge("heldout/score", "other scenes", 0.1)
    longer = replace(CONFIG, steps=STEPS + 2)
    train(Scripted([0.0] * 5 + [0.3]), longer, tmp_path, Accelerator(cpu=True), judge=judge)
    assert "what is held out was scenes, is other scenes: the best score is found anew" in capsys.readouterr().out
    assert (judge.best, judge.best_step) == (0.3, 10) and marked_best(tmp_path) == place(tmp_path, 10)


def test_a_best_checkpoint_that_is_gone_is_said_and_another_found(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run([0.1, 0.9, 0.2, 0.3, 0.4], tmp_path)
    place(tmp_path, 2).rename(tmp_path / "elsewhere")
    train(Scripted([0.0] * 5 + [0.3]), replace(CONFIG, steps=STEPS + 2), tmp_path, Accelerator(cpu=True),
          judge=Judge("heldout/score", "scenes"))  # fmt: skip
    assert "the best checkpoint, of step 2, is gone: another is found" in capsys.readouterr().out
    assert marked_best(tmp_path) == place(tmp_path, 10)


@pytest.mark.parametrize("keep", [1, 2])
def test_the_best_is_never_pruned_and_a_mark_is_undone_where_it_leads_nowhere(tmp_path: Path, keep: int) -> None:
    for step in (1, 2, 3, 4):
        place(tmp_path, step).mkdir(parents=True)
    mark_best(tmp_path, 1)
    prune(tmp_path, keep, place(tmp_path, 4))
    assert [int(path.name[5:]) for path in checkpoints(tmp_path)] == [1, *range(5 - keep, 5)]
    mark_best(tmp_path, 0)
    assert (tmp_path / "best").is_symlink()
    place(tmp_path, 1).rmdir()
    mark_best(tmp_path, 0)
    assert not (tmp_path / "best").is_symlink()


def test_what_is_no_link_of_the_run_is_neither_followed_nor_replaced(tmp_path: Path) -> None:
    place(tmp_path, 1).mkdir(parents=True)
    link = tmp_path / "best"
    for number, make in enumerate((link.mkdir, lambda: link.symlink_to(tmp_path))):
        make()
        assert marked_best(tmp_path) is None
        with pytest.raises(CheckpointError, match="best is no link to a checkpoint of its run"):
            mark_best(tmp_path, 1)
        assert link.is_dir() and not (tmp_path / ".best").exists()
        link.rename(tmp_path / f"moved{number}")
