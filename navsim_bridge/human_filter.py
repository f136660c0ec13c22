"""How EPDMS treats what the recorded driver fails, too."""

from __future__ import annotations

from typing import Literal

HumanFilter = Literal["v2.1.2", "fixed", "off"]
"""How sub-scores that the recorded driver fails are forgiven: as released, as corrected later, or not at all."""
