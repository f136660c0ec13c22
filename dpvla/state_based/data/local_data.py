"""What marks data that was made here, and keeps data of different makings apart."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

ORIGIN = "locally generated"


class OtherDataError(ValueError):
    """The folder holds data that this run would have to overwrite or mix with."""


def refuse_other(identity: Mapping[str, Any], found: Mapping[str, Any], where: Path) -> None:
    """Raise OtherDataError naming the first setting in which the data that ``where`` describes is not ``identity``."""
    for key, mine in identity.items():
        if found.get(key) != mine:
            raise OtherDataError(
                f"{where} belongs to data with {key} {found.get(key)!r}, this run has {mine!r}: choose another --out "
                "or delete that data"
            )
