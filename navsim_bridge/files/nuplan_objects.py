"""nuPlan's objects as they stand in pickles: what stands for them, and checked access to what they hold.

No class of nuPlan is needed: a pickle's objects become holders of what the file says of them (`StandIn`), and `Value`
looks into them, with the place for error texts.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from dpvla.files import short
from navsim_bridge.files.frames import IS_STATIC, OBJECT_NAMES, Annotations
from navsim_bridge.files.stand_in import StandIn

MOST_SIZE = 1e9
"""Of a number, whatever it says: UTM coordinates have up to 1e7 meters."""


def holders(names: dict[str, tuple[str, ...]]) -> dict[tuple[str, str], type[StandIn]]:
    """(module, class) -> what stands for its objects, for module -> classes."""
    return {
        (module, name): type(name, (StandIn,), {"__slots__": ()}) for module, listed in names.items() for name in listed
    }


_STATE = "nuplan.common.actor_state"
NUPLAN = holders(
    {
        f"{_STATE}.agent": ("Agent",),
        f"{_STATE}.oriented_box": ("OrientedBox",),
        f"{_STATE}.scene_object": ("SceneObject", "SceneObjectMetadata"),
        f"{_STATE}.state_representation": ("StateSE2", "StateVector2D", "TimePoint", "TimeDuration"),
        f"{_STATE}.static_object": ("StaticObject",),
        f"{_STATE}.tracked_objects": ("TrackedObjects",),
        f"{_STATE}.tracked_objects_types": ("TrackedObjectType",),
        "nuplan.planning.simulation.observation.observation_type": ("DetectionsTracks",),
        "pathlib": ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath"),
    }
)
"""What scenes and metric caches hold alike."""
GEOMETRY = {("shapely.io", "from_wkb"): type("Geometry", (StandIn,), {"__slots__": ()})}
"""What stands for shapely's geometries: they are kept as well-known binary."""
_PATHS = frozenset(kind for (module, _), kind in NUPLAN.items() if module == "pathlib")


class Value:
    """A value of a file, and where it stands there, for error texts."""

    __slots__ = ("found", "where")

    def __init__(self, found: Any, where: str) -> None:
        self.found, self.where = found, where

    def error(self, expected: str) -> ValueError:
        return ValueError(f"{self.where}: expected {expected}, found {short(self.found)}")

    def __getitem__(self, name: str) -> Value:
        """An attribute of an object."""
        value = self.get(name)
        if value is None:
            raise self.error(f"an object with {name!r}")
        return value

    def get(self, name: str) -> Value | None:
        """None where the object does not have the attribute."""
        if not isinstance(self.found, StandIn):
            raise self.error("an object")
        attributes = vars(self.found)
        return Value(attributes[name], f"{self.where}.{name}") if name in attributes else None

    def argument(self, number: int, of: str | None = None) -> Value:
        """What the object's class, called ``of`` if that matters, was called with."""
        if not isinstance(self.found, StandIn) or of not in (None, type(self.found).__name__):
            raise self.error(f"a {of}" if of else "an object")
        if number >= len(self.found.args):
            raise self.error(f"an object made of more than {number} values")
        return Value(self.found.args[number], f"{self.where}[{number}]")

    def items(self) -> list[Value]:
        """Of a list, a tuple, or an array of objects."""
        found = self.found
        if isinstance(found, np.ndarray) and found.ndim == 1 and found.dtype.kind == "O":
            found = found.tolist()
        if not isinstance(found, (list, tuple)):
            raise self.error("a list")
        return [Value(item, f"{self.where}[{i}]") for i, item in enumerate(found)]

    def mapping(self) -> dict[str, Value]:
        if not isinstance(self.found, dict):
            raise self.error("a dict")
        return {key: Value(item, f"{self.where}[{short(key, 40)}]") for key, item in self.found.items()}

    def text(self) -> str:
        if not isinstance(self.found, str) or not self.found:
            raise self.error("a text that is not empty")
        return str(self.found)

    def texts(self) -> tuple[str, ...]:
        return tuple(item.text() for item in self.items())

    def whole(self) -> int:
        if isinstance(self.found, (bool, np.bool_)) or not isinstance(self.found, (int, np.integer)):
            raise self.error("a whole number")
        if not -(2**63) <= self.found < 2**63:
            raise self.error("a number of 64 bits")
        return int(self.found)

    def number(self) -> float:
        found: Any = self.found
        if isinstance(found, np.ndarray) and found.ndim == 0:
            found = found.item()
        if isinstance(found, (bool, np.bool_)) or not isinstance(found, (int, float, np.number)):
            raise self.error("a number")
        if not -MOST_SIZE <= found <= MOST_SIZE:  # nor NaN
            raise self.error(f"a number from -{MOST_SIZE:g} to {MOST_SIZE:g}")
        return float(found)


def boxes_of(detections: Value) -> Annotations:
    """The boxes of a DetectionsTracks, which are in the global frame, in its order.

    Raises ValueError for what is none of nuPlan's objects, of no known type, or not finite; velocities are looked at
    only of what moves by itself.
    """
    found = detections["tracked_objects"]["tracked_objects"].items()
    types = np.array([object_type(item) for item in found], dtype=np.int64)
    boxes, velocities = np.zeros((len(found), 7)), np.zeros((len(found), 2))
    for row, item in enumerate(found):
        box = item["_box"]
        boxes[row, :2], boxes[row, 6] = (pose := se2(box["_center"]))[:2], pose[2]
        boxes[row, 3:6] = box["_length"].number(), box["_width"].number(), box["_height"].number()
        if not IS_STATIC[types[row]]:
            velocities[row] = vector(item["_velocity"])
    tracks = tuple(item["_metadata"]["track_token"].text() for item in found)
    return Annotations(boxes, types, velocities, tracks, is_global=True)


def se2(state: Value) -> tuple[float, float, float]:
    """x, y and heading of a StateSE2."""
    return state["x"].number(), state["y"].number(), state["heading"].number()


def vector(state: Value) -> tuple[float, float]:
    """Of a StateVector2D."""
    return state["_x"].number(), state["_y"].number()


def object_type(item: Value) -> int:
    """The type of a tracked object, as an index into `OBJECT_NAMES`."""
    kind = item["_tracked_object_type"].argument(0)
    number = kind.whole()
    if not 0 <= number < len(OBJECT_NAMES):
        raise kind.error(f"the number of an object type, 0 to {len(OBJECT_NAMES) - 1}")
    return number


def path_text(found: Any) -> Any:
    """A path of pathlib as text; anything else as it is."""
    if type(found) in _PATHS and all(isinstance(part, str) for part in found.args):
        return "/".join(found.args)
    return found
