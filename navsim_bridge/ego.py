"""The recorded car of nuPlan and NAVSIM, a Pacifica: the ego vehicle of every score, picture and demo drive [m]."""

import math

EGO_LENGTH = 5.176
EGO_WIDTH = 2.297
EGO_HEIGHT = 1.777
WHEEL_BASE = 3.089
REAR_AXLE_TO_CENTER = 2.588 - 1.127  # half the length minus the rear overhang
HALF_EGO = (EGO_LENGTH / 2, EGO_WIDTH / 2)
EGO_RADIUS = math.hypot(*HALF_EGO)
"""From the center to a corner."""
