"""What strangers may send, and what a server and an agent make of it."""

from __future__ import annotations

import json
import os
import re
import socket
import stat
import struct
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dpvla.sensors import Sensors
from dpvla_devkit import protocol
from dpvla_devkit.address import Address, AddressError
from dpvla_devkit.protocol import Message, ProtocolError
from dpvla_devkit.served_policy import ServedPolicy, ServedPolicyError
from navsim_bridge.serving import server as serving
from navsim_bridge.serving.listening import ServingError, listening
from navsim_bridge.serving.requests import AskedScene
from navsim_bridge.serving.server import PolicyServer

MAGIC = b"dpvla\r\n\0"
SENSORS = Sensors(("front",), 32, 16)
SCENE = {
    "poses": np.zeros((4, 3)),
    "velocity": np.array([3.0, 0.0]),
    "acceleration": np.zeros(2),
    "command": np.array([0.0, 1, 0, 0]),
    "CAM_F0": np.full((18, 32, 3), 7, dtype=np.uint8),
}
PLAN = np.arange(24, dtype=np.float32).reshape(8, 3)


def straight(scenes: list[AskedScene]) -> np.ndarray:
    """A planner that fails for a car that backs up."""
    if any(scene.status[0] < 0 for scene in scenes):
        raise RuntimeError("it\nbacks up")
    return np.stack([PLAN * scene.status[0] for scene in scenes])


@pytest.fixture(params=["file", "port"])
def served(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[PolicyServer, str]]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = str(tmp_path / "policy.sock") if request.param == "file" else f"127.0.0.1:{port}"
    with listening(Address.parse(address)) as listener:
        server = PolicyServer(straight, SENSORS, listener, policy="straight on", version="1", batch_size=3)  # type: ignore[arg-type]
        thread = threading.Thread(target=server.run)
        thread.start()
        yield server, address
        server.stop()
        thread.join(30)
        assert not thread.is_alive()


def connected(address: str) -> socket.socket:
    where = Address.parse(address)
    connection = where.socket()
    connection.connect(where.name)
    return connection


def heard(connection: socket.socket) -> Message:
    return protocol.receive(connection, protocol.announced(connection, 10**6, 10, wait=10), 10)


def prefix(kind: int = protocol.HELLO, header: int = 2, arrays: int = 0, version: int = protocol.VERSION) -> bytes:
    return struct.pack("!8sHHIQ", MAGIC, version, kind, header, arrays)


def whole(kind: int, fields: object, arrays: bytes = b"") -> bytes:
    header = json.dumps(fields).encode()
    return prefix(kind, len(header), len(arrays)) + header + arrays


def greeting() -> bytes:
    return whole(protocol.HELLO, {"arrays": []})


def test_a_scene_gets_its_plan_and_a_bad_one_its_reason(served: tuple[PolicyServer, str]) -> None:
    policy = ServedPolicy(served[1], 10, 10)
    assert policy.welcome().policy == "straight on" and policy.welcome().cameras == ("CAM_F0",)
    np.testing.assert_array_equal(policy.plan(SCENE), 3 * PLAN)
    with pytest.raises(ServedPolicyError, match="could not plan: it backs up"):
        policy.plan({**SCENE, "velocity": np.array([-1.0, 0])})
    with pytest.raises(ServedPolicyError, match="the policy needs"):
        policy.plan({name: SCENE[name] for name in ("poses", "velocity")})
    with pytest.raises(ServedPolicyError, match="CAM_F0 is no readable image"):
        policy.plan({**SCENE, "CAM_F0": np.frombuffer(b"GIF89a nothing", dtype=np.uint8)})
    np.testing.assert_array_equal(policy.plan(SCENE), 3 * PLAN)
    assert (served[0].counts.plans, served[0].counts.refused, served[0].counts.strange) == (2, 3, 0)


