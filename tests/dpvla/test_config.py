"""Configs: YAML below the command line, every key checked."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
import yaml

from dpvla.cli import command, parse, refuse_given, reporting_errors
from dpvla.config import ConfigError, Count, NotNegative, Range, Share, Whole, check, from_dict, read_yaml, to_dict
from tests.paths import ROOT


@dataclass(frozen=True)
class Optimizer:
    """An inner group."""

    lr: Annotated[float, Range(above=0)] = 1e-3  # learning rate
    betas: tuple[float, float] = (0.9, 0.99)  # decay rates
    options: dict[str, Any] = field(default_factory=dict)  # free-form


@dataclass(frozen=True)
class Settings:
    """A config."""

    split: str = "navtrain"  # which split
    names: tuple[str, ...] = ()  # some names
    root: Path | None = None  # a folder
    fast: bool = False  # a switch
    size: Count = 4  # how many
    share: Share | None = None  # how much of it
    precision: Literal["no", "bf16"] = "no"  # of numbers
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
    (tmp_path / "b.yaml").write_text(yaml.safe_dump(to_dict(config)))
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


WRONG = [
    ("size", 0, "size must be at least 1, found 0"),
    ("size", -3, "size must be at least 1"),
    ("size", 2.5, "size must be a whole number"),
    ("size", True, "size must be a whole number"),
    ("size", "many", "size must be a whole number, found 'many'"),
    ("share", 1.5, "share must be at least 0 and at most 1"),
    ("fast", "yes", "fast must be true or false"),
    ("split", 7, "split must be a text"),
    ("split", None, "split must be a text"),
    ("split", "--restart", "split must be a text that does not look like an option"),
    ("names", "abc", "names must be a list"),
    ("names", ["a", "--restart"], "names must be a text that does not look like an option"),
    ("precision", "fp16", "precision must be one of no, bf16"),
    ("optimizer", {"lr": float("nan")}, r"optimizer\.lr must be a finite number"),
    ("optimizer", {"lr": 0}, r"optimizer\.lr must be above 0"),
    ("optimizer", {"betas": [0.9]}, r"optimizer\.betas must be a list of 2"),
    ("optimizer", {"betas": ["0.9", "--restart"]}, r"optimizer\.betas must be a number"),
    ("size", 10**20, "size must be at most 2147483647"),
    ("share", "", "share must be"),
    ("root", "", "root must be a text that is not empty"),
    ("optimizer", {"options": 3}, r"optimizer\.options must be a group of keys"),
]


@pytest.mark.parametrize("key, value, message", WRONG)
def test_a_value_that_does_not_fit_is_refused_with_its_key(tmp_path: Path, key: str, value: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=r"run\.yaml: " + message):
        from_dict(Settings, {key: value}, "run.yaml")
    (tmp_path / "w.yaml").write_text(yaml.safe_dump({key: value}))
    with pytest.raises(SystemExit) as stop:
        parse(Settings, ["--config", str(tmp_path / "w.yaml")])
    assert stop.value.code == 2


def test_the_command_line_is_checked_as_the_file_is(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["--size", "0"], ["--optimizer.lr", "nan"], ["--share", "2"], ["--split=--restart"]):
        with pytest.raises(SystemExit) as stop:
            parse(Settings, words)
        assert stop.value.code == 2
    assert capsys.readouterr().err.count("error: the command line: ") == 4


def test_a_config_made_in_code_is_checked_when_asked() -> None:
    check(Settings(size=1, share=0.5))
    with pytest.raises(ConfigError, match="size must be at least 1"):
        check(Settings(size=0))


def test_numbers_with_a_bare_exponent_and_a_bare_no_mean_what_they_say(tmp_path: Path) -> None:
    (tmp_path / "n.yaml").write_text("optimizer: {lr: 1e-4}\nprecision: no\nsize: 8\nshare: 1\n")
    config = parse(Settings, ["--config", str(tmp_path / "n.yaml")])
    assert config == Settings(optimizer=Optimizer(lr=1e-4), precision="no", size=8, share=1.0)


def test_a_key_that_stands_twice_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "t.yaml").write_text("size: 2\nsize: 3\n")
    with pytest.raises(SystemExit):
        parse(Settings, ["--config", str(tmp_path / "t.yaml")])
    assert "'size' stands twice" in capsys.readouterr().err


def test_null_is_not_a_text_and_a_later_file_wins(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("size: 2\noptimizer: {lr: 0.5}\nroot: null\n")
    (tmp_path / "b.yaml").write_text("size: 3\n")
    config = parse(Settings, ["--config", str(tmp_path / "a.yaml"), "--config", str(tmp_path / "b.yaml")])
    assert config == Settings(size=3, optimizer=Optimizer(lr=0.5))


@dataclass(frozen=True)
class Outer:
    """A config whose group has defaults of its own."""

    optimizer: Optimizer = field(default_factory=lambda: Optimizer(lr=7.0))  # how to learn


def test_a_group_that_is_given_in_part_keeps_the_rest_of_its_own_defaults(tmp_path: Path) -> None:
    wanted = Outer(Optimizer(lr=7.0, betas=(0.1, 0.2)))
    assert from_dict(Outer, {"optimizer": {"betas": [0.1, 0.2]}}, "x") == wanted
    (tmp_path / "o.yaml").write_text("optimizer: {betas: [0.1, 0.2]}")
    assert parse(Outer, ["--config", str(tmp_path / "o.yaml")]) == wanted


def test_help_shows_the_values_of_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "h.yaml").write_text("split: from_the_file\n")
    with pytest.raises(SystemExit):
        parse(Settings, ["--help"], default_config=tmp_path / "h.yaml")
    assert "from_the_file" in capsys.readouterr().out


class TorchsError(RuntimeError):
    """Stands in for torch.OutOfMemoryError."""


TorchsError.__name__ = "OutOfMemoryError"


@pytest.mark.parametrize(
    "error, text",
    [
        (IsADirectoryError(21, "Is a directory", "runs"), "runs: Is a directory"),
        (NotADirectoryError(20, "Not a directory", "README.md"), "README.md: Not a directory"),
        (PermissionError(13, "Permission denied", "out"), "out: Permission denied"),
        (OSError(28, "No space left on device"), "No space left"),
        (TorchsError("CUDA\nout of memory"), "out of memory (CUDA out of memory); take smaller batches"),
        (ValueError("a\nb"), "error: a b"),
    ],
)
def test_expected_errors_end_a_tool_with_one_line(error: Exception, text: str) -> None:
    def main() -> None:
        raise error

    with pytest.raises(SystemExit) as stop:
        reporting_errors(main)()
    assert str(stop.value.code).startswith("error: ") and text in str(stop.value.code)
    assert "\n" not in str(stop.value.code)


@dataclass(frozen=True)
class Checked:
    """A config with a rule of its own."""

    low: int = 0  # not above high
    high: int = 1  # not below low

    def __post_init__(self) -> None:
        if self.low > self.high:
            raise ValueError(f"low {self.low} is above high {self.high}")


@dataclass(frozen=True)
class Nested:
    """A config whose group has a rule of its own."""

    bounds: Checked = field(default_factory=Checked)  # from where to where


def test_what_a_config_itself_refuses_is_one_line_and_seen_once_all_is_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for config_class, prefix in ((Checked, "--"), (Nested, "--bounds.")):
        with pytest.raises(SystemExit) as stop:
            parse(config_class, [f"{prefix}low", "3"])
        assert stop.value.code == 2
        key = f"{prefix}low".removeprefix("--")
        assert capsys.readouterr().err == f"error: the command line: {key} 3 is above high 1\n"
    (tmp_path / "n.yaml").write_text("bounds: {low: 3}\n")
    assert parse(Nested, ["--config", str(tmp_path / "n.yaml"), "--bounds.high", "4"]) == Nested(Checked(3, 4))


def test_options_without_effect_are_named() -> None:
    refuse_given(Settings(split="navtest"), ["names", "fast", "optimizer"], "--x")
    with pytest.raises(ConfigError, match=r"^--fast belongs to --x$"):
        refuse_given(Settings(fast=True), ["names", "fast"], "--x")
    with pytest.raises(ConfigError, match=r"^--names, --size belong to --x$"):
        refuse_given(Settings(names=("a",), size=5), ["names", "size"], "--x")


def test_a_fault_of_the_program_is_one_line_and_its_traceback_is_shown_on_demand(
    capsys: pytest.CaptureFixture[str],
) -> None:
    @command(Settings, None)
    def main(config: Settings) -> None:
        raise RuntimeError("a bug")

    with pytest.raises(SystemExit, match=r"^error: RuntimeError: a bug: this was not foreseen; .*--debug"):
        main(["--split", "navtest"])
    assert "Traceback" not in capsys.readouterr().err
    with pytest.raises(SystemExit, match=r"^error: RuntimeError: a bug: this was not foreseen$"):
        main(["--split", "navtest", "--debug"])
    assert "Traceback" in capsys.readouterr().err


def test_a_list_given_twice_is_refused_instead_of_keeping_its_last_values(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (
        ["--names", "a", "--names", "b"],
        ["--optimizer.betas", "0.1", "0.2", "--optimizer.betas=0.3", "0.4"],
    ):
        with pytest.raises(SystemExit):
            parse(Settings, words)
        assert "is given twice; give all its values behind one --" in capsys.readouterr().err
    assert parse(Settings, ["--names", "a", "b"]).names == ("a", "b")


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_an_output_that_takes_no_more_is_one_line_and_not_success(unbuffered: str) -> None:
    code = "from dpvla.cli import reporting_errors\n@reporting_errors\ndef main(): print('x')\nmain()\n"
    environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-c", code], stdout=full, stderr=subprocess.PIPE, text=True, cwd=ROOT, env=environment
        )
    assert done.returncode == 1
    assert re.fullmatch(r"error: standard output.*: No space left on device: not everything.*\n", done.stderr)


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("[/a/gloo/transport/tcp/pair.cc:545] Read error: Connection reset by peer", "another process of this run has"),
        ("can't start new thread", r"no further thread can be started; raise .*\(ulimit -u\)"),
    ],
)
def test_what_the_surroundings_refuse_is_no_fault_of_the_program(said: str, told: str) -> None:
    @reporting_errors
    def main(_: object = None) -> None:
        raise RuntimeError(said)

    with pytest.raises(SystemExit, match=f"^error: {told}"):
        main([])


@dataclass(frozen=True)
class Lists:
    """Settings that take several numbers or texts."""

    betas: tuple[float, float] = (0.9, 0.95)
    seeds: tuple[Whole, ...] = (0,)
    omegas: tuple[NotNegative, ...] | None = None
    names: tuple[str, ...] = ()


@pytest.mark.parametrize(("words", "expected"), [
    (["--omegas", "0,0.5,1"], Lists(omegas=(0.0, 0.5, 1.0))),
    (["--omegas=0,0.5", "--seeds", "1", "2"], Lists(omegas=(0.0, 0.5), seeds=(1, 2))),
    (["--betas", "0.1,0.2", "--seeds", "1,2", "3"], Lists(betas=(0.1, 0.2), seeds=(1, 2, 3))),
    (["--names", "a,b", "c"], Lists(names=("a,b", "c"))),
    (["--seeds", "0..3"], Lists(seeds=(0, 1, 2, 3))),
    (["--seeds=5,7..8", "10..10", "--names", "0..2"], Lists(seeds=(5, 7, 8, 10), names=("0..2",))),
    (["--omegas"], Lists(omegas=())),
])  # fmt: skip
def test_numbers_of_a_list_may_be_separated_by_commas(words: list[str], expected: Lists) -> None:
    assert parse(Lists, words) == expected


@pytest.mark.parametrize(("words", "message"), [
    (["--omegas", "0,,1"], r"--omegas.*\['0', '', '1'\]"),
    (["--omegas", "0,-1"], r"omegas must be at least 0 or null, found \(0.0, -1.0\)"),
    (["--omegas", "1", "--omegas", "2"], "--omegas is given twice"),
    (["--betas", "0.1,0.2,0.3"], "betas|0.3"),
    (["--omegas", "1," * 3000], "--omegas"),
    (["--seeds", "3..0"], "--seeds: a range goes up, to at most 1000 numbers; found 3..0"),
    (["--seeds", "0..999999999"], "--seeds: a range goes up"),
    (["--seeds", "0..x"], "--seeds"),
    (["--omegas", "0..2"], "--omegas"),
])  # fmt: skip
def test_lists_that_are_none_are_one_short_line(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        parse(Lists, words)
    said = capsys.readouterr().err
    assert re.search(message, said)
    assert len(said.splitlines()) == 1 and len(said) < 1000


def test_an_interruption_while_the_interpreter_ends_prints_nothing(tmp_path: Path) -> None:
    tool = tmp_path / "tool.py"
    tool.write_text(
        "import atexit, os, signal\n"
        "from dpvla.cli import reporting_errors\n"
        "atexit.register(lambda: (os.kill(os.getpid(), signal.SIGINT), print('cleaned')))\n"
        "reporting_errors(lambda argv=None: print('done'))([])\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    ended = subprocess.run([sys.executable, str(tool)], env=environment, capture_output=True, text=True, timeout=300)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "done\ncleaned\n", "")
