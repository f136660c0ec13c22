"""What stands and moves around the recorded car at one moment, as boxes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from navsim_bridge.demo_world.traffic.drive import Drive
from navsim_bridge.demo_world.traffic.simulation import Snapshot

WALKER_SIZE = (0.7, 0.7, 1.75)  # length, width, height [m]


def object_table(drive: Drive, snapshot: Snapshot) -> tuple[NDArray[np.float64], list[str], list[str]]:
    """All objects but the recorded car: rows (x, y, heading, length, width, height, speed), names, track keys."""
    rows, names, tracks = [], [], []
    for i, v in enumerate(drive.vehicles):
        if i and snapshot.active[i]:
            heading = snapshot.heading[i]
            x, y = snapshot.position[i] + v.rear_to_center * np.array([np.cos(heading), np.sin(heading)])
            rows.append((x, y, heading, v.length, v.width, v.height, snapshot.speed[i]))
            names.append(v.kind)
            tracks.append(f"vehicle {i}")
    for i, o in enumerate(drive.dressing.objects):
        rows.append((o.x, o.y, o.heading, o.length, o.width, o.height, 0.0))
        names.append(o.kind)
        tracks.append(f"object {i}")
    for i, (x, y, heading, speed) in enumerate(snapshot.walkers):
        rows.append((x, y, heading, *WALKER_SIZE, speed))
        names.append("pedestrian")
        tracks.append(f"walker {i}")
    return np.array(rows, float).reshape(-1, 7), names, tracks