@pytest.mark.parametrize(
    ("sent", "reason"),
    [
        (b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", "no message of dpvla's"),
        (prefix(version=9) + b"{}", "version 9 of the protocol came, and version 1 is spoken here"),
        (prefix(header=2**31), "at most 16384"),
        (prefix(arrays=2**62), r"at most 16384 \+ 0"),
        (prefix(kind=protocol.SCENE) + b"{}", "begins with a greeting"),
        (prefix(header=4) + b"\xff\xfe{}", "is no JSON"),
        (whole(protocol.HELLO, [1]), "no JSON object"),
        (whole(protocol.HELLO, {}), "lists no arrays"),
        (prefix(header=16000) + b"[" * 16000, "is no JSON"),
        (greeting() + prefix(kind=protocol.SCENE, arrays=2**40), "bytes came; at most"),
        (
            greeting() + whole(protocol.SCENE, {"arrays": [["poses", "f8", [4, 3]]]}, b"x" * 8),
            "other sizes than it says",
        ),
        (greeting() + whole(protocol.SCENE, {"arrays": [["poses", "O", [1]]]}, b"x" * 8), "none can have"),
        (greeting() + whole(protocol.SCENE, {"arrays": [["poses", "u1", [-1]]]}, b"x"), "none can have"),
        (greeting() + whole(protocol.SCENE, {"arrays": [["a", "u1", [1]], ["a", "u1", [0]]]}, b"x"), "none can have"),
        (greeting() + whole(protocol.SCENE, {"arrays": [[1, "u1", [1]]]}, b"x"), "has no name"),
        (greeting() + greeting(), "a scene was to come"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_no_message_ends_its_connection_alone(
    served: tuple[PolicyServer, str], sent: bytes, reason: str
) -> None:
    with connected(served[1]) as stranger:
        stranger.sendall(sent)
        answer = heard(stranger)
        while answer.kind == protocol.WELCOME:
            answer = heard(stranger)
        assert answer.kind == protocol.REFUSED
        assert re.search(reason, answer.fields["error"])
        with suppress(ConnectionResetError):
            assert stranger.recv(1) == b""
    np.testing.assert_array_equal(ServedPolicy(served[1], 10, 10).plan(SCENE), 3 * PLAN)
    assert served[0].counts.strange == 1


def test_an_agent_that_dies_in_the_middle_disturbs_nobody(served: tuple[PolicyServer, str]) -> None:
    for cut in (0, 3, 24, 30, 60):
        with connected(served[1]) as dying:
            dying.sendall((greeting() + prefix(kind=protocol.SCENE, arrays=1000) + b"{}")[:cut])
    np.testing.assert_array_equal(ServedPolicy(served[1], 10, 10).plan(SCENE), 3 * PLAN)


def test_who_stops_in_the_middle_is_let_go(served: tuple[PolicyServer, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "SECONDS", 0.2)
    with connected(served[1]) as silent, connected(served[1]) as slow:
        slow.sendall(greeting())
        assert heard(slow).kind == protocol.WELCOME
        slow.sendall(prefix(kind=protocol.SCENE, arrays=1000))
        for connection in (silent, slow):
            connection.settimeout(20)
            assert connection.recv(1) == b""


def test_more_agents_than_there_may_be_are_told(
    served: tuple[PolicyServer, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving, "MOST_CONNECTIONS", 1)
    first = ServedPolicy(served[1], 10, 10)
    first.welcome()
    with pytest.raises(ServedPolicyError, match="it has 1 connections already"):
        ServedPolicy(served[1], 10, 10).welcome()
    np.testing.assert_array_equal(first.plan(SCENE), 3 * PLAN)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_damaged_scenes_are_refused_or_planned_and_nothing_else(data: st.DataObject) -> None:
    """A whole conversation over a socket pair, with bytes of the second message changed."""
    ours, theirs = socket.socketpair()
    with ours, theirs, socket.socket() as listener:
        server = PolicyServer(straight, SENSORS, listener, policy="x", version="1", batch_size=1)  # type: ignore[arg-type]
        planning = threading.Thread(target=server._batches.run)
        planning.start()
        serving_one = threading.Thread(target=server._serve, args=(theirs,))
        serving_one.start()
        ours.sendall(greeting())
        assert heard(ours).kind == protocol.WELCOME
        recorder, copy = socket.socketpair()
        with recorder, copy:
            protocol.send(recorder, Message(protocol.SCENE, {}, SCENE), 5)
            content = bytearray(copy.recv(2**16))
        for _ in range(data.draw(st.integers(1, 3))):
            content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
        ours.sendall(content)
        ours.shutdown(socket.SHUT_WR)
        with suppress(protocol.ClosedError, ConnectionResetError):
            assert heard(ours).kind in (protocol.PLAN, protocol.REFUSED)
        serving_one.join(20)
        server.stop()
        planning.join(20)
        assert not serving_one.is_alive() and not planning.is_alive()


def answering(path: Path, *answers: bytes) -> threading.Thread:
    """Something at a socket file that says ``answers``, one to each message, whatever it is told."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()

    def serve() -> None:
        with listener:
            connection, _ = listener.accept()
            with connection:
                for answer in answers:
                    connection.recv(2**20)
                    connection.sendall(answer)
                connection.settimeout(10)
                with suppress(OSError):
                    while connection.recv(2**20):
                        pass

    thread = threading.Thread(target=serve)
    thread.start()
    return thread


WELCOME = whole(protocol.WELCOME, {"policy": "x", "server": "1", "cameras": [], "arrays": []})


@pytest.mark.parametrize(
    ("answers", "reason"),
    [
        ([b"SSH-2.0-OpenSSH_9.6 and so on, long enough"], "is no policy server: what came is no message"),
        ([whole(protocol.WELCOME, {"policy": "x", "server": "1", "cameras": ["../x"], "arrays": []})], "no welcome"),
        ([whole(protocol.WELCOME, {"policy": 1, "server": "1", "cameras": [], "arrays": []})], "no welcome"),
        ([prefix(kind=protocol.WELCOME, arrays=2**50)], "bytes came; at most"),
        (
            [whole(protocol.REFUSED, {"error": "spoken\n here: " + "x" * 5000, "arrays": []})],
            r"spoken here: x{900,990}$",
        ),
        ([prefix(kind=protocol.WELCOME, version=2) + b"{}"], "version 2 of the protocol came"),
        ([WELCOME, whole(protocol.PLAN, {"arrays": []})], "what came is no plan"),
        ([WELCOME, whole(protocol.PLAN, {"arrays": [["poses", "f4", [8, 3]]]}, b"\xff" * 96)], "plan is not finite"),
        ([WELCOME, b""], r"gave no plan within 0.5 s \(agent.timeout\)"),
    ],
)
def test_an_agent_believes_no_server_without_looking(answers: list[bytes], reason: str, tmp_path: Path) -> None:
    thread = answering(tmp_path / "other.sock", *answers)
    policy = ServedPolicy(str(tmp_path / "other.sock"), 0.5, 0.5)
    with pytest.raises(ServedPolicyError, match=reason):
        policy.plan({})
    policy.close()
    thread.join(20)
    assert not thread.is_alive()


def test_the_socket_file_is_of_this_user_alone_and_goes_with_the_server(tmp_path: Path) -> None:
    path = tmp_path / "made/policy.sock"
    with listening(Address.parse(str(path))):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600 and stat.S_IMODE(path.parent.stat().st_mode) == 0o700
        with pytest.raises(ServingError, match="a server listens there already"), listening(Address.parse(str(path))):
            pass
        assert path.exists()
    assert not path.exists()


def test_what_a_killed_server_left_is_replaced_and_what_is_no_socket_is_not(tmp_path: Path) -> None:
    path = tmp_path / "policy.sock"
    with socket.socket(socket.AF_UNIX) as killed:
        killed.bind(str(path))
    with listening(Address.parse(str(path))):
        connected(str(path)).close()
    path.write_text("mine")
    with pytest.raises(ServingError, match="is there and no socket"), listening(Address.parse(str(path))):
        pass
    assert path.read_text() == "mine"
    with (
        pytest.raises(FileExistsError, match="where a folder is to be written"),
        listening(Address.parse(str(path / "x"))),
    ):
        pass


def test_a_server_does_not_take_away_what_came_in_its_place(tmp_path: Path) -> None:
    path = tmp_path / "policy.sock"
    with listening(Address.parse(str(path))):
        os.unlink(path)
        path.write_text("another's")
    assert path.exists()


@pytest.mark.parametrize("text", ["0.0.0.0:7", "10.0.0.1:7", "[::]:7", "example.org:7", "127.0.0.1:99999", "", "a\0b"])
def test_nothing_is_served_to_other_machines(text: str) -> None:
    with pytest.raises(AddressError):
        Address.parse(text)


@pytest.mark.parametrize(
    ("text", "said"),
    [("localhost:7007", "127.0.0.1:7007"), ("[::1]:7007", "[::1]:7007"), ("/x/../policy.sock", "/policy.sock")],
)
def test_an_address_is_a_port_of_this_machine_or_a_file(text: str, said: str) -> None:
    assert str(Address.parse(text)) == said


def test_a_message_of_arrays_that_are_not_contiguous_arrives(served: tuple[PolicyServer, str]) -> None:
    turned = np.asfortranarray(np.full((18, 32, 3), 7, dtype=np.uint8))
    poses = np.zeros((3, 4)).T
    assert ServedPolicy(served[1], 10, 10).plan({**SCENE, "CAM_F0": turned, "poses": poses}).shape == (8, 3)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        protocol.send(ours, Message(protocol.PLAN, {"a": 1}, {"x": turned[::-2, ::3], "none": np.zeros((0, 3))}), 5)
        found = protocol.receive(theirs, protocol.announced(theirs, 10**6, 5), 5)
    np.testing.assert_array_equal(found.arrays["x"], turned[::-2, ::3])
    assert found.arrays["none"].shape == (0, 3) and found.fields == {"a": 1}
    with pytest.raises(ProtocolError):
        protocol._shapes([["x", "f4", [2]]], 4)
