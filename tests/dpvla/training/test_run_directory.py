"""A run's directory: what may change when a run goes on, what is refused, and that nothing is written too early."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import yaml
from accelerate import Accelerator

from dpvla.config import ConfigError
from dpvla.files import DirectoryInUseError
from dpvla.training import run_directory
from dpvla.training.checkpoint import writing
from dpvla.training.config import ImitationConfig, LoopConfig
from dpvla.training.run_directory import TrainedOn, open_run, read_run, read_trained_on
from tests.written_runs import write_run

LEARNED = TrainedOn("imitation", "navtrain", 6, ("log1",))


@dataclass(frozen=True)
class Config:
    """Stands in for a tool's."""

    out: str = "runs/x"
    data_root: str | None = None
    split: str = "navtrain"
    imitation: ImitationConfig = field(default_factory=ImitationConfig)
    loop: LoopConfig = field(default_factory=LoopConfig)


@pytest.fixture(scope="module")
def accelerator() -> Accelerator:
    return Accelerator(cpu=True)


def begin(
    out: Path, accelerator: Accelerator, config: Config, steps: int = 9, at: int | None = None, restart: bool = False,
    **data: Any,
) -> dict[str, Any]:  # fmt: skip
    """Start or go on; then a checkpoint after ``at`` updates, as training leaves one. Returns run.yaml."""
    with open_run(out, config, restart, accelerator) as run:
        run.begin(0, [LEARNED], steps, data or None)
        if at is not None:
            checkpoint = out / "checkpoints" / f"step_{at:08d}"
            checkpoint.mkdir(parents=True)
            run.describe(checkpoint)
    return read_run(out)


def with_loop(**values: Any) -> Config:
    return Config(loop=replace(LoopConfig(), **values))


def test_a_run_goes_on_with_other_bookkeeping_and_keeps_no_note_of_it(tmp_path: Path, accelerator: Accelerator) -> None:
    begin(tmp_path / "run", accelerator, Config(), at=3)
    free = replace(
        with_loop(log_every=1, save_every=2, evaluate_every=7, keep_checkpoints=9, trackers=()),
        out="elsewhere", data_root="/moved",
    )  # fmt: skip
    content = begin(tmp_path / "run", accelerator, free)
    assert content["resumed"][0]["changed"] == {} and content["resumed"][0]["step"] == 3
    assert content["config"]["loop"]["log_every"] == 1


@dataclass(frozen=True)
class Learner:
    """Has a key that it did not have before."""

    FORMERLY: ClassVar[dict[str, float]] = {"floor": 1e-6}

    beta: float = 1.0
    floor: float = 0.01


@dataclass(frozen=True)
class WithLearner(Config):
    """A tool's config of today."""

    learner: Learner = field(default_factory=Learner)


def test_a_run_of_an_earlier_version_keeps_what_was_no_option_then(
    tmp_path: Path, accelerator: Accelerator, capsys: pytest.CaptureFixture[str]
) -> None:
    today = WithLearner()
    assert begin(tmp_path / "new", accelerator, today, at=3)["config"]["learner"]["floor"] == 0.01
    assert begin(tmp_path / "new", accelerator, today)["config"]["learner"]["floor"] == 0.01
    begin(tmp_path / "old", accelerator, today, at=3)
    for file in (tmp_path / "old").rglob("run.yaml"):
        file.write_text(file.read_text().replace("    floor: 0.01\n", ""))
    assert not capsys.readouterr().out
    for _ in range(2):  # the second time the file says it
        assert begin(tmp_path / "old", accelerator, today)["config"]["learner"]["floor"] == 1e-6
        assert "learner.floor stays 1e-06, as an earlier version began this run" in capsys.readouterr().out
    with open_run(tmp_path / "old", today, False, accelerator) as run:
        assert run.config == replace(today, learner=Learner(floor=1e-6))
    with pytest.raises(ConfigError, match=r"learner\.floor = 1e-06, this one has 0\.5, which a run cannot change"):
        begin(tmp_path / "old", accelerator, replace(today, learner=Learner(floor=0.5)))
    with pytest.raises(ConfigError, match=r"learner\.floor = 0\.01, this one has 1e-06"):
        begin(tmp_path / "new", accelerator, replace(today, learner=Learner(floor=1e-6)))


