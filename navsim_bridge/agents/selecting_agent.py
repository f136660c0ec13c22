"""A policy that drives the best of several plans, as a trained selector sees it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from dpvla.selector.selector import Selector, find_selector, selector_hash
from navsim_bridge.agents.policy_agent import PolicyAgent, Source
from navsim_bridge.agents.selection import Selection

if TYPE_CHECKING:
    from dpvla.models import SceneContext
    from dpvla.models.sampling import Sampling


class SelectingAgent(PolicyAgent):
    """Looks at a scene once, samples a plan from each of ``sources``, and drives the one that is predicted to be best.

    As a proposer it gives that one first, and then all that it was chosen among.
    """

    selector: Selector
    folder: Path
    """Where it lies."""

    @classmethod
    def of(cls, agent: PolicyAgent, selection: Selection) -> SelectingAgent:
        """``agent`` with a selector, which is read.

        Raises SelectorError, FileNotFoundError or ValueError: there is no such selector, it is damaged, reads another
        encoder's tokens, or there is nothing to propose plans from.
        """
        agent.require_draws(f"--select {selection.count}")
        folder = find_selector(selection.selector)
        made = cls.__new__(cls)
        made.__dict__.update(agent.__dict__)
        made._sources = tuple(sources_of(agent, selection))
        made.folder = folder
        made.selector = Selector.from_pretrained(folder, next(agent.policy.parameters()).device)
        made.selector.refuse_other_encoder(agent.policy, str(folder))
        return made

    @property
    def about_selection(self) -> dict[str, Any]:
        """Among what it is chosen, by which selector, and what that was trained to predict."""
        shares: dict[str, int] = {}
        for source in self.sources:
            shares[_named(source.sampling)] = shares.get(_named(source.sampling), 0) + 1
        return {
            "plans_per_scene": len(self.sources),
            "sources": shares,
            "selector": str(self.folder.resolve()),
            "selector_sha256": selector_hash(self.folder),
            "predicts": dict(self.selector.rule.about),
        }

    @property
    def _driving(self) -> Sequence[Source]:
        return self.sources

    def require_finite(self, plans: NDArray[Any], candidate: int) -> None:
        """As of any proposer; candidate 0 is the chosen one."""
        super().require_finite(plans, max(0, candidate - 1))

    def _offered(self, context: SceneContext, plans: Tensor) -> Tensor:
        chosen = self.selector.choose(context, plans)
        best = plans[torch.arange(len(plans), device=plans.device), chosen]
        return torch.cat([best[:, None], plans], dim=1)


def sources_of(agent: PolicyAgent, selection: Selection) -> list[Source]:
    """What plans are proposed from, in equal shares of ``selection.count``, the first ones getting what is over.

    Samples of one source are numbered from 0 on; the first plan is the one that is driven where nothing is chosen, if
    plans come from the policy as it is sampled.

    Raises ValueError: the policy has not what is asked for, or there are more sources than plans.
    """
    samplings: list[Sampling] = []
    own, adapters = agent.sampling, agent.policy.adapters
    for what in selection.proposed_by:
        if what == "own":
            if selection.omegas and not own.is_guided:
                raise ValueError("--select-omegas has nothing to combine: the checkpoint has no adapters to guide with")
            samplings += [replace(own, omega=omega) for omega in selection.omegas] or [own]
        elif not adapters:
            raise ValueError(f"--select-from {what}: the checkpoint has no adapters, so all of its plans are its own")
        elif what == "base":
            samplings.append(replace(own, policies=(None,), omega=0.0))
        else:
            samplings += [replace(own, policies=(name,), omega=0.0) for name in adapters]
    samplings = list(dict.fromkeys(samplings))
    if len(samplings) > selection.count:
        raise ValueError(f"--select {selection.count} cannot be shared by {len(samplings)} sources of plans: give more")
    least, over = divmod(selection.count, len(samplings))
    return [
        Source(sampling, sample) for place, sampling in enumerate(samplings) for sample in range(least + (place < over))
    ]


def _named(sampling: Sampling) -> str:
    """'positive, negative with omega 1', 'base'."""
    names = ", ".join("base" if name is None else name for name in sampling.policies)
    return f"{names} with omega {sampling.omega:g}" if sampling.is_guided else names
