"""Object tracks in few numbers: positions at key frames instead of every 0.1 s, without losing a bit.

Boxes are annotated every 0.5 s and interpolated linearly in between, so most positions follow from those at a track's
sightings. `code` finds the sightings and keeps the tracks for which `positions` gives exactly the same bits back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from navsim_bridge.traffic.log_replay import STEPS

Float = NDArray[np.float64]
Int = NDArray[np.int64]


@dataclass(frozen=True)
class KeyFrames:
    """Which sightings lie around each frame, for a set of masks; bit k of a mask: seen at key frame k."""

    masks: Int  # (mask,) sorted
    before: Int  # (mask, frame) rank among the sightings of the last one up to the frame
    after: Int  # (mask, frame) rank of the one that the frame is interpolated to
    span: Float  # (mask, frame) seconds between the two; 1 where they are the same
    elapsed: Float  # (mask, frame) seconds since the first of the two

    @staticmethod
    def of(masks: NDArray[np.integer], num_frames: int) -> KeyFrames:
        """Tables for the distinct values of ``masks``, over ``num_frames`` frames."""
        distinct = np.unique(masks[masks > 0]).astype(np.int64)
        keys = (num_frames - 1) // STEPS + 1
        seen = (distinct[:, None] >> np.arange(keys)) & 1 > 0
        rank = np.cumsum(seen, axis=1) - 1  # of the last sighting up to a key frame; -1 before the first
        at = np.argsort(~seen, axis=1, kind="stable")  # key frame of a rank
        last = rank[:, -1:]
        frame = np.arange(num_frames)
        before = np.clip(rank[:, frame // STEPS], 0, last)
        after = np.minimum(before + 1, last)
        row = np.arange(len(distinct))[:, None]
        start, end = at[row, before], at[row, after]
        moving = after > before
        return KeyFrames(
            distinct,
            before,
            after,
            span=np.where(moving, (end - start) * 0.5, 1.0),
            elapsed=np.where(moving, frame * 0.1 - start * 0.5, 0.0),
        )


def positions(tables: KeyFrames, key_xy: Float, first_key: Int, mask: Int, frame: Int) -> Float:
    """Positions (row, 2) of rows of coded tracks.

    Args:
        tables: for the masks that occur.
        key_xy: (key, 2) positions at the sightings, track after track.
        first_key: (row,) where the sightings of the row's track begin.
        mask: (row,) the track's sightings.
        frame: (row,) 0.1 s frame.
    """
    flat = np.searchsorted(tables.masks, mask) * tables.before.shape[1] + frame
    start = key_xy[first_key + tables.before.ravel()[flat]]
    end = key_xy[first_key + tables.after.ravel()[flat]]
    # The order of the operations is that of observation.observe, so that every bit agrees.
    return (end - start) / tables.span.ravel()[flat, None] * tables.elapsed.ravel()[flat, None] + start


def code(frame: Int, track: Int, xy: Float, num_tracks: int, num_frames: int) -> tuple[NDArray[np.uint16], Float]:
    """Sightings of every track and the positions there.

    Args:
        frame, track: (row,) of each box.
        xy: (row, 2) its center.

    Returns:
        (track,) masks, 0 for tracks that the interpolation does not give back exactly; (key, 2) positions at the
        sightings of the others, track after track.
    """
    dense, present, once = _dense(frame, track, xy, num_tracks, num_frames)
    keys = present[::STEPS]
    weights = 1 << np.arange(len(keys))
    first, last = keys.argmax(axis=0), len(keys) - 1 - keys[::-1].argmax(axis=0)
    moved = _differ(dense, dense[first * STEPS, np.arange(num_tracks)][None]) & present
    still = ~moved.any(axis=0)
    mask = np.where(still, (1 << first) | (1 << last), weights @ keys)
    mask[still & present.all(axis=0)] = 1  # one sighting stands for all frames
    mask[~once | ~keys.any(axis=0)] = 0
    exact = _gives_back(mask, dense, present)
    for unsolved in np.flatnonzero(~exact & (mask > 0)):
        mask[unsolved] = _sightings(dense[:, unsolved], present[:, unsolved], int(first[unsolved]), int(last[unsolved]))
    mask[~_gives_back(mask, dense, present)] = 0
    key, owner = np.nonzero(((mask[None] >> np.arange(len(keys))[:, None]) & 1).T)[::-1]
    return mask.astype(np.uint16), dense[key * STEPS, owner]


def interpolated_between_key_frames(frame: Int, track: Int, boxes: Float, tolerance: float) -> Float:
    """``boxes`` (row, 5), with positions put on the line between their key frames where they lie within ``tolerance``
    meters of it over a whole track."""
    if len(boxes) == 0:
        return boxes
    num_tracks, num_frames = int(track.max()) + 1, 51
    dense, present, once = _dense(frame, track, boxes[:, :2], num_tracks, num_frames)
    keys = present[::STEPS]
    mask = np.where(once & keys.any(axis=0), (1 << np.arange(len(keys))) @ keys, 0)
    lines, covered = _decoded(mask, dense, num_frames)
    covered &= (present == covered).all(axis=0)
    near = np.abs(np.where(present[..., None], lines - dense, 0.0)).max(axis=(0, 2)) <= tolerance
    snapped = boxes.copy()
    rows = near[track] & covered[frame, track]
    snapped[rows, :2] = lines[frame[rows], track[rows]]
    return snapped


def _dense(
    frame: Int, track: Int, xy: Float, num_tracks: int, num_frames: int
) -> tuple[Float, NDArray[np.bool_], NDArray[np.bool_]]:
    """(frame, track, 2) positions, (frame, track) presence, (track,) at most once in every frame."""
    dense = np.zeros((num_frames, num_tracks, 2))
    dense[frame, track] = xy
    count = np.bincount(frame * num_tracks + track, minlength=num_frames * num_tracks)
    count = count.reshape(num_frames, num_tracks)
    return dense, count > 0, np.asarray((count <= 1).all(axis=0))


def _decoded(mask: Int, dense: Float, num_frames: int) -> tuple[Float, NDArray[np.bool_]]:
    """What `positions` makes of masks (track,) and the positions at their sightings, and which frames it covers."""
    num_tracks = len(mask)
    key, owner = np.nonzero(((mask[None] >> np.arange((num_frames - 1) // STEPS + 1)[:, None]) & 1).T)[::-1]
    counts = np.bincount(owner, minlength=num_tracks)
    lines = np.zeros((num_frames, num_tracks, 2))
    covered = np.zeros((num_frames, num_tracks), dtype=bool)
    coded = np.flatnonzero(mask)
    if len(coded):
        tables = KeyFrames.of(mask, num_frames)
        frame, of = np.repeat(np.arange(num_frames), len(coded)), np.tile(coded, num_frames)
        starts = np.cumsum(counts) - counts
        lines[frame, of] = positions(tables, dense[key * STEPS, owner], starts[of], mask[of], frame)
        ends = np.zeros((2, num_tracks), dtype=np.int64)
        ends[0, owner[::-1]], ends[1, owner] = key[::-1], key
        at = np.arange(num_frames)[:, None]
        covered = (counts == 1) | ((ends[0] * STEPS <= at) & (at <= ends[1] * STEPS))
        covered &= mask > 0
    return lines, covered


def _differ(a: Float, b: Float) -> NDArray[np.bool_]:
    """Whether points (..., 2) differ in any bit."""
    return (np.ascontiguousarray(a).view(np.int64) != np.ascontiguousarray(b).view(np.int64)).any(axis=-1)


def _gives_back(mask: Int, dense: Float, present: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """(track,) whether the mask's interpolation has every frame of the track, bit by bit. Frames it covers beyond
    the track's own do no harm, because a row is asked for by its frame."""
    lines, covered = _decoded(mask, dense, len(dense))
    return np.asarray(~(present & (_differ(lines, dense) | ~covered)).any(axis=0))


