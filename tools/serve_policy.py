"""Hold a policy and plan for the workers of the official devkit, which ask over a local socket: docs/devkit.md."""

from __future__ import annotations

import signal
import socket
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dpvla.cli import parse, refuse_given, reporting_errors
from dpvla.config import NotNegative, Whole
from dpvla_devkit.address import DEFAULT, Address
from navsim_bridge.agents.options import AgentOptions
from navsim_bridge.files.roots import DataOptions, data_root
from navsim_bridge.serving.listening import listening
from navsim_bridge.splits.scene_filter import load_split
from navsim_bridge.splits.scenes import SceneRecord, select_scenes


@dataclass(frozen=True, kw_only=True)
class ServePolicy(AgentOptions, DataOptions):
    """Plan for the official devkit's agent `dpvla_devkit.Agent`, from one process for all of its workers.

    Ends with Ctrl-C. With --split a scene has the noise that tools/evaluate.py gives it, and so the same plan.
    """

    agent: str = "dpvla"  # dpvla alone
    seed: Whole = 0  # of the sampling noise
    omega: NotNegative | None = None  # greediness of the guided combination; default: what it was trained with
    address: str = DEFAULT  # a socket file, or 127.0.0.1:PORT
    split: str | None = None  # a split whose scenes are to be told apart; default: noise hangs on the car's motion


@reporting_errors
def main(argv: Sequence[str] | None = None) -> None:
    options = parse(ServePolicy, argv)
    address = Address.parse(options.address)
    if options.agent != "dpvla":
        raise ValueError(f"--agent {options.agent:.100} cannot be served: only a trained policy (dpvla) is")
    options.check_agent()
    refuse_given(options, ["decoder"], "tools that read the split's own JPEGs")
    if options.split is None:
        refuse_given(options, ["data_root", "data_split"], "--split")
    with listening(address) as listener:
        _serve(options, address, listener)


def _serve(options: ServePolicy, address: Address, listener: socket.socket) -> None:
    records: list[SceneRecord] = []
    if options.split is not None:
        root = data_root(options.data_root)
        records = select_scenes(load_split(options.split, root, options.data_split), root)
    from navsim_bridge.agents.policy_agent import PolicyAgent, weights_path
    from navsim_bridge.serving.policy import NamedPlans, policy_server
    from navsim_bridge.serving.requests import SceneNames

    assert options.checkpoint is not None
    checkpoint = weights_path(options.checkpoint)  # of a run that goes on and writes others, too
    omegas = () if options.omega is None else (options.omega,)
    agent = replace(options.opener(Path(), options.device, options.seed, omegas), checkpoint=checkpoint)()
    assert isinstance(agent, PolicyAgent)
    names = SceneNames(records)
    plans = NamedPlans(agent, names)
    server = policy_server(agent, plans, checkpoint, listener, options.batch_size)
    if names.alike:
        print(
            f"split {options.split}: {names.alike} of {len(records)} scenes move as another one does; their noise is "
            "not that of tools/evaluate.py",
            file=sys.stderr,
        )
    print(f"serving {server.policy} at {address}; Ctrl-C ends it", flush=True)

    def stop(number: int, _: Any) -> None:
        signal.signal(number, signal.SIG_DFL)  # a second time it ends at once
        server.stop()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    server.run()
    counts = server.counts
    print(
        f"{counts.plans} plans, {counts.refused} scenes refused, {counts.connections} connections, "
        f"{counts.strange} of them ended for what they said or did not say"
    )
    if options.split is not None and plans.unknown:
        print(f"{plans.unknown} scenes were not known from split {options.split}: noise of their own", file=sys.stderr)


if __name__ == "__main__":
    main()
