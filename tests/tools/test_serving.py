"""tools/serve_policy.py: from its command line to its end."""

from __future__ import annotations

import os
import re
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from dpvla_devkit.protocol import CAMERAS
from dpvla_devkit.served_policy import ServedPolicy, ServedPolicyError, Welcome
from tests.navsim_bridge.conftest import World, checkpoint, world
from tools import serve_policy

__all__ = ["checkpoint", "world"]


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--agent", "human", "--checkpoint", "x"], "--agent human cannot be served: only a trained policy"),
        ([], "--agent dpvla needs --checkpoint"),
        (["--checkpoint", "x", "--data-split", "mini"], "--data-split belongs to --split"),
        (["--checkpoint", "x", "--decoder", "nvjpeg"], "--decoder belongs to tools that read the split's own JPEGs"),
        (["--checkpoint", "x", "--address", "0.0.0.0:7007"], "a policy is served on its own machine alone"),
        (["--checkpoint", "x", "--split", "nowhere", "--data-root", "."], "navsim_logs"),
        (["--checkpoint", "x"], "no checkpoint at x|x"),
    ],
)
def test_what_cannot_be_served_is_told_and_leaves_nothing(
    options: list[str], reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    where = [] if "--address" in options else ["--address", "policy.sock"]
    with pytest.raises(SystemExit, match=reason):
        serve_policy.main([*options, *where])
    assert not [*tmp_path.iterdir()]


@pytest.fixture
def handlers() -> Iterator[None]:
    """What signals do is as before, afterwards."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("handlers")
@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM])
def test_a_served_policy_ends_cleanly(
    end: signal.Signals, world: World, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    address, found = tmp_path / "policy.sock", list[Welcome]()

    def ask() -> None:
        policy = ServedPolicy(str(address), 300, 300)
        try:
            found.append(policy.welcome())
            with pytest.raises(ServedPolicyError, match="the policy needs"):
                policy.plan({})
        finally:
            if found:  # whoever answered knows what to do with signals
                os.kill(os.getpid(), end)

    asking = threading.Thread(target=ask)
    asking.start()
    known = ["--split", str(world.split_file), "--data-root", str(world.root)] if end == signal.SIGINT else []
    options = ["--checkpoint", str(checkpoint), "--device", "cpu", "--seed", "3", "--address", str(address), *known]
    serve_policy.main(options)
    asking.join()
    (welcome,) = found
    assert welcome.cameras and set(welcome.cameras) <= set(CAMERAS)
    assert re.search(r"\(weights [0-9a-f]{12}, omega \d\S*, seed 3\)$", welcome.policy)
    assert capsys.readouterr().out == (
        f"serving {welcome.policy} at {address}; Ctrl-C ends it\n"
        "0 plans, 1 scenes refused, 1 connections, 0 of them ended for what they said or did not say\n"
    )
    assert not address.exists()
