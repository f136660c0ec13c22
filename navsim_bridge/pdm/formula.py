"""What the PDM scores are made of: their sub-scores and what each counts for; ``total`` makes the score of them.

It stands here and not with the metrics, which state it as their columns: the scorer and PDM-Closed lie below them and
total by it as well.
"""

from __future__ import annotations

from dataclasses import dataclass

from dpvla.sub_scores import total as total


@dataclass(frozen=True)
class Column:
    """One number that a metric gives to a plan."""

    name: str  # the devkit's, and that of results and log keys
    label: str  # short: tables, pictures, explanations
    meaning: str  # in a few words: legends
    multiplies: bool = False  # the mean of those with a weight is multiplied by it
    weight: float = 0.0  # in that mean
    optional: bool = False  # hangs on other frames, and is NaN without them: then it has no weight
    unit: str = ""  # of the values, such as "m"; none: a share of one, shown in percent

    def shown(self, value: float) -> str:
        """Label and value as text: 'NC 98.5', 'ADE 0.71 m'."""
        return f"{self.label} {self.number(value)}"

    def number(self, value: float | None) -> str:
        """A value as text: '98.5', '0.71 m'; '-' where there is none."""
        if value is None:
            return "-"
        return f"{value:.2f} {self.unit}" if self.unit else f"{100 * value:.1f}"


_COLLISIONS = Column("no_at_fault_collisions", "NC", "no collision at fault", multiplies=True)
_DRIVABLE_AREA = Column("drivable_area_compliance", "DAC", "stays in the drivable area", multiplies=True)
_PROGRESS = Column("ego_progress", "EP", "progress along the route", weight=5.0)
_TIME_TO_COLLISION = Column("time_to_collision_within_bound", "TTC", "time to collision within bound", weight=5.0)

PDM_SCORE = (
    _COLLISIONS,
    _DRIVABLE_AREA,
    _PROGRESS,
    _TIME_TO_COLLISION,
    Column("comfort", "C", "comfort", weight=2.0),
    Column("driving_direction_compliance", "DDC", "keeps to the driving direction"),
)
"""Sub-scores of NAVSIM v1 in the devkit's order."""

EXTENDED_PDM_SCORE = (
    _COLLISIONS,
    _DRIVABLE_AREA,
    Column("driving_direction_compliance", "DDC", "keeps to the driving direction", multiplies=True),
    Column("traffic_light_compliance", "TLC", "stops at red lights", multiplies=True),
    _PROGRESS,
    _TIME_TO_COLLISION,
    Column("lane_keeping", "LK", "keeps its lane", weight=2.0),
    Column("history_comfort", "HC", "comfort, counting the past", weight=2.0),
    Column("two_frame_extended_comfort", "EC", "moves as planned a frame before", weight=2.0, optional=True),
)
"""Sub-scores of NAVSIM v2 in the devkit's order."""
