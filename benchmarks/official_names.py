"""What official JAX agents call their networks, options and losses; released_agent.py compares ours with them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

from dpvla.state_based.agents.agent import Agent

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Official:
    """How an official agent's names are ours."""

    networks: Mapping[str, tuple[str, str, int | None]]  # module: our stack, the name inside, which member (None: all)
    options: Mapping[str, str | Callable[[Any], Any]]  # of its config: our option, or what is made of our config
    losses: Mapping[str, str]  # parts of the loss: ours
    draws: tuple[int, ...] = ()  # which of the normal numbers it draws in an update are ours, in our order
    uniforms: tuple[int, ...] = ()
    acting: Callable[[Any], dict[str, Any]] = field(default=lambda config: {})  # arguments of sample_actions
    updates: int = 40


VALUES = {
    "critic": ("values.critic.online", "value_net", None),
    "target_critic": ("values.critic.target", "value_net", None),
    "value": ("values.value", "value_net", 0),
}
CRITIC = {name: (ours.removeprefix("values."), inside, member) for name, (ours, inside, member) in VALUES.items()}
CRITIC.pop("value")
COMMON: dict[str, str | Callable[[Any], Any]] = {
    "batch_size": "batch_size", "actor_hidden_dims": "hidden", "value_hidden_dims": "hidden", "discount": "discount",
    "tau": "target_rate",
}  # fmt: skip
VALUE_LOSSES = {"value/value_loss": "value/loss", "critic/critic_loss": "critic/loss"}


def q_agg(config: Any) -> str:
    """The FQL code's word for ``clip_q``."""
    return "min" if config.clip_q else "mean"


OFFICIAL = {
    "dipole": Official(
        VALUES | {"actor_flow_pos": ("policies", "mlp", 0), "actor_flow_neg": ("policies", "mlp", 1)},
        COMMON
        | {"expectile": "expectile", "num_samples": "samples", "flow_steps": "flow_steps", "beta": "beta", "k": "shift",
           "q_agg": q_agg, "cfg_fortrain": lambda config: 1 + config.next_omega,
           "num_samples_fortrain": lambda config: max(1, config.next_samples)},
        {"value/loss": "value/loss", "critic/loss": "critic/loss"},
        draws=(0, 1),  # numbers 2 (and of the uniform ones 1) are those of 1 (0) again, for the negative policy
        uniforms=(0,),
        acting=lambda config: {"cfg": 1 + config.omega},
        updates=20,
    ),
    "iql": Official(
        VALUES | {"actor": ("policy", "actor_net", 0)},
        COMMON | {"expectile": "expectile", "alpha": "alpha"},
        VALUE_LOSSES | {"actor/actor_loss": "actor/loss"},
    ),
    "ifql": Official(
        VALUES | {"actor_flow": ("policy.network", "mlp", 0)},
        COMMON | {"expectile": "expectile", "num_samples": "samples", "flow_steps": "flow_steps"},
        VALUE_LOSSES | {"actor/actor_loss": "actor/flow"},
        draws=(0,),
        uniforms=(0,),
    ),
    "fql": Official(
        CRITIC | {"actor_bc_flow": ("flow.network", "mlp", 0), "actor_onestep_flow": ("policy", "mlp", 0)},
        COMMON | {"alpha": "alpha", "q_agg": q_agg, "normalize_q_loss": "normalize_q", "flow_steps": "flow_steps"},
        {"critic/critic_loss": "critic/loss", "actor/bc_flow_loss": "actor/flow",
         "actor/distill_loss": "actor/distillation"},
        draws=(0, 1, 2),
        uniforms=(0,),
    ),
    "rebrac": Official(
        CRITIC | {"actor": ("policy", "actor_net", 0), "target_actor": ("target_policy", "actor_net", 0)},
        COMMON
        | {"alpha_actor": "alpha_actor", "alpha_critic": "alpha_critic", "actor_noise": "noise",
           "actor_noise_clip": "noise_clip", "actor_freq": "actor_every"},
        {"critic/critic_loss": "critic/loss"},
        draws=(0,),
    ),
    "cfgrl": Official(
        VALUES | {"actor_flow": ("policy", "mlp", 0), "is_positive_embedding": ("labels", "Embed_0", 0)},
        COMMON
        | {"expectile": "expectile", "flow_steps": "flow_steps", "adv_threshold": "threshold",
           "cfg": lambda config: 1 + config.omega},
        VALUE_LOSSES | {"actor/actor_loss": "actor/flow"},
        draws=(0,),
        uniforms=(0, 1),
    ),
}  # fmt: skip


def official_names(agent: Agent, tensors: Mapping[str, Tensor], official: Official) -> Arrays:
    """Our tensors (weights or gradients of one seed) under the official agent's names and in its shapes."""
    found: Arrays = {}
    for module, (stack, inside, member) in official.networks.items():
        for name, tensor in tensors.items():
            if not (name == stack or name.startswith(f"{stack}.")):
                continue
            array = tensor.detach().numpy()
            array = array if member is None else array[member]
            *_, layer, number, what = ["", *name.split(".")] if name != stack else ["", "", "embedding"]
            if what == "embedding":
                found[f"modules_{module}/{inside}/embedding"] = array
                continue
            if what != "weight":  # a row of its own in ours
                array = array[..., 0, :]
            elif (
                module == "actor_flow" and number == "0" and "Embed_0" in {n for _, n, _ in official.networks.values()}
            ):
                array = _labels_second(agent, array)
            if layer in ("layers", "norms"):
                kind = "Dense" if layer == "layers" else "LayerNorm"
                group = f"{inside}/{kind}_{number}"
            elif inside == "actor_net":
                group = "mean_net"
            else:
                group = f"{inside}/Dense_{len(agent.config.hidden)}"
            key = {"weight": "kernel", "gain": "scale"}.get(what, what)
            found[f"modules_{module}/{group}/{key}"] = array
    return found


def _labels_second(agent: Agent, kernel: np.ndarray) -> np.ndarray:
    """CFGRL's first layer: ours takes (s, x, t, label), the official one (s, label, x, t)."""
    s, x = agent.observation_dim, agent.observation_dim + agent.action_dim + 1
    return np.concatenate((kernel[:s], kernel[x:], kernel[s:x]))
