"""metrics.csv after a resume: no row twice, none lost, and what was summed up to a checkpoint is in the next row."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from accelerate import Accelerator

from dpvla.files import FileError
from dpvla.training.loop import train
from dpvla.training.tracking import MetricsCSV, read_rows
from tests.dpvla.training.test_resume import LOOP, imitation, rows


def test_a_row_averages_all_its_steps_wherever_the_run_was_stopped(tmp_path: Path) -> None:
    accelerator = Accelerator(cpu=True)
    config = replace(LOOP, steps=9, log_every=4, save_every=3)
    for name, stops in (("straight", (0,)), ("broken", (2, 5, 0))):
        for stop in stops:
            out = tmp_path / name
            if stop:
                with pytest.raises(KeyboardInterrupt):
                    train(imitation(accelerator, out), replace(config, stop_after_step=stop), out, accelerator)
            else:
                train(imitation(accelerator, out), config, out, accelerator)
    assert [row["step"] for row in rows(tmp_path / "straight")] == ["4", "8", "9", "9"]  # the last of an evaluation
    assert rows(tmp_path / "broken") == rows(tmp_path / "straight")


def test_rows_after_the_checkpoint_are_dropped_by_their_number(tmp_path: Path) -> None:
    table = MetricsCSV(tmp_path / "metrics.csv", 0)
    table.write(2, {"train/loss": 1.0})
    table.write(2, {"evaluation/success": 0.5})
    assert table.flushed() == 2
    table.write(2, {"online/return": 3.0})  # logged at the checkpoint's step, and made again
    table.write(3, {"train/loss": 2.0})
    again = MetricsCSV(tmp_path / "metrics.csv", 2, 2)
    again.write(2, {"online/return": 3.0})
    columns, found = read_rows(tmp_path / "metrics.csv")
    assert [row["step"] for row in found] == ["2", "2", "2"] and columns[-1] == "online/return"


def test_a_row_that_a_kill_has_cut_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    path.write_bytes(b"step,train/loss\r\n2,0.25\r\n4,0.1")
    MetricsCSV(path, 4, 1).write(5, {"train/loss": 1.0})
    assert [row["step"] for row in read_rows(path)[1]] == ["2", "5"]


@pytest.mark.parametrize("content", [b"\0" * 40, b"", b"step,train/loss\r\n2,0.25\r\n"])
def test_rows_that_were_logged_and_are_gone_are_not_passed_over(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "metrics.csv"
    path.write_bytes(content)
    with pytest.raises(FileError, match=f"{path} has . rows of the 2 that were logged"):
        MetricsCSV(path, 4, 2)


@pytest.mark.parametrize(
    "content",
    [b"\x00\x01\n", b"loss,step\n1,2\n", b"step,a\n1,2,3\n", b"step,a\n1\n", b"step,a\nx,1\n", b"step,a\n1,many\n",
     b"step,a,a\n1,2,3\n", b"step,\xff\n1,2\n", b'step,a\n1,"\n'],
)  # fmt: skip
def test_a_file_that_is_no_such_table_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "metrics.csv"
    path.write_bytes(content)
    with pytest.raises(FileError, match=str(path)):
        MetricsCSV(path, 1, 1)
    assert path.read_bytes() == content
