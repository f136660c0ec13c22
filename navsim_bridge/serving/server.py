"""The process that holds a policy and answers the devkit's workers, on its own machine alone."""

from __future__ import annotations

import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np

from dpvla.config import one_line
from dpvla.sensors import Sensors
from dpvla_devkit import protocol
from dpvla_devkit.protocol import ClosedError, Message, ProtocolError
from navsim_bridge.serving.batches import Batches, Plans
from navsim_bridge.serving.requests import AskedScene, SceneError, read_scene
from navsim_bridge.splits.sensors import camera_names

MOST_CONNECTIONS = 512
"""Agents at once: the devkit starts one a core."""
MOST_IN_MEMORY = 2**31
"""Bytes of requests that are read and decoded at the same time; others wait."""
SECONDS = 30.0
"""For a greeting, for a message once it has begun, and for an answer to be taken."""


@dataclass
class Counts:
    """What happened so far."""

    plans: int = 0
    refused: int = 0  # scenes without a plan
    connections: int = 0
    strange: int = 0  # of them: ended for what they said, or did not say


class PolicyServer:
    """Answers who connects to a listening socket."""

    def __init__(
        self,
        plan: Callable[[Sequence[AskedScene]], Plans],
        sensors: Sensors,
        listener: socket.socket,
        *,
        policy: str,
        version: str,
        batch_size: int,
    ) -> None:
        """
        Args:
            plan: (scene, 8, 3) float32 plans of scenes.
            sensors: of the policy.
            listener: from `listening.listening`.
            policy: what distinguishes its plans from those of others, in words.
            version: of dpvla.
            batch_size: scenes planned together, at most.
        """
        self.counts, self._sensors, self._listener = Counts(), sensors, listener
        self._cameras = camera_names(sensors.cameras)
        self.policy = policy[: protocol.MOST_ERROR]
        self._hello = {"policy": self.policy, "server": version, "cameras": list(self._cameras)}
        self._most = protocol.MOST_STATUS + protocol.MOST_IMAGE * len(self._cameras)
        self._reading = threading.BoundedSemaphore(max(1, MOST_IN_MEMORY // self._most))
        self._batches = Batches(plan, batch_size)
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()

    def run(self) -> None:
        """Answer until it is stopped, then end all connections. The policy is used in this thread."""
        try:
            threading.Thread(target=self._accept, name="accept", daemon=True).start()
            self._batches.run()
        finally:
            with suppress(OSError):
                self._listener.shutdown(socket.SHUT_RDWR)
            with self._lock:
                for connection in self._open:
                    with suppress(OSError):
                        connection.shutdown(socket.SHUT_RDWR)

    def stop(self) -> None:
        """Let `run` end once it has planned what waits; may be called anywhere, in a signal's handler, too."""
        self._batches.stop()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError as error:
                if self._batches.stopped.wait(0.5):
                    return
                print(f"a connection could not be taken: {error}", file=sys.stderr)  # too many open files
                continue
            with self._lock:
                full = len(self._open) >= MOST_CONNECTIONS
                if not full:
                    self._open.add(connection)
                    self.counts.connections += 1
            if full:
                with connection:
                    _refuse(connection, f"it has {MOST_CONNECTIONS} connections already")
                continue
            try:
                threading.Thread(target=self._serve, args=(connection,), name="agent", daemon=True).start()
            except RuntimeError as error:  # no further thread: others may end theirs
                with self._lock:
                    self._open.discard(connection)
                with connection:
                    _refuse(connection, str(error))

    def _serve(self, connection: socket.socket) -> None:
        try:
            self._converse(connection)
        except (ClosedError, BrokenPipeError, ConnectionResetError):
            pass  # the agent has gone: its worker has done its scenes, or died
        except ProtocolError as error:
            self._count("strange")
            _refuse(connection, str(error))
        except OSError:
            self._count("strange")
        finally:
            with self._lock:
                self._open.discard(connection)
            connection.close()

    def _converse(self, connection: socket.socket) -> None:
        hello = protocol.announced(connection, 0, SECONDS, wait=SECONDS)
        if hello.kind != protocol.HELLO:
            raise ProtocolError("a conversation begins with a greeting")
        protocol.receive(connection, hello, SECONDS)
        protocol.send(connection, Message(protocol.WELCOME, self._hello), SECONDS)
        while True:
            what = protocol.announced(connection, self._most, SECONDS)
            if what.kind != protocol.SCENE:
                raise ProtocolError("a scene was to come")
            protocol.send(connection, self._answer(connection, what), SECONDS)

    def _answer(self, connection: socket.socket, what: protocol.Announced) -> Message:
        try:
            with self._reading:
                scene = read_scene(protocol.receive(connection, what, SECONDS).arrays, self._sensors)
            plan = self._batches.ask(scene)
        except (OSError, ProtocolError):
            raise
        except SceneError as error:
            self._count("refused")
            return protocol.refused(str(error))
        except Exception as error:  # of planning: the others' scenes may well be planned
            self._count("refused")
            return protocol.refused(f"the policy server could not plan: {one_line(error)}")
        self._count("plans")
        return Message(protocol.PLAN, {}, {"poses": np.asarray(plan, dtype=np.float32)})

    def _count(self, what: str) -> None:
        with self._lock:
            setattr(self.counts, what, getattr(self.counts, what) + 1)


def _refuse(connection: socket.socket, error: str) -> None:
    """Say why, and read for a moment what is still on its way: closing before would throw the words away on TCP."""
    with suppress(OSError):
        protocol.send(connection, protocol.refused(error), 1.0)
        connection.shutdown(socket.SHUT_WR)
        until = time.monotonic() + 0.2
        while (left := until - time.monotonic()) > 0:
            connection.settimeout(left)
            if not connection.recv(2**20):
                return
