"""Names in the demo world: of its logs, images and objects, the same at every run."""

from __future__ import annotations

import datetime
import hashlib
from dataclasses import dataclass

from navsim_bridge.demo_world.config import Location


@dataclass(frozen=True)
class LogName:
    """Identity of one log."""

    folder: str  # trainval or test
    number: int  # within the folder
    seed: int
    location: Location

    @property
    def start(self) -> datetime.datetime:
        day = 8 if self.folder == "trainval" else 24
        base = datetime.datetime(2021, 6, day, 8, 0, 5, tzinfo=datetime.timezone.utc)
        return base + datetime.timedelta(minutes=37 * self.number)

    def name(self, num_frames: int) -> str:
        """In the official pattern: start time, vehicle, first and last second of the excerpt."""
        first = 100 + 173 * self.number % 2000
        last = first + num_frames // 2
        return f"{self.start:%Y.%m.%d.%H.%M.%S}_veh-{self.location.vehicle}_{first:05d}_{last:05d}"

    def token(self, *parts: object) -> str:
        """16 hexadecimal digits that are the same at every run."""
        text = "/".join(str(p) for p in ("dpvla", self.seed, self.folder, self.number, *parts))
        return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def image_path(log: LogName, num_frames: int, camera: str, frame: int) -> str:
    """Path of an image relative to ``sensor_blobs/<folder>``."""
    return f"{log.name(num_frames)}/{camera}/{log.token(camera, frame)}.jpg"
