"""What holds for the options of every tool."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import Any

import pytest
import tyro

from dpvla import cli
from tools import cache_metrics, doctor, evaluate, export_submission, reproduce

TOOLS = sorted(path.stem for path in Path(evaluate.__file__).parent.glob("[a-z]*.py"))
MAZE = "pointmaze-medium-navigate"
TEAM = ["--team-name", "a", "--authors", "b", "--email", "c", "--institution", "d", "--country", "e"]
OUT = {
    "cache_metrics": ["--split", "x", "--out"],
    "collect_exorl": ["--out"],
    "demo": ["--out"],
    "evaluate": ["--agent", "human", "--split", "x", "--out"],
    "export_submission": ["--agent", "stand_still", "--split", "x", *TEAM, "--out"],
    "make_demo_world": ["--root"],
    "make_ogbench_data": ["--env", MAZE, "--out"],
    "pack_images": ["--split", "x", "--out"],
    "pretrain": ["--out"],
    "reproduce": ["--table", "7", "--out"],
    "rl_finetune": ["--out"],
    "train_selector": ["--out"],
    "train_state_based": ["--env", f"{MAZE}-singletask-v0", "--out"],
}  # fmt: skip
"""How each tool is told where to write."""


class _ParsedError(BaseException):
    """Nothing further is wanted of a tool."""


def options_of(name: str, monkeypatch: pytest.MonkeyPatch) -> tuple[type, Any]:
    """The class of a tool's options and their defaults, as tyro is given them."""
    found = []

    def stop(config_class: type, default: Any, **_: Any) -> None:
        found.append((config_class, default))
        raise _ParsedError

    monkeypatch.setattr(cli.tyro, "cli", stop)
    with pytest.raises(_ParsedError):
        importlib.import_module(f"tools.{name}").main([])
    return found[0]


@pytest.mark.parametrize("name", TOOLS)
def test_every_option_has_a_help(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config_class, default = options_of(name, monkeypatch)
    parser = tyro.extras.get_parser(config_class, default=default)
    options = {"/".join(action.option_strings): str(action.help) for action in parser._actions if action.option_strings}
    assert len(options) > 2
    for option, text in options.items():
        if ".options." in option:  # keys of the recipe's own, for a package's function
            continue
        said = re.sub(r"\x1b\[[\d;]*m", "", text).strip()
        assert re.match(r"[^(]", said), f"{option} of tools/{name}.py has no help"


def test_every_tool_that_writes_is_tried_below() -> None:
    assert [*OUT] == [name for name in TOOLS if name not in ("doctor", "serve_policy")]


@pytest.mark.parametrize("name", OUT)
def test_a_place_that_cannot_be_written_to_is_told_before_any_work(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("a file")
    kind = "file" if name == "export_submission" else "folder"
    for out, message in (
        ("file/x", r"error: file/x.*: \S*file is no folder; choose another name"),
        ("", f"error: the {kind} to write has an empty name|out must be a text that is not empty"),
        ("file", "error: file is a file, where a folder is to be written; choose another name"),
    ):
        if (out, kind) != ("file", "file"):
            with pytest.raises(SystemExit) as end:
                importlib.import_module(f"tools.{name}").main([*OUT[name], out])
            assert re.search(message, f"{end.value}\n{capsys.readouterr().err}")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


WRITE = ["--agent", "constant_velocity", "--split", "x"]
IDLE = [
    (evaluate, ["--agent", "human", "--split", "x", "--out", "y", "--omega", "2"], "--omega belongs to --agent dpvla"),
    (evaluate, ["--agent", "human", "--split", "x", "--out", "y", "--omega", "0,2", "--samples", "3"],
     "--omega, --samples belong to --agent dpvla"),
    (evaluate, ["--agent", "human", "--split", "x", "--out", "y", "--seed", "7", "--batch-size", "3"],
     "--seed, --batch-size belong to --agent dpvla"),
    (export_submission, [*WRITE, "--seeds", "4", "5", "--omega", "3"], "--seeds, --omega belong to --agent dpvla"),
    (export_submission, ["--validate", "F", "--checkpoint", "x"], "--checkpoint belongs to writing, not to --validate"),
    (export_submission, ["--validate", "F", "--team-name", "x", "--out", "y"],
     "--out, --team-name belong to writing, not to --validate"),
    (export_submission, ["--validate", "F", "--data-split", "mini"], "--data-split belongs to --split"),
    (export_submission, ["--split", "x"], "--agent dpvla needs --checkpoint"),
    (doctor, ["--data-split", "mini"], "--data-split belongs to --split"),
    (cache_metrics, ["--out", "y", "--merge", "x", "--metric", "epdms"], "--metric belongs to --split"),
    (cache_metrics, ["--out", "y", "--official-cache", "x", "--allow-missing"],
     "--allow-missing belongs to --split and --merge"),
    (reproduce, ["--table", "7", "--online-steps", "5"], "--online-steps belongs to --table 3 and --figure online"),
]  # fmt: skip


@pytest.mark.parametrize(("tool", "options", "message"), IDLE)
def test_an_option_that_would_have_no_effect_is_refused(
    tool: Any, options: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match=f"^error: {message}$"):
        tool.main(options)
    assert not [*tmp_path.iterdir()]


EVALUATE = ["--agent", "dpvla", "--split", "x", "--out", "y"]
REFUSED = [
    ("make_demo_world", ["--cameras", "CAM_X"], "cameras: unknown CAM_X; choose from"),
    ("make_demo_world", ["--image-width", "3"], "image_width must be at least 16, found 3"),
    ("make_demo_world", ["--jpeg-quality", "101"], "jpeg_quality must be at least 1 and at most 100"),
    ("demo", ["--world.cameras", "CAM_X"], "cameras: unknown CAM_X"),
    ("demo", ["--world.log-seconds", "3"], "world.log_seconds must be at least 7"),
    ("evaluate", [*EVALUATE, "--omega"], "omega needs a number, or several: 0,0.5,1,2,4"),
    ("evaluate", [*EVALUATE, "--omega", "1,0.5,1.0"], "omega names 1 twice"),
    ("evaluate", [*EVALUATE, "--omega", "0,-0"], "omega names 0 twice"),
    ("evaluate", [*EVALUATE, "--omega", "1,nan"], "omega must be a finite number"),
    ("evaluate", [*EVALUATE, "--samples", "0"], "samples must be at least 1"),
    ("pretrain", ["--model.diffusion.clip-ratio", "0.5"], "model.diffusion.clip_ratio must be at least 1"),
    ("train_state_based", ["--env", "x", "--loop.steps", "5"], "loop.steps has no effect here; use --steps"),
    ("train_state_based", ["--env", "x", "--seeds", "1", "1"], "seeds must differ"),
    ("make_ogbench_data", ["--env", "nosuch"], "cannot make 'nosuch' here; choose from"),
    ("collect_exorl", ["--domain", "nosuch"], "unknown domain 'nosuch'; choose from"),
    ("reproduce", ["--table", "7", "--seeds", "1", "1"], "seeds must be given and differ"),
]


@pytest.mark.parametrize(("name", "options", "message"), REFUSED)
def test_what_a_config_refuses_is_one_line(
    name: str, options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        importlib.import_module(f"tools.{name}").main(options)
    assert end.value.code == 2
    *before, line = capsys.readouterr().err.strip().split("\n")
    assert line.startswith("error: ")
    assert message in line
    assert not [text for text in before if not text.startswith("no --config given")]
