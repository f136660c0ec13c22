"""The policy as its other process serves it: asked over a socket, with bounded waiting."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np

from dpvla_devkit import protocol
from dpvla_devkit.address import Address
from dpvla_devkit.protocol import Message, ProtocolError

_LOOK_AGAIN = 0.25
"""Seconds between two looks for a server that is not there yet."""


class ServedPolicyError(RuntimeError):
    """There is no plan, and why."""


@dataclass(frozen=True)
class Welcome:
    """What a server says of the policy that it serves."""

    policy: str  # what distinguishes its plans from those of others: weights, omega, seed, ...
    cameras: tuple[str, ...]  # that it looks at, of `protocol.CAMERAS`
    server: str  # its version


class ServedPolicy:
    """One connection to the server, made when it is needed, and made anew once where it was lost.

    Threads take turns. A copy, a pickle and a forked process connect for themselves.
    """

    def __init__(self, address: str, timeout: float, patience: float) -> None:
        """``timeout`` [s]: for a plan. ``patience`` [s]: for a server that is not there yet, as it loads its weights.

        Nothing is looked at but the values. Raises AddressError or ValueError.
        """
        for name, value in (("timeout", timeout), ("patience", patience)):
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if not number or not (0 if name == "patience" else 1e-3) <= value <= 86400:
                raise ValueError(f"{name} must be seconds, at most 86400, found {value!r:.100}")
        self.address, self.timeout, self.patience = Address.parse(address), timeout, patience
        self._start()

    def _start(self) -> None:
        self._lock = threading.RLock()
        self._socket: socket.socket | None = None
        self._owner = os.getpid()
        self._welcome: Welcome | None = None
        self._gone = False  # it was waited for, in vain

    def __getstate__(self) -> dict[str, Any]:
        return {"address": self.address, "timeout": self.timeout, "patience": self.patience}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self.__dict__.update(state)
        self._start()

    def welcome(self) -> Welcome:
        """What the server says of its policy; asked once. Raises ServedPolicyError where there is none."""
        self._leave_parent()
        if self._welcome is None:
            with self._lock:
                self._connected()
        assert self._welcome is not None
        return self._welcome

    def plan(self, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
        """(8, 3) float32 x, y [m], heading [rad] of a scene.

        Args:
            arrays: as the protocol has them.

        Raises ServedPolicyError: there is no server, it does not answer in time, or says why there is no plan.
        """
        self._leave_parent()
        with self._lock:
            for last in (False, True):
                connection = self._connected()
                try:
                    return self._asked(connection, arrays)
                except socket.timeout:
                    self.close()
                    raise ServedPolicyError(
                        f"the policy server at {self.address} gave no plan within {self.timeout:g} s (agent.timeout)"
                    ) from None
                except ProtocolError as error:
                    self.close()
                    raise ServedPolicyError(f"the policy server at {self.address}: {error}") from None
                except OSError as error:  # it stopped, or was started again: its plans are the same whenever asked for
                    self.close()
                    if last:
                        raise ServedPolicyError(
                            f"the policy server at {self.address} ended the connection ({error}); see what it said"
                        ) from None
        raise AssertionError("not reached")

    def close(self) -> None:
        """End the connection, if there is one; the next call makes another."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _asked(self, connection: socket.socket, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
        until = time.monotonic() + self.timeout
        with suppress(BrokenPipeError, ConnectionResetError):  # it may have said why, before it closed
            protocol.send(connection, Message(protocol.SCENE, {}, arrays), self.timeout)
        answer = _answer(connection, max(until - time.monotonic(), 1e-3))
        if answer.kind == protocol.REFUSED:
            raise ServedPolicyError(_error(answer))
        plan = answer.arrays.get("poses")
        if (
            answer.kind != protocol.PLAN
            or plan is None
            or plan.shape != (protocol.POSES, 3)
            or plan.dtype != np.float32
        ):
            raise ProtocolError("what came is no plan")
        if not np.isfinite(plan).all():
            raise ProtocolError("its plan is not finite")
        return plan.copy()

    def _leave_parent(self) -> None:
        """In a process that was forked: the connection and the lock are those of the other one."""
        if self._owner != os.getpid():
            self._start()

    def _connected(self) -> socket.socket:
        if self._socket is None:
            self._socket = self._connect()
        return self._socket

    def _connect(self) -> socket.socket:
        until = time.monotonic() + (0 if self._gone else self.patience)
        while True:
            connection = self.address.socket()
            try:
                connection.settimeout(self.timeout)
                connection.connect(self.address.name)
            except (FileNotFoundError, ConnectionRefusedError, BlockingIOError) as error:
                connection.close()
                if time.monotonic() >= until:
                    waited = "" if self._gone else f" (waited {self.patience:g} s)"
                    self._gone = True
                    raise ServedPolicyError(
                        f"no policy server at {self.address}: {error.strerror}{waited}. Start one in dpvla's own "
                        f"environment: python tools/serve_policy.py --checkpoint DIR --address {self.address}"
                    ) from None
                time.sleep(_LOOK_AGAIN)
                continue
            except OSError as error:
                connection.close()
                raise ServedPolicyError(f"the policy server at {self.address} cannot be reached: {error}") from None
            try:
                welcome = self._greeted(connection)
            except (OSError, ProtocolError) as error:
                connection.close()
                raise ServedPolicyError(f"what serves at {self.address} is no policy server: {error}") from None
            except ServedPolicyError:
                connection.close()
                raise
            if self._welcome is not None and (welcome.policy, welcome.cameras) != (
                self._welcome.policy, self._welcome.cameras,
            ):  # fmt: skip
                connection.close()
                raise ServedPolicyError(
                    f"the policy server at {self.address} now serves {welcome.policy}, where it served "
                    f"{self._welcome.policy} before: plans of two policies are not mixed in one run"
                )
            self._welcome, self._gone = welcome, False
            return connection

    def _greeted(self, connection: socket.socket) -> Welcome:
        with suppress(BrokenPipeError, ConnectionResetError):
            protocol.send(connection, Message(protocol.HELLO), self.timeout)
        answer = _answer(connection, max(self.timeout, self.patience))  # it listens while it loads its weights
        if answer.kind == protocol.REFUSED:
            raise ServedPolicyError(f"the policy server at {self.address}: {_error(answer)}")
        policy, cameras, server = (answer.fields.get(key) for key in ("policy", "cameras", "server"))
        known = isinstance(cameras, list) and all(camera in protocol.CAMERAS for camera in cameras)
        if answer.kind != protocol.WELCOME or not known or not isinstance(policy, str) or not isinstance(server, str):
            raise ProtocolError("what came is no welcome")
        assert isinstance(cameras, list)
        return Welcome(_plain(policy), tuple(cameras), _plain(server))


def _answer(connection: socket.socket, seconds: float) -> Message:
    until = time.monotonic() + seconds
    what = protocol.announced(connection, protocol.MOST_STATUS, seconds, wait=seconds)
    return protocol.receive(connection, what, max(until - time.monotonic(), 1e-3))


def _error(answer: Message) -> str:
    error = answer.fields.get("error")
    return _plain(error) if isinstance(error, str) else "it refused without a reason"


def _plain(text: str) -> str:
    """On one line of bounded length, without what a terminal would obey."""
    line = " ".join(text[: protocol.MOST_ERROR].split())
    return "".join(letter if letter.isprintable() else "?" for letter in line)
