"""Roll-outs: a group of plans for every scene of a cycle, made by the algorithm, scored by the reward."""

from __future__ import annotations

import torch
from torch import Tensor
from tqdm import tqdm

from dpvla.algorithms.algorithm import Algorithm
from dpvla.batch import RewardFunction, SceneSource
from dpvla.models import DPVLA
from dpvla.random_rows import RandomRows
from dpvla.rl.buffer import RolloutBuffer
from dpvla.rl.checks import check_roll_outs
from dpvla.rl.time_split import TimeSplit
from dpvla.rl.token_cache import TokenCache
from dpvla.rl.watching import Watch


@torch.no_grad()
def collect(
    algorithm: Algorithm,
    policy: DPVLA,
    tokens: TokenCache,
    source: SceneSource,
    reward: RewardFunction,
    *,
    cycle: int,
    group_size: int,
    seed: int,
    progress: bool,
    watch: Watch | None = None,
    spent: TimeSplit | None = None,
) -> RolloutBuffer:
    """Let ``algorithm`` make ``group_size`` plans for every scene of ``tokens``, and score them.

    ``seed``: with a scene's number in the source, it decides what is drawn for the scene. ``watch`` looks at what was
    made; ``spent`` takes the time. Raises ContractError where what the algorithm gives cannot be used.
    """
    policy.eval()
    spent = spent or TimeSplit()
    made: list[dict[str, Tensor]] = []
    scored: list[dict[str, Tensor]] = []
    indices = tokens.indices
    title = f"cycle {cycle}: roll-outs"
    with tqdm(total=len(indices), desc=title, unit="scene", leave=False, disable=not progress) as bar:
        for rows, context in tokens.portions():
            spent.lap("encode")
            scenes = indices[rows.start : rows.stop].tolist()
            with policy.autocast():
                roll_outs = algorithm.roll_out(policy, context, group_size, RandomRows.of(scenes, seed))
            check_roll_outs(algorithm, roll_outs, len(rows), group_size)
            made.append({name: value.cpu() for name, value in roll_outs.items()})
            spent.lap("sample")
            names = [source.tokens[i] for i in scenes]
            scored.append({name: value.cpu() for name, value in reward(names, made[-1]["plans"]).items()})
            spent.lap("score")
            if watch is not None:
                watch.look(policy, context, scenes, names, made[-1]["plans"], scored[-1], reward)
                spent.lap("watch")
            bar.update(len(rows))
    return RolloutBuffer(cycle, indices, _joined(made), _joined(scored))


def _joined(parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
