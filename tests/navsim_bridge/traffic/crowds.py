"""Made-up roads full of vehicles, by chance."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from navsim_bridge.traffic.following import Followers

Float = NDArray[np.float64]


def crowd(rng: np.random.Generator, most: int = 9) -> tuple[Followers, Float]:
    """Followers that meet, queue, stand, cross, leave and come to the end of their lanes, and an ego among them.

    Returns:
        the followers, and the ego's states (41, 5).
    """
    origin = rng.choice([331000.0, 664000.0]) + np.array([0.0, 4.3e6])
    lanes = [_lane(rng) + origin for _ in range(int(rng.integers(1, 4)))]
    count = int(rng.integers(0, most + 1))
    lines, start, progress = [], [], []
    for _ in range(count):
        line = lanes[int(rng.integers(len(lanes)))]
        steps = np.diff(line, axis=0)
        lengths = np.cumsum(np.append(0.0, np.hypot(*steps.T)))
        at = float(rng.uniform(0.0, 1.0) ** rng.choice([0.1, 1.0, 3.0]) * lengths[-1])
        x, y = (np.interp(at, lengths, line[:, axis]) for axis in (0, 1))
        step = steps[min(int(np.searchsorted(lengths, at, side="right")) - 1, len(steps) - 1)]
        size = rng.choice([(4.5, 1.9), (12.0, 2.6), (2.0, 0.8)])
        lines.append(line)
        start.append([x, y, np.arctan2(step[1], step[0]), *size])
        progress.append(at)
    speed = rng.uniform(0.0, 15.0, count) * rng.choice([0.0, 0.02, 0.5, 1.0], count)
    names = tuple(f"{'ego' if rng.random() < 0.05 else 'v'}{i}" for i in range(count))
    limit, boxes = rng.choice([3.0, 10.0, 15.0], count), np.array(start).reshape(-1, 5)
    return Followers(names, boxes, np.array(progress), speed, limit, tuple(lines)), _ego(rng, lanes[0])


def _lane(rng: np.random.Generator) -> Float:
    count = int(rng.choice([2, 3, 12, 60]))
    headings = rng.uniform(-3.2, 3.2) + np.cumsum(rng.normal(0.0, rng.choice([0.0, 0.02, 0.1]), count))
    spacing = rng.choice([0.5, 1.0, 4.0])
    line = np.cumsum(spacing * np.stack([np.cos(headings), np.sin(headings)], axis=1), axis=0)
    if rng.random() < 0.3 and count > 3:  # points that are there twice
        line = np.repeat(line, np.where(rng.random(count) < 0.2, 2, 1), axis=0)
    return line + rng.normal(0.0, 8.0, 2)


def _ego(rng: np.random.Generator, line: Float) -> Float:
    at = line[int(rng.integers(len(line)))] + rng.normal(0.0, 2.0, 2)
    heading, speed = rng.uniform(-3.2, 3.2), rng.choice([0.0, 5.0, 40.0])
    states = np.zeros((41, 5))
    states[:, :2] = at + np.arange(41)[:, None] * 0.1 * speed * np.array([np.cos(heading), np.sin(heading)])
    states[:, 2], states[:, 3] = heading, speed
    return states
