"""Where a run departs from the paper's protocol, and its agent from released code."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from dpvla.state_based.agents.config import AgentConfig
from dpvla.state_based.agents.recipes import changed, load_recipe
from dpvla.state_based.running.config import StateBasedConfig, evaluation_episodes, parse_options
from dpvla.state_based.running.loop_config import STATE_BASED_LOOP
from dpvla.state_based.running.paper_tables import OFFLINE_STEPS, ONLINE_STEPS, in_the_paper, read_table
from dpvla.state_based.running.tasks import Task, canonical_name


def deviations(
    config: StateBasedConfig,
    task: Task,
    recipe: AgentConfig,
    data: Mapping[str, Any],
    resumed: Sequence[Mapping[str, Any]] = (),
) -> list[str]:
    """Where a run departs from the paper's protocol and its agent from released code, in words; empty: nowhere known.

    Args:
        data: what ``OfflineData.about`` says.
        resumed: ``run.yaml``'s entries of a run that went on, with the options that changed there.
    """
    found = list(_protocol_deviations(config, task, recipe))
    if data["origin"] != "official":
        found.append(f"data: {data['origin']}")
    if data.get("success_timing") == "post":
        found.append("success timing of ogbench before 1.2.0")
    for entry in resumed:
        changed = {name: values for name, values in entry["changed"].items() if name not in ("steps", "online_steps")}
        found += [f"{name} {old} until update {entry['step']}, then {new}" for name, (old, new) in changed.items()]
    if "packages_at_start" in data:
        found.append("begun with other versions of the simulators")
    return found


def _protocol_deviations(config: StateBasedConfig, task: Task, recipe: AgentConfig) -> Iterator[str]:
    online = read_table("3").options_of(canonical_name(task), config.agent) if config.online_steps else ()
    recipe_of_task = load_recipe(config.agent, task.name, config.reading)
    standard = changed(recipe_of_task, parse_options(online), "the table's options")
    expected = [
        ("steps", config.steps, OFFLINE_STEPS),
        ("online_steps", config.online_steps, ONLINE_STEPS if config.online_steps else 0),
        ("evaluation episodes", evaluation_episodes(config, task), task.episodes),
        ("lr", config.loop.lr, STATE_BASED_LOOP.lr),
        ("lr_schedule", config.loop.lr_schedule, STATE_BASED_LOOP.lr_schedule),
        ("warmup_steps", config.loop.warmup_steps, STATE_BASED_LOOP.warmup_steps),
        ("weight_decay", config.loop.weight_decay, STATE_BASED_LOOP.weight_decay),
        ("adam_betas", config.loop.adam_betas, STATE_BASED_LOOP.adam_betas),
    ]
    for own in dataclasses.fields(standard):
        expected.append((own.name, getattr(recipe, own.name), getattr(standard, own.name)))
    for name, here, there in expected:
        if here != there:
            yield f"{name} {here} instead of {there}"
    if config.rows:
        yield f"about {config.rows} recorded rows"
    if not in_the_paper(canonical_name(task), config.agent):
        yield f"no table of the paper has {config.agent} on {task.name}"
    yield from (f"{config.agent}: {difference}" for difference in recipe.differences(task.benchmark))