def test_a_smaller_rate_and_more_epochs_are_taken_and_noted(
    tmp_path: Path, accelerator: Accelerator, capsys: pytest.CaptureFixture[str]
) -> None:
    begin(tmp_path / "run", accelerator, Config(), at=3)
    longer = Config(imitation=ImitationConfig(epochs=200), loop=LoopConfig(lr=1e-6, lr_schedule="cosine"))
    content = begin(tmp_path / "run", accelerator, longer, steps=20, at=12)
    assert content["resumed"][-1]["changed"] == {
        "imitation.epochs": [100, 200], "loop.lr": [1e-4, 1e-6], "loop.lr_schedule": ["constant", "cosine"],
    }  # fmt: skip
    assert "from update 4 on" in (said := capsys.readouterr().out) and "schedule of all 20 updates" in said
    again = begin(tmp_path / "run", accelerator, replace(longer, loop=replace(longer.loop, lr=1e-7)), steps=20)
    assert [entry["step"] for entry in again["resumed"]] == [3, 12]
    assert again["resumed"][-1]["changed"] == {"loop.lr": [1e-6, 1e-7]}
    back = begin(tmp_path / "run", accelerator, longer, steps=20)  # nothing was trained in between
    assert [entry["changed"] for entry in back["resumed"]][-1] == {}


@pytest.mark.parametrize(
    "other, key",
    [
        (Config(split="navtest"), "split = 'navtrain', this one has 'navtest'"),
        (Config(imitation=ImitationConfig(batch_size=4)), "imitation.batch_size = 16"),
        (with_loop(seed=5), "loop.seed = 0, this one has 5"),
        (with_loop(ema_decay=0.5), "loop.ema_decay"),
    ],
)
def test_what_would_make_it_another_run_is_refused_with_the_way_out(
    tmp_path: Path, accelerator: Accelerator, other: Config, key: str
) -> None:
    begin(tmp_path / "run", accelerator, Config(), at=3)
    before = (tmp_path / "run/run.yaml").read_bytes()
    with pytest.raises(ConfigError, match=f"{key}.*--out.*--restart"):
        begin(tmp_path / "run", accelerator, other)
    assert (tmp_path / "run/run.yaml").read_bytes() == before


def test_a_start_that_failed_does_not_block_the_corrected_command(tmp_path: Path, accelerator: Accelerator) -> None:
    with open_run(tmp_path / "run", Config(), False, accelerator):
        pass  # something was wrong before the run began
    assert not (tmp_path / "run/run.yaml").exists()
    begin(tmp_path / "run", accelerator, Config())  # began, and ended before its first checkpoint
    (tmp_path / "run/metrics.csv").write_text("step\n0\n")
    (tmp_path / "run/notes.txt").write_text("mine")
    begin(tmp_path / "run", accelerator, Config(split="navtest"))
    assert not (tmp_path / "run/metrics.csv").exists() and (tmp_path / "run/notes.txt").read_text() == "mine"
    assert read_run(tmp_path / "run")["config"]["split"] == "navtest"


