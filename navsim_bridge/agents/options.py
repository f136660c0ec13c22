"""The options of tools that let an agent drive, and the agent that they ask for."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, cast

from dpvla.cli import refuse_given
from dpvla.config import Count, Workers
from dpvla.parallel import AnyExecutor, ProcessesConfig, make_executor
from dpvla.registry import import_plugin
from navsim_bridge.agents.agent import Agent, Decoder, Proposer, cameras_of
from navsim_bridge.agents.crew import Crew
from navsim_bridge.agents.registry import find_agent
from navsim_bridge.agents.selection import Selection, SelectOptions
from navsim_bridge.agents.submission_agent import SubmissionAgent
from navsim_bridge.splits.coverage import Coverage
from navsim_bridge.splits.scenes import SceneRecord

SELECTING = tuple(field.name for field in fields(SelectOptions))


@dataclass(frozen=True, kw_only=True)
class AgentOptions(SelectOptions):
    """Who drives."""

    agent: str  # dpvla, constant_velocity, stand_still, human, submission, or one of yours
    plugin: tuple[str, ...] = ()  # your modules (or .py files) that add agents, metrics, encoders, ...
    checkpoint: str | None = None  # dpvla: checkpoint or model directory
    submission: str | None = None  # submission: the submission.pkl, of NAVSIM v1 or v2, whose plans it drives
    batch_size: Count = 64  # dpvla: scenes planned together
    device: str = "auto"  # cpu, cuda, cuda:1, ...
    decoder: Decoder = "cpu"  # dpvla: what decodes JPEGs; nvjpeg: its GPU, which rounds pixels a little otherwise

    def check_agent(self, *further: str) -> None:
        """Raise ValueError when agent and options do not fit; ``further``: a tool's own options of the policy.

        A submission has ``samples``, too: its seeds.
        """
        from navsim_bridge.agents.policy_agent import PolicyAgent  # with torch, which options do not need

        agent = find_agent(self.agent)
        if agent is not SubmissionAgent:
            refuse_given(self, ["submission"], "--agent submission")
        elif not self.submission:
            raise ValueError("--agent submission needs --submission FILE")
        if agent is not PolicyAgent:
            its_own = ("samples",) if agent is SubmissionAgent else ()
            names = ["checkpoint", *(name for name in further if name not in its_own)]
            refuse_given(self, [*names, "batch_size", "decoder", *SELECTING], "--agent dpvla")
        elif not self.checkpoint:
            raise ValueError("--agent dpvla needs --checkpoint")
        self.selection()

    @property
    def planned_together(self) -> int:
        """Scenes whose plans may hang on each other in the last bit, as those of a policy do: its batches."""
        from navsim_bridge.agents.policy_agent import PolicyAgent

        return self.batch_size if find_agent(self.agent) is PolicyAgent else 1

    def opener(
        self, data_root: Path | str, device: str, seed: int = 0, omegas: Sequence[float] = (), samples: int = 1
    ) -> OpenAgent:
        """What opens the agent on ``device``, in this or another process.

        A policy's plans vary with ``seed``; ``omegas`` (none: its own) and ``samples`` are what it proposes plans from.
        """
        return OpenAgent(
            self.agent, self.plugin, self.checkpoint, Path(data_root), device, tuple(omegas), seed, self.batch_size,
            self.decoder, samples, self.selection(), self.submission,
        )  # fmt: skip

    def open_for(
        self, crew: Crew, data_root: Path | str, seed: int = 0, omegas: Sequence[float] = (), samples: int = 1
    ) -> AgentOfCrew:
        """The agent for each of a crew, which starts from the same weights while a run goes on and writes others.

        Arguments as of `opener`.

        Raises FileNotFoundError or ValueError when there is no such checkpoint, or its policy has no use for omega.
        """
        from navsim_bridge.agents.policy_agent import weights_path

        opener = self.opener(data_root, crew.device, seed, omegas, samples)
        if crew.is_alone:
            agent = opener()
            return AgentOfCrew.of(agent, lambda: agent)
        if self.checkpoint is not None:
            opener = replace(opener, checkpoint=weights_path(self.checkpoint))
        if opener.selection is not None:
            opener = replace(opener, selection=opener.selection.fixed())
        agent = replace(opener, device="cpu")()
        if isinstance(agent, SubmissionAgent):
            opener = replace(opener, submission_sha256=agent.sha256)
        return AgentOfCrew.of(agent, opener)


@dataclass(frozen=True)
class OpenAgent:
    """Opens an agent wherever it is called."""

    name: str
    plugin: tuple[str, ...]
    checkpoint: str | None
    data_root: Path
    device: str
    omegas: tuple[float, ...]  # that are asked for; none: what it was trained with
    seed: int
    batch_size: int
    decoder: Decoder = "cpu"
    samples: int = 1  # that it proposes for each omega
    selection: Selection | None = None  # instead: what the plan that it drives is chosen among
    submission: str | None = None  # the file whose plans it drives
    submission_sha256: str | None = None  # what it must have

    def __call__(self) -> Agent:
        """The agent; raises as `AgentOptions.open_for`."""
        from dpvla.device import usable_device
        from navsim_bridge.agents.policy_agent import PolicyAgent

        for module in self.plugin:
            import_plugin(module)
        agent: Agent = find_agent(self.name)
        if agent is SubmissionAgent:
            assert self.submission is not None
            return SubmissionAgent(self.submission, self.samples, self.submission_sha256)
        if agent is not PolicyAgent:
            return agent
        assert self.checkpoint is not None
        policy = PolicyAgent.from_checkpoint(
            self.checkpoint,
            self.data_root,
            usable_device(self.device),
            omega=self.omegas[0] if self.omegas else None,
            seed=self.seed,
            batch_size=self.batch_size,
            decoder=self.decoder,
        )
        policy.refuse_idle_omega()
        if self.selection is not None:
            from navsim_bridge.agents.selecting_agent import SelectingAgent

            return SelectingAgent.of(policy, self.selection)
        return policy.proposing_each(self.omegas, self.samples)


@dataclass(frozen=True)
class AgentOfCrew:
    """How each worker opens the agent, and what is known of it before."""

    open: Callable[[], Agent]
    cameras: tuple[str, ...]  # that it looks at
    guidance: float | None  # omega of a policy that is guided: the first that is asked for, or its own
    trained_with: float | None  # its own
    selection: dict[str, Any] | None = None  # what a result must say of the choice, where its plan is chosen
    tokens: frozenset[str] | None = None  # of the scenes that it has plans of; None: it plans for any
    submission: dict[str, str] | None = None  # what a result must say of the file that holds them

    @property
    def open_proposer(self) -> Callable[[], Proposer]:
        """``open`` of a policy or a submission, which also propose."""
        return cast("Callable[[], Proposer]", self.open)

    @classmethod
    def of(cls, agent: Agent, opener: Callable[[], Agent]) -> AgentOfCrew:
        """What ``opener`` opens, as ``agent`` tells it."""
        from navsim_bridge.agents.policy_agent import PolicyAgent

        if not isinstance(agent, PolicyAgent):
            file = (
                {"path": str(agent.path.resolve()), "sha256": agent.sha256}
                if isinstance(agent, SubmissionAgent)
                else None
            )
            tokens = getattr(agent, "tokens", None)
            return cls(opener, cameras_of(agent), None, None, tokens=tokens, submission=file)
        own = agent.policy.sampling.omega if agent.guidance is not None else None
        return cls(opener, agent.cameras, agent.guidance, own, agent.about_selection)

    def usable(
        self, records: Sequence[SceneRecord], part: Coverage, allow_missing: bool = False
    ) -> tuple[list[SceneRecord], Coverage]:
        """Those of ``records`` that it has plans of, and ``part``, how much of their split they are, without others.

        Raises ValueError for others unless ``allow_missing``, and where none is left.
        """
        if self.tokens is None:
            return list(records), part
        held = [r for r in records if r.token in self.tokens]
        lacking = [r.token for r in records if r.token not in self.tokens]
        who = self.submission["path"] if self.submission else "the agent"
        if lacking:
            found = f"{who} has no plans of {len(lacking)} of {len(records)} scenes, first {lacking[0]}"
            if not (allow_missing and held):
                other = "; ask for the rest with --allow-missing" if held else ""
                raise ValueError(f"{found}{other}")
            print(f"{found}; they are left out", file=sys.stderr)
        if extra := sorted(self.tokens.difference(r.token for r in records)):
            print(f"{who}: scenes that are not scored have plans, too: {len(extra)}, first {extra[0]}", file=sys.stderr)
        return held, part.without("missing_plans", len(lacking))


@dataclass(frozen=True, kw_only=True)
class SharedAgentOptions(AgentOptions):
    """Who drives, and how many of them share the scenes."""

    workers: Workers | None = None  # processes, on GPUs one each (0: one per GPU or core); default: 1, on Ray all
    executor: AnyExecutor = field(default_factory=ProcessesConfig)  # who runs the workers

    def crew(self) -> Crew:
        """Who shares the scenes, and where.

        Raises ValueError for a device that is not there, or a single GPU for several workers.
        """
        from dpvla.device import usable_device

        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise ValueError("start this without a launcher; --workers N shares the scenes among N processes or GPUs")
        local = self.executor.name == ProcessesConfig.name
        executor = make_executor(self.executor, (1 if local else 0) if self.workers is None else self.workers)
        if local and executor.workers == 1:
            return Crew(executor, str(usable_device(self.device)))
        kind, _, number = self.device.partition(":")
        if number:
            raise ValueError(f"--device {self.device} is one GPU, where each worker has its own: give --device {kind}")
        if kind not in ("auto", "cuda"):
            return Crew(executor, str(usable_device(self.device)))
        if kind == "cuda" and not executor.num_gpus:
            raise ValueError("--device cuda: there is no GPU; see tools/doctor.py")
        return Crew(executor, "cuda" if executor.num_gpus else "cpu")
