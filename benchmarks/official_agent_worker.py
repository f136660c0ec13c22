"""Updates of an official JAX agent from given weights and batches; started by released_agent.py, in a Python with JAX.

    python official_agent_worker.py JOB REPO AGENT_FILE

``REPO`` is the checkout whose ``utils`` the agent's file imports. ``JOB`` holds ``job.json`` and ``given.npz``; for
each update this writes ``update_N.npz`` there: the loss and its parts, every network's gradient, and what was drawn at
random, in the order it was asked for. ``end.npz`` has the last weights, targets included, and actions. The agent's own
functions stay uncompiled inside one compiled update, so that what they draw and return on their way can be given out.
No code of those agents is in this file.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

Arrays = dict[str, Any]


class Record:
    """What was drawn, in order: ``normal/0``, ``normal/1``, ..., ``uniform/0``, ..."""

    def __init__(self) -> None:
        self.arrays: Arrays = {}

    def add(self, kind: str, array: Any) -> None:
        """Keep one more array of a kind."""
        number = sum(name.startswith(f"{kind}/") for name in self.arrays)
        self.arrays[f"{kind}/{number}"] = array

    @contextmanager
    def listening(self) -> Iterator[None]:
        """While inside, everything drawn through ``jax.random`` is kept."""
        import jax

        kept = {name: getattr(jax.random, name) for name in ("normal", "uniform", "bernoulli")}

        def drawing(name: str) -> Any:
            def draw(*arguments: Any, **named: Any) -> Any:
                drawn = kept[name](*arguments, **named)
                self.add(name, drawn)
                return drawn

            return draw

        def bernoulli(key: Any, p: Any = 0.5, shape: Any = None) -> Any:
            return drawing("uniform")(key, shape) < p

        jax.random.normal, jax.random.uniform, jax.random.bernoulli = drawing("normal"), drawing("uniform"), bernoulli
        try:
            yield
        finally:
            for name, function in kept.items():
                setattr(jax.random, name, function)


def flat(tree: Mapping[str, Any], prefix: str = "") -> Arrays:
    """A tree of parameters by dotted path, with slashes."""
    found: Arrays = {}
    for name, value in tree.items():
        found |= flat(value, f"{prefix}{name}/") if isinstance(value, Mapping) else {prefix + name: value}
    return found


def tree_of(arrays: Mapping[str, Any], like: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of ``flat``; names and shapes must be those of ``like``."""
    import jax.numpy as jnp

    expected, given = ({name: np.shape(array) for name, array in found.items()} for found in (flat(like), arrays))
    if expected != given:
        differing = sorted(set(expected.items()) ^ set(given.items()))
        raise SystemExit(f"error: the networks are others: {differing[:4]}")
    root: dict[str, Any] = {}
    for path, array in arrays.items():
        *groups, last = path.split("/")
        inside = root
        for group in groups:
            inside = inside.setdefault(group, {})
        inside[last] = jnp.asarray(array)
    return root


def load(path: str) -> Any:
    """The module of a file, whose functions are not compiled one by one."""
    import jax

    specification = importlib.util.spec_from_file_location("official_agent", path)
    assert specification is not None and specification.loader is not None
    module, compiling = importlib.util.module_from_spec(specification), jax.jit
    jax.jit = lambda function, **_: function
    try:
        specification.loader.exec_module(module)
    finally:
        jax.jit = compiling
    return module


def main() -> None:
    """All updates of the job."""
    job, repo, file = Path(sys.argv[1]), *sys.argv[2:4]
    asked = json.loads((job / "job.json").read_text())
    sys.path.insert(0, repo)
    import jax

    jax.config.update("jax_enable_x64", asked["bits"] == 64)
    module = load(file)
    kind = next(value for key, value in vars(module).items() if key.endswith("Agent") and hasattr(value, "create"))
    with np.load(job / "given.npz") as given:
        arrays = {name: given[name] for name in given.files}
    batches = {name[6:]: array for name, array in arrays.items() if name.startswith("batch/")}
    weights = {name[8:]: array for name, array in arrays.items() if name.startswith("weights/")}
    config = module.get_config()
    for name, value in asked["config"].items():
        if name not in config:
            raise SystemExit(f"error: {file} has no option {name}")
        config[name] = tuple(value) if isinstance(value, list) else value
    first = {name: array[0, :1] for name, array in batches.items()}
    examples = (first,) if asked["agent"] == "cfgrl" else (first["observations"], first["actions"])
    agent = kind.create(0, *examples, config)
    params = tree_of(weights, agent.network.params)
    agent = agent.replace(network=agent.network.replace(params=params, opt_state=agent.network.tx.init(params)))

    record = Record()
    note_calls(kind, type(agent.network), record)

    def update(agent: Any, batch: Any, options: tuple[tuple[str, Any], ...]) -> tuple[Any, Arrays]:
        loss, _ = agent.total_loss(batch, None, rng=jax.random.split(agent.rng)[1], **dict(options))
        record.arrays = {}
        with record.listening():
            updated, info = agent.update(batch, **dict(options))
        if "next_actions/0" in record.arrays:
            record.add("target", td_target(agent, batch, record.arrays["next_actions/0"], config))
        parts = {f"part/{name}": value for name, value in info.items() if name.endswith("loss")}
        return updated, {"loss": loss, **parts, **record.arrays}

    def act(agent: Any, observation: Any, seed: Any) -> Arrays:
        record.arrays = {}
        with record.listening():
            action = agent.sample_actions(observation, seed=seed, **asked["acting"])
        return {"action/0": action, **record.arrays}

    compiled = jax.jit(update, static_argnums=2)
    for number in range(asked["updates"]):
        options = (("full_update", (number + 1) % config["actor_freq"] == 0),) if "actor_freq" in config else ()
        agent, told = compiled(agent, {name: array[number] for name, array in batches.items()}, options)
        kept: Any = {name: np.asarray(array) for name, array in told.items()}
        np.savez(job / f"update_{number}.npz", **kept)
    acting, end = jax.jit(act), Record()
    for row, observation in enumerate(arrays["observations"]):
        for name, array in acting(agent, observation, jax.random.PRNGKey(row)).items():
            end.add(name.split("/")[0], np.asarray(array))
    weights = {f"weights/{name}": np.asarray(array) for name, array in flat(agent.network.params).items()}
    np.savez(job / "end.npz", **weights, **end.arrays)


def td_target(agent: Any, batch: Mapping[str, Any], next_actions: Any, config: Any) -> Any:
    """What both Qs of DIPOLE learn, (2, row): of the actions that the agent has drawn for it."""
    q = agent.network.select("target_critic")(batch["next_observations"], actions=next_actions)
    return batch["rewards"] + config["discount"] * batch["masks"] * q


def note_calls(kind: Any, state: Any, record: Record) -> None:
    """Keep the gradients that reach the optimizer, and DIPOLE's actions of the TD target."""
    step = state.apply_gradients

    def apply_gradients(self: Any, grads: Any, **named: Any) -> Any:
        for name, gradient in flat(grads).items():
            record.arrays[f"gradient/{name}"] = gradient
        return step(self, grads, **named)

    state.apply_gradients = apply_gradients
    if not hasattr(kind, "sample_actions_fortrain"):
        return
    sample = kind.sample_actions_fortrain

    def noted(self: Any, *arguments: Any, **named: Any) -> Any:
        actions = sample(self, *arguments, **named)
        record.add("next_actions", actions)
        return actions

    kind.sample_actions_fortrain = noted


if __name__ == "__main__":
    main()
