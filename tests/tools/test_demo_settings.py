"""The demo fits a world of any size."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from tools import demo


@pytest.mark.parametrize(("logs", "options"), [
    (136, []),  # the recipe's own 8
    (32, []),
    (31, ["--validation-logs", "7"]),
    (4, ["--validation-logs", "1"]),
    (2, ["--validation-logs", "1"]),
    (1, ["--validation-logs", "0"]),
])  # fmt: skip
def test_a_small_world_holds_out_fewer_logs(monkeypatch: pytest.MonkeyPatch, logs: int, options: list[str]) -> None:
    records = [SimpleNamespace(log_name=f"log {i % logs}") for i in range(3 * logs)]
    monkeypatch.setattr(demo, "load_split", lambda *_: None)
    monkeypatch.setattr(demo, "select_scenes", lambda *_: records)
    assert demo.fewer_validation_logs(demo.DemoConfig()) == options


def test_a_stage_that_fails_says_what_again_would_do(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="when the cause is gone, the same demo command goes on from what is done"):
        demo.launch("cache_metrics.py", "--split", "x", "--out", str(tmp_path), "--data-root", str(tmp_path))
    assert "should hold navsim_logs but does not" in capfd.readouterr().err


@pytest.mark.parametrize("option", ["--pretrain-config", "--dipole-config"])
def test_a_recipe_that_cannot_be_read_is_told_before_the_world_is_made(option: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "twice").write_text("loop: {}\nloop: {}\n")
    for name, why in (("fifo", "is a FIFO"), ("twice", "is not valid YAML"), ("gone", "No such file")):
        wrong = ["--out", str(tmp_path / "out"), "--world.root", str(tmp_path / "world"), option, str(tmp_path / name)]
        with pytest.raises(SystemExit) as ended:
            demo.main(wrong)
        said = str(ended.value.code)
        assert f"{tmp_path / name}" in said and why in said and len(said.splitlines()) == 1
        assert not (tmp_path / "world").exists()


def test_a_recipe_whose_number_is_none_is_told(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("validation_logs: many\n")
    with pytest.raises(ValueError, match="validation_logs: expected a number, found 'many'"):
        demo.fewer_validation_logs(demo.DemoConfig(pretrain_config=str(recipe)))
