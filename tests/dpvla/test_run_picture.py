"""The picture of a run: the same from the same rows, and of whatever was logged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

from dpvla.report import run_picture
from dpvla.report.run_picture import draw_rows

ROLLED = {"rollout/score": "0.5", "rollout/comfort": "0.9", "rollout/zero_spread_groups": "0.1"}
FULL = ROLLED | {
    "rollout/reward_spread": "0.1", "rollout/reward_best": "0.7", "rollout/from_pretrained_m": "0.3",
    "rollout/other/score": "0.4", "rollout/other/history_comfort": "0.8", "rollout/reversing": "0.2",
    "rollout/reversing_rise": "0.15", "alarm/reversing": "1", "alarm/standing": "0", "rl/ess_positive": "0.7",
    "rl/update_size_positive": "0.01",
}  # fmt: skip


def titles(rows: list[dict[str, str]], path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Of the panels that are drawn, without the time that it takes to make pixels of them."""
    drawn: list[Figure] = []
    monkeypatch.setattr(run_picture, "write_atomically", lambda path, write: None)

    def draw(**options: Any) -> Figure:
        drawn.append(Figure(**options))
        return drawn[-1]

    monkeypatch.setattr(run_picture, "Figure", draw)
    draw_rows(rows, path)
    return [axes.get_title(loc="left") for figure in drawn for axes in figure.axes if axes.axison]


def test_every_panel_is_there_whose_numbers_are_and_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert titles([], tmp_path, monkeypatch) == titles([{"step": "0", "train/loss": "1"}], tmp_path, monkeypatch) == []
    few = titles([{"step": "0", **ROLLED}], tmp_path, monkeypatch)
    assert few[:2] == ["score", "sub-scores of the reward"] and "what alarms look at" not in few
    rows = [{"step": "0", "heldout/score": "0.4"}, {"step": "0", **FULL},
            {"step": "3", "train/loss": "0.1", "train/grad_norm": "2", "rollout/score": ""}]  # fmt: skip
    many = titles(rows, tmp_path, monkeypatch)
    assert {"sub-scores of other", "gradient norm before clipping", "loss", "what alarms look at"} < {*many}
    assert len(many) == 9


def test_the_same_rows_make_the_same_file(tmp_path: Path) -> None:
    rows = [{"step": str(step), **ROLLED, "speed/train_s": str(step)} for step in (0, 4)]
    for name in ("one", "two"):
        draw_rows(rows, tmp_path / name)
        rows[0]["speed/train_s"] = "7"
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
