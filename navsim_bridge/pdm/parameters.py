"""Numbers that tensor code and compiled kernels share: of the tracker, the kinematic bicycle and the cells of a map."""

from __future__ import annotations

import math

NUM_STEPS = 40
"""Simulated steps; trajectories have ``NUM_STEPS + 1`` states."""
STEP_SECONDS = 0.1
MOTION_DT = 100000 * 1e-6
"""[s] 0.09999999999999999: the bicycle converts from microseconds."""
HORIZON = 10
"""Tracker look-ahead in steps."""
STOPPED_SPEED = 0.2
"""[m/s] below it the tracker brakes with a proportional controller."""
BRAKING_GAIN = 0.5
SPEED_GAIN = 10.0 / 11.0
HEADING_WEIGHT = 10.0
"""Cost of the final heading error against that of the lateral error and of the steering rate, which are one."""
SMALL_CURVATURE = 1e-10
"""Penalty on the first curvature."""
ACCEL_GAIN = MOTION_DT / (MOTION_DT + 0.2)
STEERING_GAIN = MOTION_DT / (MOTION_DT + 0.05)
"""Of first-order lags: time constants 0.2 s and 0.05 s."""
MAX_STEERING = math.pi / 3
"""[rad]"""

CELL = 1.5
"""[m] side of the square cells that points on a map are gathered in."""
CELL_OFFSET = (0.70710678, 0.57735027)
"""[m] along x and y: keeps the centers of cells off the round coordinates and diagonals on which edges like to lie."""
FARTHEST = 1e7
"""[m] points further out share the outermost cells; no map reaches there."""
CELL_REACH = CELL * 0.5 + 1e-6
"""[m] from a cell's center to what may still lie in it, along an axis."""
