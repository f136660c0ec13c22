"""Objects around the ego every 0.1 s from boxes annotated every 0.5 s, by the devkit's rules.

Version 1.1 of the devkit looks at eleven key frames (0 to 5 s), which become 51 frames; version 2 at nine (0 to 4 s),
which become 41. An object is interpolated between the first and the last key frame that show it, across gaps; one
that is shown once stands still in all frames. Size and type are those of the first sighting, and so is the speed that
the score looks at.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from navsim_bridge.files.frames import Annotations
from navsim_bridge.pdm.epdms_scene import EPDMSBatch
from navsim_bridge.pdm.metric_scene import AGENT_TYPES, OBJECT_TYPES
from navsim_bridge.pdm.objects import ObjectBatch
from navsim_bridge.traffic.policy import TrafficPolicy, repeated

STEPS = 5
"""Frames of 0.1 s from one key frame to the next."""
_AGENTS = [OBJECT_TYPES.index(name) for name in AGENT_TYPES]


class LogReplay(TrafficPolicy):
    """Everything is where it was recorded, whatever the ego does; what overlaps the ego at t = 0 is not there."""

    as_recorded: ClassVar[bool] = True

    def simulate(self, scenes: EPDMSBatch, states: Tensor) -> ObjectBatch:
        batch, candidates = scenes.scenes, states.shape[1]
        names = ("object_boxes", "object_mask", "object_track", "track_is_agent", "track_stopped", "track_skipped")
        return ObjectBatch(
            **{name: repeated(getattr(batch, name), candidates) for name in names},
            dead_ends=torch.zeros(len(batch) * candidates, dtype=torch.int64, device=batch.device),
        )


@dataclass(frozen=True)
class Observation:
    """The object fields of a `MetricScene`."""

    frame_offsets: NDArray[np.int64]  # (frame + 1,)
    object_track: NDArray[np.int64]  # (row,)
    object_boxes: NDArray[np.float64]  # (row, 5) center x, y, heading, length, width; global frame
    track_tokens: tuple[str, ...]  # (track,)
    track_types: tuple[str, ...]  # (track,)
    track_first_speed: NDArray[np.float64]  # (track,) [m/s]; 0 for things that are no road users


def observe(annotations: Sequence[Annotations], poses: NDArray[np.float64]) -> Observation:
    """Interpolate the boxes of key frames 0.5 s apart.

    Args:
        annotations: boxes of the key frames.
        poses: (key frame, 3) global rear-axle poses of the key frames, as the devkit reads them back.

    Raises:
        ValueError: another number of poses than of key frames, or a track that a key frame shows twice.
    """
    if poses.shape != (len(annotations), 3):
        raise ValueError(f"expected a pose (3,) for each of {len(annotations)} key frames, found {poses.shape}")
    tracks: dict[str, int] = {}
    rows: list[NDArray[np.int64]] = []  # per key frame: track of each box
    for annotation in annotations:
        by_type = np.argsort(annotation.types, kind="stable")  # the devkit lists objects by type
        for i in by_type:
            tracks.setdefault(annotation.track_tokens[i], len(tracks))
        rows.append(np.array([tracks[token] for token in annotation.track_tokens], dtype=np.int64))
        if len(set(annotation.track_tokens)) < len(rows[-1]):
            raise ValueError(f"key frame {len(rows) - 1} shows one track twice: {_repeated(annotation.track_tokens)}")
    num_tracks, num_keys = len(tracks), len(annotations)
    key_poses = np.zeros((num_keys, num_tracks, 3))
    seen = np.zeros((num_keys, num_tracks), dtype=bool)
    size, speed = np.zeros((num_tracks, 2)), np.zeros(num_tracks)
    types = np.zeros(num_tracks, dtype=np.int64)
    for k in reversed(range(num_keys)):  # backwards, so that the first sighting's size, speed and type stay
        boxes, of = annotations[k].boxes, rows[k]
        key_poses[k, of], seen[k, of] = annotations[k].global_poses(poses[k]), True
        size[of], types[of], speed[of] = boxes[:, 3:5], annotations[k].types, annotations[k].speeds
    speed[~np.isin(types, _AGENTS)] = 0.0
    frames, present = _interpolate(key_poses, seen)

    order = np.argsort(types, kind="stable")
    boxes = np.concatenate([frames, np.broadcast_to(size, (len(frames), num_tracks, 2))], axis=-1)[:, order]
    present = present[:, order]
    tokens = list(tracks)
    return Observation(
        frame_offsets=np.concatenate([[0], np.cumsum(present.sum(axis=1))]).astype(np.int64),
        object_track=np.broadcast_to(np.arange(num_tracks), present.shape)[present],
        object_boxes=boxes[present],
        track_tokens=tuple(tokens[i] for i in order),
        track_types=tuple(OBJECT_TYPES[types[i]] for i in order),
        track_first_speed=speed[order],
    )


def _interpolate(
    key_poses: NDArray[np.float64], seen: NDArray[np.bool_]
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """(frame, track, 3) poses and (frame, track) presence from key poses (key, track, 3) and sightings (key, track)."""
    num_keys = len(seen)
    keys = np.arange(num_keys)[:, None]
    previous = np.maximum.accumulate(np.where(seen, keys, -1), axis=0)  # last sighting up to a key frame
    following = np.minimum.accumulate(np.where(seen, keys, num_keys)[::-1], axis=0)[::-1]  # first from it on
    first, last = following[0], previous[-1]
    track = np.arange(seen.shape[1])[None]
    # Headings are unwrapped over the sightings alone: gaps repeat the value before them.
    filled = key_poses[np.maximum(previous, first), track]
    filled[..., 2] = np.unwrap(filled[..., 2], axis=0)

    frame = np.arange(STEPS * (num_keys - 1) + 1)[:, None]
    before = np.clip(previous[frame[:, 0] // STEPS], first, last)
    after = np.where(before < last, following[np.minimum(before + 1, num_keys - 1), track], before)
    start, end = filled[before, track], filled[after, track]
    span = np.where(after > before, (after - before) * 0.5, 1.0)
    elapsed = np.where(after > before, frame * 0.1 - before * 0.5, 0.0)
    poses = (end - start) / span[..., None] * elapsed[..., None] + start
    once = first == last
    poses[..., 2] = np.where(once, poses[..., 2], np.arctan2(np.sin(poses[..., 2]), np.cos(poses[..., 2])))
    present = once | ((first * STEPS <= frame) & (frame <= last * STEPS))
    return poses, present


def _repeated(tokens: Sequence[str]) -> str:
    return next(token for i, token in enumerate(tokens) if token in tokens[:i])
