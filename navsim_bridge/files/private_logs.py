"""Frames of the private split: sequences of five, in the format of logs, without annotations.

The recorded ones lie in one log, told apart by ``scene_token``; each synthetic one has a file of its own. Poses are
given in a frame of their own for every sequence, and what is kept secret, such as map and route, may be None.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from navsim_bridge.files.frames import Frame
from navsim_bridge.files.logs import Log, log_of, raw_frames

SEQUENCE = 5
"""Frames of a sequence: two scenes of four, one 0.5 s after the other."""


class _PrivateFrame(Frame):
    """A frame of which the server keeps some values."""

    def location(self) -> str:
        return "" if self.raw["map_location"] is None else super().location()

    def route(self) -> tuple[str, ...]:
        return () if self.raw["roadblock_ids"] is None else super().route()


def read_sequences(path: Path | str) -> list[Log]:
    """The sequences of a file; as in the devkit, those of another length than five are left out.

    Raises:
        FileNotFoundError, UnsafePickleError: see `load_plain_pickle`.
        ValueError: naming file, frame and key of the first value that is not as the format says.
    """
    path = Path(path)
    sequences: dict[str, list[Frame]] = {}
    for index, raw in enumerate(raw_frames(path)):
        frame = _PrivateFrame(path, index, raw)
        sequences.setdefault(_of(frame, "scene_token", str), []).append(frame)
    whole = [frames for frames in sequences.values() if len(frames) == SEQUENCE]
    return [log_of(sorted(frames, key=lambda f: _of(f, "frame_idx", int)), path.stem) for frames in whole]


def _of(frame: Frame, key: str, kind: type[Any]) -> Any:
    value = frame.raw.get(key)
    if type(value) is not kind:
        raise frame.error(key, "a text" if kind is str else "a whole number", value)
    return value
