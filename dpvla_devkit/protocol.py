"""What the devkit's agent and the process that holds the policy say to each other. Both environments import this file:
Python 3.9, numpy and the standard library alone.

A message is a prefix of 24 bytes, a header (a JSON object in UTF-8) and arrays as they lie in memory, one behind the
other. The header's ``arrays`` lists name, type and shape of each. Lengths are bounded before anything is read, and
nothing is ever unpickled.

    agent                                server
    HELLO {}                        ->
                                    <-   WELCOME {server, policy, cameras}
    SCENE {} poses, velocity, ...   ->
                                    <-   PLAN {} poses        or   REFUSED {error}

The prefix and REFUSED stay as they are in every version, so that other versions can be told apart and say so.
"""

from __future__ import annotations

import json
import socket
import struct
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

VERSION = 1
"""Raised whenever either side would misunderstand the other."""

HELLO, WELCOME, SCENE, PLAN, REFUSED = range(1, 6)
"""Kinds of messages."""

CAMERAS = ("CAM_F0", "CAM_L0", "CAM_L1", "CAM_L2", "CAM_R0", "CAM_R1", "CAM_R2", "CAM_B0")
"""NAVSIM's. The devkit's fields have these names in small letters."""
HISTORY, POSES, INTERVAL = 4, 8, 0.5
"""Frames of a request, the last of them now; poses of a plan; seconds between frames, and between poses."""
STATUS: Mapping[str, tuple[int, ...]] = {
    "poses": (HISTORY, 3),  # x, y [m], heading [rad] of the rear axle in the ego frame of now
    "velocity": (2,),  # now, ego axes [m/s]
    "acceleration": (2,),  # now, ego axes [m/s^2]
    "command": (4,),  # now, one-hot: left, straight, right, unknown
}
"""Arrays of every scene, float64. Images follow under their camera's name, uint8: (height, width, 3) RGB, or the bytes
(n,) of the file that they come from."""

MOST_HEADER = 2**14
"""Bytes of a header."""
MOST_STATUS = 2**12
"""Bytes of the arrays of a message without images."""
MOST_IMAGE = 2**25
"""Bytes of an image: a camera's 1920 x 1080 pixels have 6.2 million."""
MOST_ERROR = 1000
"""Characters of an error text."""

_MAGIC = b"dpvla\r\n\0"
_PREFIX = struct.Struct("!8sHHIQ")  # magic, version, kind, bytes of header, bytes of arrays
_TYPES: Mapping[str, Any] = {"f4": np.dtype("<f4"), "f8": np.dtype("<f8"), "u1": np.dtype("u1")}
_CHUNK = 2**20


class ProtocolError(Exception):
    """What came is no message, or none that was to come."""


class ClosedError(ConnectionError):
    """The other side has ended the connection."""


@dataclass(frozen=True)
class Message:
    """What is sent."""

    kind: int
    fields: Mapping[str, Any] = field(default_factory=dict)  # what JSON can hold
    arrays: Mapping[str, np.ndarray] = field(default_factory=dict)  # float32, float64 or uint8


@dataclass(frozen=True)
class Announced:
    """The prefix of a message whose rest is still to be read."""

    kind: int
    header: int  # bytes
    arrays: int  # bytes


def refused(error: str) -> Message:
    """The answer that there is none."""
    return Message(REFUSED, {"error": error[:MOST_ERROR]})


