"""Names in the demo world: of its logs, images and objects, the same at every run."""

from __future__ import annotations

import datetime
import hashlib
from dataclasses import dataclass
from typing import NamedTuple

from navsim_bridge.demo_world.config import Location


class Part(NamedTuple):
    """Logs that belong to one split and its unfiltered one."""

    split: str
    folder: str  # below navsim_logs/
    begins: datetime.datetime  # of its first log


def _at(day: int, second: int) -> datetime.datetime:
    return datetime.datetime(2021, 6, day, 8, 0, second, tzinfo=datetime.timezone.utc)


PARTS = {
    "trainval": Part("navtrain", "trainval", _at(8, 5)),
    "test": Part("navtest", "test", _at(24, 5)),
    "validation": Part("navval", "trainval", _at(16, 35)),  # another second: never the name of a training log
}
"""In the order of their numbers in what seeds the simulation: a new one goes last."""


@dataclass(frozen=True)
class LogName:
    """Identity of one log."""

    part: str  # of PARTS
    number: int  # within the part
    seed: int
    location: Location

    @property
    def folder(self) -> str:
        """Below ``navsim_logs/``."""
        return PARTS[self.part].folder

    @property
    def start(self) -> datetime.datetime:
        return PARTS[self.part].begins + datetime.timedelta(minutes=37 * self.number)

    def name(self, num_frames: int) -> str:
        """In the official pattern: start time, vehicle, first and last second of the excerpt."""
        first = 100 + 173 * self.number % 2000
        last = first + num_frames // 2
        return f"{self.start:%Y.%m.%d.%H.%M.%S}_veh-{self.location.vehicle}_{first:05d}_{last:05d}"

    def token(self, *parts: object) -> str:
        """16 hexadecimal digits that are the same at every run."""
        text = "/".join(str(p) for p in ("dpvla", self.seed, self.part, self.number, *parts))
        return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def image_path(log: LogName, num_frames: int, camera: str, frame: int) -> str:
    """Path of an image relative to ``sensor_blobs/<folder>``."""
    return f"{log.name(num_frames)}/{camera}/{log.token(camera, frame)}.jpg"
