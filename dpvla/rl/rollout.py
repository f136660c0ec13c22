"""Roll-outs: encode scenes once, sample a group of plans for each, score them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from accelerate import Accelerator
from torch import Tensor
from tqdm import tqdm

from dpvla.batch import RewardFunction, SceneSource
from dpvla.models import DPVLA, SceneContext
from dpvla.rl.buffer import RolloutBuffer


def chunks(count: int, size: int) -> Iterator[range]:
    """Consecutive ranges of at most ``size`` covering ``range(count)``."""
    for start in range(0, count, size):
        yield range(start, min(start + size, count))


@torch.no_grad()
def encode_scenes(policy: DPVLA, source: SceneSource, indices: Sequence[int], accelerator: Accelerator) -> SceneContext:
    """Context of the scenes at ``indices``, in evaluation mode."""
    policy.eval()
    return policy.encode(source.batch(indices).to(accelerator.device))


@torch.no_grad()
def collect(
    policy: DPVLA,
    source: SceneSource,
    reward: RewardFunction,
    indices: Tensor,
    contexts: Callable[[range], SceneContext],
    *,
    cycle: int,
    group_size: int,
    omega: float,
    scenes_per_call: int,
    seed: int,
    progress: bool,
) -> RolloutBuffer:
    """Sample ``group_size`` plans for every scene with the current combined policy and score them.

    Args:
        indices: (scene,) positions in ``source``. contexts: gives the encoded scenes of a range of ``indices``.
        seed: of the sampler's noise; the same seed gives the same plans.
    """
    policy.eval()
    generator = torch.Generator().manual_seed(seed)  # on the CPU: the same plans on every device
    plans, scores = [], []
    bar = tqdm(total=len(indices), desc=f"cycle {cycle}: roll-outs", unit="scene", leave=False, disable=not progress)
    for rows in chunks(len(indices), scenes_per_call):
        sampled = policy.sample(contexts(rows), group_size, omega=omega, generator=generator).cpu()
        tokens = [source.tokens[i] for i in indices[rows.start : rows.stop].tolist()]
        scores.append({name: value.cpu() for name, value in reward(tokens, sampled).items()})
        plans.append(sampled)
        bar.update(len(rows))
    bar.close()
    together = {name: torch.cat([score[name] for score in scores]) for name in scores[0]}
    return RolloutBuffer(cycle, indices, torch.cat(plans), together)