def send(connection: socket.socket, message: Message, seconds: float) -> None:
    """Send all of a message. Raises OSError, socket.timeout where the other side has not taken it in time."""
    kinds = {dtype: name for name, dtype in _TYPES.items()}
    parts = [np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<")) for array in message.arrays.values()]
    listed = [[name, kinds[part.dtype], list(part.shape)] for name, part in zip(message.arrays, parts)]
    header = json.dumps({**message.fields, "arrays": listed}).encode("utf-8")
    size = sum(part.nbytes for part in parts)
    until = time.monotonic() + seconds
    prefix = _PREFIX.pack(_MAGIC, VERSION, message.kind, len(header), size)
    for view in (memoryview(prefix + header), *(part.reshape(-1).view(np.uint8).data for part in parts)):
        while view:
            connection.settimeout(_left(until))
            view = view[connection.send(view[:_CHUNK]) :]


def announced(connection: socket.socket, most: int, seconds: float, wait: float | None = None) -> Announced:
    """What message comes next.

    Args:
        most: bytes of arrays that it may have.
        seconds: for the prefix, once it has begun.
        wait: for its beginning; None: as long as it takes.

    Raises:
        ClosedError: the other side has gone.
        ProtocolError: no message, one of another version, or too large.
        OSError: socket.timeout where it does not come in time.
    """
    connection.settimeout(wait)
    first = connection.recv(1)
    if not first:
        raise ClosedError("the connection was closed")
    rest = _received(connection, _PREFIX.size - 1, time.monotonic() + seconds)
    magic, version, kind, header, arrays = _PREFIX.unpack(first + bytes(rest))
    if magic != _MAGIC:
        raise ProtocolError("what came is no message of dpvla's")
    if version != VERSION and kind != REFUSED:
        raise ProtocolError(
            f"version {version} of the protocol came, and version {VERSION} is spoken here: install dpvla_devkit from "
            "the dpvla that serves the policy"
        )
    if header > MOST_HEADER or arrays > most:
        raise ProtocolError(f"a message of {header} + {arrays} bytes came; at most {MOST_HEADER} + {most} are taken")
    return Announced(kind, header, arrays)


def receive(connection: socket.socket, what: Announced, seconds: float) -> Message:
    """The rest of a message; raises as `announced`."""
    until = time.monotonic() + seconds
    text = bytes(_received(connection, what.header, until))
    try:
        fields = json.loads(text.decode("utf-8"))
    except (ValueError, RecursionError):
        raise ProtocolError("the header of a message is no JSON") from None
    if not isinstance(fields, dict):
        raise ProtocolError("the header of a message is no JSON object")
    shapes = _shapes(fields.pop("arrays", None), what.arrays)
    content = _received(connection, what.arrays, until)
    arrays, place = {}, 0
    for name, (dtype, shape, size) in shapes.items():
        array = np.frombuffer(content, dtype, count=size // dtype.itemsize, offset=place)
        arrays[name] = array.reshape(shape)
        place += size
    return Message(what.kind, fields, arrays)


def _shapes(listed: Any, total: int) -> dict[str, tuple[Any, tuple[int, ...], int]]:
    """Type, shape and bytes of each array, which together have ``total`` bytes."""
    found: dict[str, tuple[Any, tuple[int, ...], int]] = {}
    if not isinstance(listed, list) or len(listed) > 32:
        raise ProtocolError("the header of a message lists no arrays")
    for entry in listed:
        if not (isinstance(entry, list) and len(entry) == 3 and isinstance(entry[0], str) and len(entry[0]) <= 32):
            raise ProtocolError("an array of a message has no name, type and shape")
        name, kind, shape = entry
        plain = isinstance(shape, list) and len(shape) <= 4 and all(type(n) is int and 0 <= n <= total for n in shape)
        if name in found or not isinstance(kind, str) or kind not in _TYPES or not plain:
            raise ProtocolError("an array of a message has a name, type or shape that none can have")
        size = _TYPES[kind].itemsize
        for length in shape:
            size *= length
        found[name] = (_TYPES[kind], tuple(shape), size)
    if sum(size for _, _, size in found.values()) != total:
        raise ProtocolError("the arrays of a message have other sizes than it says")
    return found


def _received(connection: socket.socket, size: int, until: float) -> bytearray:
    """So many bytes: memory is taken as they come, not as they are announced."""
    content = bytearray()
    while len(content) < size:
        connection.settimeout(_left(until))
        part = connection.recv(min(_CHUNK, size - len(content)))
        if not part:
            raise ClosedError("the connection was closed in the middle of a message")
        content += part
    return content


def _left(until: float) -> float:
    seconds = until - time.monotonic()
    if seconds <= 0:
        raise socket.timeout("timed out")
    return seconds
