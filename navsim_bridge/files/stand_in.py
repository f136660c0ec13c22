"""What stands for an object of a class that is not here."""

from __future__ import annotations

from typing import Any


class StandIn:
    """Stands for an object of a class that is not here: keeps what the class was called with, and its attributes.

    A class derived from this one is given for a name, to have its objects read. It is not called: the reader makes
    objects of it without running anything that it defines.
    """

    __slots__ = ("__dict__", "args")
    args: tuple[Any, ...]