def test_a_kill_while_the_first_description_is_written_leaves_a_usable_folder(
    tmp_path: Path, accelerator: Accelerator
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run/.run.yaml.k2l3").write_text("half of it")
    begin(tmp_path / "run", accelerator, Config())
    assert not list((tmp_path / "run").glob(".run.yaml.*"))


def test_a_folder_of_something_else_is_refused_and_left_alone(tmp_path: Path, accelerator: Accelerator) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    for restart in (False, True):
        with pytest.raises(ConfigError, match=r"thesis\.tex and no run"):
            begin(tmp_path, accelerator, Config(), restart=restart)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_checkpoints_of_somebody_else_are_not_taken_for_leftovers(tmp_path: Path, accelerator: Accelerator) -> None:
    (tmp_path / "run/checkpoints").mkdir(parents=True)
    (tmp_path / "run/checkpoints/mine.pt").write_text("years of work")
    with pytest.raises(ConfigError, match="holds checkpoints and no run"):
        begin(tmp_path / "run", accelerator, Config())
    assert (tmp_path / "run/checkpoints/mine.pt").exists()


@pytest.mark.parametrize("restart", [False, True])
def test_a_checkpoint_is_no_place_for_a_run(tmp_path: Path, accelerator: Accelerator, restart: bool) -> None:
    begin(tmp_path / "run", accelerator, Config(), at=3)
    inside = tmp_path / "run/checkpoints/step_00000003"
    (inside / "model").mkdir()
    before = (inside / "run.yaml").read_bytes()
    with pytest.raises(ConfigError, match=r"is a checkpoint \(it holds model\)"):
        begin(inside, accelerator, Config(), restart=restart)
    assert (inside / "run.yaml").read_bytes() == before


def test_a_copy_beside_the_checkpoints_is_none_of_them(tmp_path: Path, accelerator: Accelerator) -> None:
    begin(tmp_path / "run", accelerator, Config(), at=3)
    (tmp_path / "run/checkpoints/step_00000003.good").mkdir()
    (tmp_path / "run/checkpoints/step_00000009").write_text("a file")
    with open_run(tmp_path / "run", Config(), False, accelerator) as run:
        assert run.step == 3
    with writing(tmp_path / "run", 6, 1, accelerator):
        pass
    names = sorted(path.name for path in (tmp_path / "run/checkpoints").iterdir())
    assert names == ["step_00000003.good", "step_00000006", "step_00000009"]


def test_a_finished_run_claims_no_change(
    tmp_path: Path, accelerator: Accelerator, capsys: pytest.CaptureFixture[str]
) -> None:
    begin(tmp_path / "run", accelerator, Config(), steps=3, at=3)
    content = begin(tmp_path / "run", accelerator, with_loop(lr=1e-6), steps=3)
    assert "all 3 updates are made, so loop.lr changes nothing" in capsys.readouterr().out
    assert content["config"]["loop"]["lr"] == 1e-4 and not content.get("resumed")


def test_the_run_of_another_tool_is_called_that(tmp_path: Path, accelerator: Accelerator) -> None:
    begin(tmp_path / "run", accelerator, Config(), at=3)
    with (
        pytest.raises(ConfigError, match="another tool or version"),
        open_run(tmp_path / "run", LoopConfig(), False, accelerator),
    ):
        pass


def test_restart_discards_the_old_run_when_the_new_one_begins_and_not_before(
    tmp_path: Path, accelerator: Accelerator
) -> None:
    begin(tmp_path / "run", accelerator, Config(), at=3)
    with open_run(tmp_path / "run", Config(split="navtest"), True, accelerator) as run:
        assert run.last is None and (tmp_path / "run/checkpoints/step_00000003").is_dir()
        run.begin(0, [LEARNED], 9)
    assert not (tmp_path / "run/checkpoints").exists()


class Cut(BaseException):
    """Stands in for a kill."""


def test_a_restart_that_is_cut_off_discards_all_or_nothing(
    tmp_path: Path, accelerator: Accelerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends = set()
    for cut in count(1):
        run, calls = tmp_path / str(cut), [0]
        begin(run, accelerator, Config(), at=3)
        (run / "notes.txt").write_text("mine")
        before = sorted(path.relative_to(run) for path in run.rglob("*"))

        def counted(
            real: Callable[..., Any], *given: Any, calls: list[int] = calls, cut: int = cut, **named: Any
        ) -> Any:
            calls[0] += 1
            if calls[0] >= cut:  # nor does anything that would clear up work any more
                raise Cut
            return real(*given, **named)

        with monkeypatch.context() as patched:
            for name in ("rename", "replace", "mkdir", "rmdir", "unlink"):
                patched.setattr(os, name, partial(counted, getattr(os, name)))
            try:
                begin(run, accelerator, Config(split="navtest"), restart=True)
            except Cut:
                pass
            else:
                break  # there are no further calls
        ends.add(is_new(run))
        with open_run(run, Config(split="navtest" if is_new(run) else "navtrain"), False, accelerator) as opened:
            assert opened.step == (0 if is_new(run) else 3)
            assert not (run / ".discarded").exists()
            if not is_new(run):
                assert sorted(path.relative_to(run) for path in run.rglob("*") if path.name != ".lock") == before
    assert ends == {False, True} and cut > 5


def is_new(run: Path) -> bool:
    """Whether run.yaml, wherever it is, is the one after the restart."""
    return (run / "run.yaml").exists() and read_run(run)["config"]["split"] == "navtest"


def test_a_restart_without_room_for_its_description_keeps_the_old_run(
    tmp_path: Path, accelerator: Accelerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin(tmp_path / "run", accelerator, Config(), at=3)
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        with pytest.raises(OSError, match="No space left"):
            begin(tmp_path / "run", accelerator, Config(split="navtest"), restart=True)
    assert (tmp_path / "run/checkpoints/step_00000003").is_dir()
    begin(tmp_path / "run", accelerator, Config())


def test_a_second_start_cut_off_while_it_clears_leaves_a_usable_folder(
    tmp_path: Path, accelerator: Accelerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin(tmp_path / "run", accelerator, Config())
    for name in ("metrics.csv", "notes.txt"):
        (tmp_path / "run" / name).write_text("step\n")
    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(Cut))
        with pytest.raises(Cut):
            begin(tmp_path / "run", accelerator, Config())
    begin(tmp_path / "run", accelerator, Config())
    assert (tmp_path / "run/notes.txt").exists()


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({"trained_on": None}, "trained_on: expected a list, found None"),
        ({"trained_on": [{"stage": "imitation"}]}, r"trained_on\[0\]\.split: is missing"),
        (
            {"trained_on": [{"stage": "a", "split": "b", "scenes": -1, "logs": []}]},
            r"trained_on\[0\]\.scenes: expected",
        ),
        ({"resumed": 3}, "resumed: expected a list or null"),
        ({"data": {"fingerprint": 3}}, r"data\.fingerprint: expected"),
        ({"start": {"weights_sha256": []}}, r"start\.weights_sha256: expected a text"),
        ({"config": "x"}, "config: expected a mapping"),
    ],
)
def test_a_description_is_checked_key_by_key(
    tmp_path: Path, accelerator: Accelerator, change: dict[str, Any], found: str
) -> None:
    begin(tmp_path / "run", accelerator, Config(), at=3)
    path = tmp_path / "run/run.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | change))
    with pytest.raises(ValueError, match=f"{path}: {found}"):
        begin(tmp_path / "run", accelerator, Config())


def test_other_data_under_a_run_is_refused_and_moved_data_is_not(tmp_path: Path, accelerator: Accelerator) -> None:
    begin(tmp_path / "run", accelerator, Config(), at=3, fingerprint="a", scenes=6)
    begin(tmp_path / "run", accelerator, replace(Config(), data_root="/moved"), fingerprint="a", scenes=6)
    with pytest.raises(ConfigError, match=r"other data \(scenes was 6, is 5\)"):
        begin(tmp_path / "run", accelerator, Config(), fingerprint="b", scenes=5)
    with pytest.raises(ConfigError, match="same names with other content"):
        begin(tmp_path / "run", accelerator, Config(), fingerprint="c", scenes=6)


def test_updates_that_are_made_cannot_be_asked_away(tmp_path: Path, accelerator: Accelerator) -> None:
    begin(tmp_path / "run", accelerator, Config(), at=6)
    with pytest.raises(ConfigError, match="has made 6 updates, more than the 3"):
        begin(tmp_path / "run", accelerator, Config(imitation=ImitationConfig(epochs=1)), steps=3)
    assert read_run(tmp_path / "run")["config"]["imitation"]["epochs"] == 100


def test_what_the_weights_saw_first_stays_true_when_a_run_goes_on(tmp_path: Path, accelerator: Accelerator) -> None:
    begin(tmp_path / "run", accelerator, Config(), at=3)
    with open_run(tmp_path / "run", Config(), False, accelerator) as run:
        run.begin(0, [], 9)
    assert read_trained_on(tmp_path / "run") == [LEARNED]


def test_a_run_of_the_first_version_goes_on(tmp_path: Path, accelerator: Accelerator) -> None:
    write_run(tmp_path / "run", Config(), 0, [LEARNED])
    content = yaml.safe_load((tmp_path / "run/run.yaml").read_text())
    del content["config"]["loop"]["stop_after_step"]  # an option that it did not have
    for stage in content["trained_on"]:
        del stage["weights"], stage["of"]
    (tmp_path / "run/run.yaml").write_text(yaml.safe_dump(content))
    (tmp_path / "run/checkpoints/step_00000003").mkdir(parents=True)
    begin(tmp_path / "run", accelerator, Config(), fingerprint="new here")
    assert read_trained_on(tmp_path / "run") == [LEARNED]


def test_dipole_stages_of_the_first_version_moved_adapters(tmp_path: Path) -> None:
    write_run(tmp_path, Config(), 0, [LEARNED, TrainedOn("dipole", "navtest", 2, ())])
    content = yaml.safe_load((tmp_path / "run.yaml").read_text())
    for stage in content["trained_on"]:
        del stage["weights"], stage["of"]
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(content))
    assert [stage.weights for stage in read_trained_on(tmp_path)] == ["model", "adapters"]


