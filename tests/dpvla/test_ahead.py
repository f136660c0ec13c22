"""What a thread makes ahead comes in order, errors included, and the thread ends."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import pytest

from dpvla.ahead import ahead


def test_items_are_made_ahead_in_order_and_no_further_than_asked() -> None:
    made: list[int] = []

    def items() -> Iterator[int]:
        for number in range(6):
            made.append(number)
            yield number

    taken = ahead(items(), depth=2)
    assert next(taken) == 0
    _wait_until(lambda: len(made) == 4)  # one taken, two waiting, one in the thread's hands
    time.sleep(0.05)
    assert len(made) == 4 and [*taken] == [1, 2, 3, 4, 5]


def test_an_error_of_an_item_made_ahead_comes_out_in_its_place() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise OSError("the disk")

    taken = ahead(items(), depth=3)
    assert next(taken) == 1
    with pytest.raises(OSError, match="the disk"):
        next(taken)


@pytest.mark.parametrize("take", [1, 5])
def test_the_thread_that_makes_items_ahead_ends_with_them(take: int) -> None:
    before = threading.active_count()
    taken = ahead(iter(range(5)), depth=1)
    assert [next(taken) for _ in range(take)] == [*range(take)] and threading.active_count() <= before + 1
    taken.close()  # type: ignore[attr-defined]
    assert threading.active_count() == before


def _wait_until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not true():
        assert time.monotonic() < end
        time.sleep(0.001)
