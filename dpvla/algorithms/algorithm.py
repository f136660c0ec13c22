"""The contract of an RL algorithm for the action head, and how one is added.

One RL step: the encoder stays frozen; ``roll_out`` samples a group of plans for every scene of a cycle; a metric scores
them; ``targets`` turns scores into what the loss needs, such as advantages; ``loss`` is minimized for
``rollouts.epochs_per_cycle`` epochs; then the next cycle rolls out with the new weights. ``rl.stage`` does everything
else: schedule, cached tokens, buffer, several processes, exact resume, checkpoints.

To add one, write a file with a frozen ``Config`` (a subclass of ``AlgorithmConfig`` that sets ``name``) and an
``Algorithm``, and give it a name: ``ALGORITHMS["mine"] = "dpvla.algorithms.mine:Mine"`` in ``algorithms/registry.py``,
or ``ALGORITHMS["mine"] = Mine`` in a module of your own that ``--plugin my_module`` names. ``algorithms/dipole.py``
shows a whole one, ``examples/algorithm.py`` a small one to copy.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor, nn

from dpvla.algorithms.advantages import ZERO_SPREAD
from dpvla.algorithms.config import OMEGA, AlgorithmConfig
from dpvla.device import to_device
from dpvla.diffusion.samplers.sde import SDESolver
from dpvla.models import DPVLA, SceneContext
from dpvla.models.head import DiTHead
from dpvla.models.sampling import Sampling
from dpvla.random_rows import RandomRows


@dataclass(frozen=True)
class RolloutBatch:
    """Scenes of one update, each with its group of plans."""

    context: SceneContext  # of the frozen encoder
    roll_outs: Mapping[str, Tensor]  # what ``roll_out`` gave for these scenes: (scene, candidate, ...) each
    targets: Mapping[str, Tensor]  # what ``targets`` made of them: (scene, candidate, ...) each
    behavior: DiTHead | None = None  # the head that rolled out, frozen, where ``needs_behavior`` asks for it
    random: RandomRows | None = None  # each scene's own random numbers, for ``DPVLA.draw``
    weight: float = 1.0  # of this mean over scenes in the mean over processes: the stage's business

    def __len__(self) -> int:
        return len(self.context)

    def select(self, index: Tensor) -> RolloutBatch:
        """The scenes at ``index`` (int64 tensor on the CPU), in that order."""
        rows = to_device(index, self.context.device)
        return replace(
            self,
            context=self.context.select(rows),
            roll_outs={name: value[rows] for name, value in self.roll_outs.items()},
            targets={name: value[rows] for name, value in self.targets.items()},
            random=None if self.random is None else self.random.select(index.tolist()),
        )

    @property
    def plans(self) -> Tensor:
        """(scene, candidate, 8, 3) [m, m, rad], ego frame."""
        return self.roll_outs["plans"]


class Algorithm(ABC):
    """How roll-outs are made and what is learned from them. Holds no weights and no state of a run."""

    Config: ClassVar[type[AlgorithmConfig]]
    """Its hyperparameters."""
    adapters: ClassVar[tuple[str, ...]]
    """LoRA adapters that it trains, by name; () trains the whole head."""

    def __init__(self, config: AlgorithmConfig) -> None:
        self.config = config

    @abstractmethod
    def sampling(self) -> Sampling:
        """Which policies plans are sampled from, in roll-outs and later: saved beside the adapters, obeyed by all."""

    @property
    def omega(self) -> float:
        """Greediness of the combination of two policies: the config's, or where it has none 1."""
        given: float | None = getattr(self.config, "omega", None)
        return OMEGA if given is None else given

    @property
    def needs_behavior(self) -> bool:
        """Whether ``loss`` looks at the head that rolled out; the stage then keeps it, in checkpoints, too."""
        return False

    @property
    def learns_from_rewards(self) -> bool:
        """Whether rewards change what is learned, so that one that is the same for all plans is refused."""
        return True

    @property
    def spread_floor(self) -> float:
        """Standard deviation of a group's rewards below which it prefers nothing: that of the config, if it has one."""
        return getattr(self.config, "spread_floor", ZERO_SPREAD)

    def networks(self, policy: DPVLA) -> nn.Module | None:
        """What it trains beside the head, such as a critic, newly made; None: nothing.

        The stage puts it at ``policy.beside``, trains it with the adapters and goes on with it exactly. It is a run's
        own: neither exported nor taken over by another run.
        """
        return None

    def roll_out(
        self, policy: DPVLA, context: SceneContext, candidates: int, generator: RandomRows
    ) -> dict[str, Tensor]:
        """Sample for every scene; called without gradients, in eval mode.

        Args:
            context: the encoded scenes. candidates: plans of a scene.
            generator: the only source of randomness, on the CPU, with each scene's own numbers: what is drawn by its
                ``normal`` and ``uniform``, as ``DPVLA.sample`` does, is the same for any number of processes.

        Returns:
            ``plans`` (scene, candidate, 8, 3) and whatever else ``loss`` needs of how they were made, such as the
            denoising chain: (scene, candidate, ...) each.
        """
        kind = self.config.roll_out_sampler
        if kind == "ode":
            return {"plans": policy.sample(context, candidates, generator=generator)}
        steps = policy.sampling.num_steps or policy.config.diffusion.num_steps
        solver = SDESolver(policy.schedule, steps, kind)
        return {"plans": policy.sample_chain(context, candidates, solver, generator)[0]}

    @abstractmethod
    def targets(self, scores: Mapping[str, Tensor], roll_outs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What the loss needs of the scores, once a cycle.

        Args:
            scores: sub-scores of the metric by name, float64 (scene, candidate); ``score`` is the reward.
            roll_outs: what ``roll_out`` gave.

        Returns:
            (scene, candidate, ...) each.
        """

    def weights(self, targets: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What the plans of a cycle count for in ``loss``, by adapter: (scene, candidate) each, to be watched alone.

        {} where a loss has no weights. How many plans they are worth is logged as ``rl/ess_ADAPTER``.
        """
        return {}

    @abstractmethod
    def loss(self, policy: DPVLA, batch: RolloutBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of one update, a mean over its scenes, and scalars to log.

        Randomness comes from ``batch.random``: ``policy.draw(scenes, candidates, batch.random)``.
        """