HOLD = (
    "import sys; from dpvla.files import one_writer\nwith one_writer(sys.argv[1]): print('held', flush=True); input()"
)


def test_a_second_process_does_not_train_in_the_same_folder(tmp_path: Path, accelerator: Accelerator) -> None:
    other = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path / "run")], stdin=subprocess.PIPE,
                             stdout=subprocess.PIPE, text=True)  # fmt: skip
    assert other.stdout is not None and other.stdout.readline() == "held\n"
    with pytest.raises(DirectoryInUseError, match=f"written by process {other.pid}"):
        begin(tmp_path / "run", accelerator, Config())
    other.communicate("\n")
    begin(tmp_path / "run", accelerator, Config())


def test_processes_that_see_different_checkpoints_do_not_go_on_from_them(
    tmp_path: Path, accelerator: Accelerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Machines that do not share the folder: each would learn from a step of its own, and nothing would say so."""
    begin(tmp_path / "run", accelerator, Config(), at=3)
    two: Any = SimpleNamespace(num_processes=2, is_main_process=True)
    monkeypatch.setattr(run_directory, "broadcast_object_list", lambda objects: objects)
    monkeypatch.setattr(run_directory, "gather_object", lambda objects: [*objects, "no checkpoint"])
    with (
        pytest.raises(
            ConfigError, match=r"process 0 finds step_00000003 there, process 1 no checkpoint: .* must share"
        ),
        open_run(tmp_path / "run", Config(), False, two),
    ):
        pass
    monkeypatch.setattr(run_directory, "gather_object", lambda objects: objects * 2)
    with open_run(tmp_path / "run", Config(), False, two) as run:
        assert run.step == 3


@pytest.mark.parametrize("name", ["checkpoints", "tracking", "run.yaml", "metrics.csv"])
def test_what_is_in_the_way_of_a_run_is_named_before_its_first_update(
    tmp_path: Path, accelerator: Accelerator, name: str
) -> None:
    (tmp_path / "run").mkdir()
    in_the_way = tmp_path / "run" / name
    in_the_way.mkdir() if Path(name).suffix else in_the_way.write_text("")
    with (
        pytest.raises(OSError, match=f"{name} is a (file|folder)"),
        open_run(tmp_path / "run", Config(), False, accelerator),
    ):
        pass
