"""Configs: YAML below the command line, every key checked."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from dpvla.config import ConfigError, from_dict, parse, read_yaml, to_dict, to_yaml


@dataclass(frozen=True)
class Optimizer:
    """An inner group."""

    lr: float = 1e-3  # learning rate
    betas: tuple[float, float] = (0.9, 0.99)  # decay rates
    options: dict[str, Any] = field(default_factory=dict)  # free-form


@dataclass(frozen=True)
class Settings:
    """A config."""

    split: str = "navtrain"  # which split
    names: tuple[str, ...] = ()  # some names
    root: Path | None = None  # a folder
    fast: bool = False  # a switch
    optimizer: Optimizer = field(default_factory=Optimizer)  # how to learn


def test_the_command_line_wins_over_the_file_and_the_file_over_the_default(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("split: navtest\nfast: true\noptimizer: {lr: 0.5, betas: [0.1, 0.2], options: {dims: [1, 2]}}\n")
    config = parse(Settings, ["--config", str(file), "--optimizer.lr", "3", "--names", "x", "y"])
    assert config == Settings(
        split="navtest", names=("x", "y"), fast=True, optimizer=Optimizer(3.0, (0.1, 0.2), {"dims": [1, 2]})
    )


def test_yaml_round_trip_gives_the_same_config(tmp_path: Path) -> None:
    config = Settings(names=("a", "b"), root=Path("x/y"), optimizer=Optimizer(options={"k": 3}))
    (tmp_path / "b.yaml").write_text(to_yaml(config))
    assert parse(Settings, ["--config", str(tmp_path / "b.yaml")]) == config


def test_dictionaries_round_trip_without_paths() -> None:
    config = Settings(names=("a",), optimizer=Optimizer(lr=2.0))
    assert from_dict(Settings, to_dict(config), "test") == config


@pytest.mark.parametrize(
    "text, wanted",
    [("splitt: x", "'split'"), ("optimizer: {lrr: 3}", "'optimizer.lr'"), ("optimiser: {lr: 3}", "'optimizer'")],
)
def test_an_unknown_key_is_refused_with_the_nearest_name(tmp_path: Path, text: str, wanted: str) -> None:
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(ConfigError, match="unknown key.*nearest valid name: " + wanted.replace(".", r"\.")):
        read_yaml(Settings, tmp_path / "c.yaml")


def test_an_unknown_option_ends_with_status_2_and_the_nearest_name(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        parse(Settings, ["--optimizer.lrr", "3"])
    assert stop.value.code == 2
    assert "optimizer.lr" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["- a\n- b", "split: [", "optimizer: 3"])
def test_a_file_that_is_not_a_mapping_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "d.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"d\.yaml"):
        read_yaml(Settings, tmp_path / "d.yaml")


def test_help_names_every_option_with_its_comment(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        parse(Settings, ["--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    for part in ("--split", "which split", "--optimizer.lr", "learning rate", "--config FILE"):
        assert part in text