def _sightings(xy: Float, present: NDArray[np.bool_], first: int, last: int) -> int:
    """Mask of one track (frame, 2) whose gaps are not known: from each sighting to the farthest next one that fits
    (to nearer ones, a part of a gap may fit by luck and the rest then does not)."""
    mask, start = 1 << first, first
    while start < last:
        for end in range(last, start, -1):
            pair = np.array([(1 << start) | (1 << end)])
            part = slice(start * STEPS, end * STEPS + 1)
            inside = np.zeros_like(present)
            inside[part] = present[part]
            if present[end * STEPS] and _gives_back(pair, xy[:, None], inside[:, None]).all():
                mask, start = mask | 1 << end, end
                break
        else:
            return 0
    return mask


def constant_sizes(track: Int, sizes: Float, num_tracks: int) -> tuple[NDArray[np.bool_], Float]:
    """(track,) whether all rows of a track have one size (row, 2), and (track, 2) that size."""
    size = np.zeros((num_tracks, 2))
    size[track] = sizes
    differs = np.zeros(num_tracks, dtype=bool)
    differs[track[_differ(sizes, size[track])]] = True
    return ~differs, size


def mask_lengths(masks: NDArray[np.integer] | Sequence[int]) -> Int:
    """Sightings per mask."""
    values = np.asarray(masks, dtype=np.int64)
    return ((values[..., None] >> np.arange(16)) & 1).sum(axis=-1)
