"""One of several equal parts of a split's logs, worked on by one of several machines."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

Item = TypeVar("Item")
_FOLDER = re.compile(r"shard-0*([1-9][0-9]{0,8})-of-([1-9][0-9]{0,8})")


@dataclass(frozen=True)
class Shard:
    """Part ``index`` of ``count``, counted from 1."""

    index: int
    count: int

    def __post_init__(self) -> None:
        if not 1 <= self.index <= self.count:
            raise ValueError(f"shard {self.index}/{self.count}: expected K/N with K from 1 to N, such as 3/16")

    @staticmethod
    def parse(text: str) -> Shard:
        """From '3/16'. Raises ValueError when it is something else."""
        match = re.fullmatch(r"\s*([0-9]{1,9})\s*/\s*([0-9]{1,9})\s*", text)
        if not match:
            raise ValueError(f"shard {text[:40]!r}: expected K/N with K from 1 to N, such as 3/16")
        return Shard(int(match[1]), int(match[2]))

    @staticmethod
    def from_environment() -> Shard | None:
        """From what `accelerate launch` and torchrun tell each process; None in a process of its own.

        Raises ValueError when RANK and WORLD_SIZE are not two numbers that fit.
        """
        rank, size = os.environ.get("RANK"), os.environ.get("WORLD_SIZE")
        if rank is None or size is None:
            return None
        if not (re.fullmatch(r"[0-9]{1,9}", rank) and re.fullmatch(r"[0-9]{1,9}", size) and int(rank) < int(size)):
            raise ValueError(f"RANK is {rank[:40]!r} and WORLD_SIZE {size[:40]!r}: expected a number below another")
        return Shard(int(rank) + 1, int(size)) if int(size) > 1 else None

    @staticmethod
    def of_folder(name: str) -> Shard | None:
        """The shard whose `folder` has that name."""
        match = _FOLDER.fullmatch(name)
        return Shard(int(match[1]), int(match[2])) if match and int(match[1]) <= int(match[2]) else None

    @property
    def folder(self) -> str:
        """Name of the folder of its results; names of one count sort by index."""
        width = len(str(self.count))
        return f"shard-{self.index:0{width}}-of-{self.count}"

    def take(self, items: Sequence[Item]) -> list[Item]:
        """Every ``count``-th item: all shards together have each item once, whatever the machine."""
        return list(items[self.index - 1 :: self.count])

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"
