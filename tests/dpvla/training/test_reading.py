"""Batches that other processes decode: their errors are the source's own, their deaths are told."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from dataclasses import dataclass

import pytest
import torch

from dpvla.batch import DrivingBatch
from dpvla.training import reading
from dpvla.training.reading import batches_ahead


@dataclass(frozen=True)
class Source:
    """Batches of no scene at all, up to row 3."""

    dies: bool

    def batch(self, indices: Sequence[int], decode_on: torch.device | None = None) -> DrivingBatch:
        if indices[0] == 3 and self.dies:
            os.kill(os.getpid(), signal.SIGKILL)
        if indices[0] == 3:
            raise FileNotFoundError(f"1 image is missing, first {indices[0]}.jpg")
        none = torch.zeros(0)
        return DrivingBatch((str(indices[0]),), none, none, none, none, None)


@pytest.mark.parametrize("workers", [0, 2])
def test_what_a_source_raises_is_raised_as_it_is(workers: int) -> None:
    batches = batches_ahead(Source(dies=False), [[row] for row in range(6)], workers, torch.device("cpu"))  # type: ignore[arg-type]
    assert [next(batches).tokens for _ in range(3)] == [("0",), ("1",), ("2",)]
    with pytest.raises(FileNotFoundError, match=r"^1 image is missing, first 3\.jpg$"):
        next(batches)


def test_the_death_of_a_process_is_told_in_one_line() -> None:
    batches = batches_ahead(Source(dies=True), [[row] for row in range(6)], 2, torch.device("cpu"))  # type: ignore[arg-type]
    with pytest.raises(ChildProcessError, match=r"^a process that decodes images has died \(DataLoader worker") as died:
        list(batches)
    assert "\n" not in str(died.value)


@pytest.mark.parametrize(
    "error", [RuntimeError("unable to allocate shared memory"), OSError(24, "Too many open files")]
)
def test_a_batch_that_cannot_be_sent_is_told_and_not_waited_for(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def refuse(_: object) -> bytes:
        raise error

    monkeypatch.setattr(reading.ForkingPickler, "dumps", refuse)
    packed = reading.WholeBatches(Source(dies=False))[[0]]  # type: ignore[arg-type]
    assert isinstance(packed, reading.Failure)
    with pytest.raises(ChildProcessError, match=r"cannot send them \(.*(shared memory|open files)\).*/dev/shm"):
        list(reading._received(iter([packed])))


def test_processes_that_cannot_be_started_say_what_they_need(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def refuse() -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(reading.multiprocessing, "Lock", refuse)
    with pytest.raises(
        ChildProcessError, match=r"cannot be started \(.*Read-only.*/dev/shm.*\(0 processes\) needs none"
    ):
        batches_ahead(Source(dies=False), [[0]], 2, torch.device("cpu"))  # type: ignore[arg-type]
    assert not capfd.readouterr().err
