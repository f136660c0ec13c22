"""What a driving policy is: an encoder, a head that makes plans of its tokens, and the files both are kept in.

To add one, write a module with three classes and two lines::

    @dataclass(frozen=True)
    class MyConfig(AnyHeadConfig):
        name: str = "mine"              # the name it is registered under
        width: Size = 256               # its own keys, each with a default and a comment for --help


    class MyPolicy(DrivingPolicy):
        Config = MyConfig

        def __init__(self, config: DPVLAConfig, encoder: Encoder[Any]) -> None:
            super().__init__(config, encoder)
            self.head = MyHead(config.head, width_of(encoder))

        def imitation_loss(self, batch, draws=1, generator=None): ...

        def sample_each(self, context, draws): ...


    HEADS["mine"] = MyHead              # dpvla.models.registry: a network with ``Config = MyConfig``
    POLICIES["mine"] = MyPolicy         # dpvla.models.policies

and give every tool ``--plugin my_module``; pretraining chooses it with ``--model.head mine``. Pretraining, evaluation
and submissions take any; what fine-tunes by RL, or chooses among sampled plans, needs a ``DPVLA``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn

from dpvla.batch import DrivingBatch
from dpvla.config import ConfigError
from dpvla.encoders.encoder import Encoder, tokens_of
from dpvla.encoders.registry import encoder_class
from dpvla.layers.adaptable import AdaptableLinear
from dpvla.models.config import DPVLAConfig
from dpvla.models.head_configs import AnyHeadConfig
from dpvla.models.policy_files import PolicyFiles
from dpvla.models.sampling import Sampling
from dpvla.models.scene_context import SceneContext
from dpvla.plan import NUM_POSES
from dpvla.precision import Precision, computing_in
from dpvla.random_rows import normal
from dpvla.tensors import empty_parameters, materialize, state_of

COMPUTES_WITH_WEIGHTS = (RuntimeError, TypeError)
"""What torch raises in an encoder whose constructor computes with its weights, where they are on the meta device: it is
made with real ones."""
ADAPTER_WEIGHTS = ("adapter_down", "adapter_up")
Policy = TypeVar("Policy", bound="DrivingPolicy")


class DrivingPolicy(nn.Module, ABC):
    """Images, command and ego state to plans.

    Call it through its methods. What is trained under DistributedDataParallel is a small module around it whose
    ``forward`` is the loss (``training.imitation``, ``rl.stage``), so that gradients are synchronized.
    """

    Config: ClassVar[type[AnyHeadConfig]]
    noise_channels: int
    """Of the noise (8, channel) that a plan is made from; 0: a scene has one plan."""
    head: nn.Module
    sampling: Sampling
    """What ``sample`` combines where it is not told otherwise; saved and restored with the adapters."""
    precision: Precision
    """What ``encode`` and ``sample`` compute in, as training did; saved and restored with the weights."""

    def __init__(self, config: DPVLAConfig, encoder: Encoder[Any]) -> None:
        super().__init__()
        self.config = config
        self.encoder = encoder
        self.encoder_frozen = False
        self.sampling = Sampling()
        self.precision = "no"

    # ------------------------------------------------------------------ building, saving, loading

    @classmethod
    def from_config(cls: type[Policy], config: DPVLAConfig) -> Policy:
        """A policy before training; the encoder starts from released weights where the config says so."""
        cls.require(config, "the config")
        return cls(config, encoder_class(config.encoder).from_config(config.encoder))

    @classmethod
    def require(cls, config: DPVLAConfig, where: object) -> None:
        """Raise ConfigError where a config is of a policy with another head."""
        if not isinstance(config.head, cls.Config):
            raise ConfigError(
                f"{where}: its head is {config.head.name}, and another is needed here: RL, selectors and samples work "
                "on plans that are drawn, with the head diffusion"
            )

    def save_pretrained(self, directory: Path | str) -> None:
        """Write ``config.json`` and ``model.safetensors``: weights and plan statistics, no adapters; atomic."""
        saved = PolicyFiles(Path(directory), self.config, self.encoder.architecture(), self.precision)
        saved.write(self._base_state())

    @classmethod
    def from_pretrained(
        cls: type[Policy], directory: Path | str, device: torch.device | str = "cpu", config: DPVLAConfig | None = None
    ) -> Policy:
        """Read what ``save_pretrained`` wrote, in eval mode. Needs no network, even for a Florence encoder.

        Args:
            config: what the policy shall be instead of what was saved; only loss and sampler may differ.

        Raises:
            FileNotFoundError, ValueError: files are missing, damaged, not finite or do not fit each other, or are of a
                policy that is none of these.
        """
        saved = PolicyFiles.read(directory, config)
        cls.require(saved.config, directory)
        with saved.describing():
            policy = cls._empty(saved)
        materialize(policy, device)
        saved.read_into(policy._base_state())
        policy.precision = saved.precision
        return policy.eval()

    @classmethod
    def _empty(cls: type[Policy], saved: PolicyFiles) -> Policy:
        """The policy of these files before its weights: memory is taken when they are read, and nothing is drawn.

        A config of a stranger may ask for any size: it is first held against the tensors that there are.
        """
        with torch.random.fork_rng(devices=[]):
            try:
                with torch.device("meta"):
                    outline = cls(saved.config, saved.encoder())
            except COMPUTES_WITH_WEIGHTS:
                return cls(saved.config, saved.encoder())
            saved.require_same(outline._base_state())
            try:
                with empty_parameters():
                    return cls(saved.config, saved.encoder())
            except COMPUTES_WITH_WEIGHTS:
                return cls(saved.config, saved.encoder())

    def _base_state(self) -> dict[str, Tensor]:
        kept = state_of(self).items()
        return {key: t for key, t in kept if not key.endswith(ADAPTER_WEIGHTS) and not key.startswith("beside.")}

    # ------------------------------------------------------------------ what a head may have

    @property
    def adapters(self) -> tuple[str, ...]:
        """Names of those that the head carries."""
        return ()

    @property
    def has_adapters(self) -> bool:
        """Whether the head carries any."""
        return bool(self.adapters)

    def adapter_parameters(self) -> list[nn.Parameter]:
        """Parameters of all adapters, stacked by layer, for one optimizer."""
        return []

    def head_layers(self) -> list[nn.Module]:
        """Layers of the head that may be compiled, recomputed or sharded alone, as ``Encoder.repeated_layers``."""
        return []

    def fit(self, plans: Tensor, ego_status: Tensor) -> None:
        """Take from the training split what is needed before the first update, from all its plans (scene, 8, 3) and ego
        states (scene, 4); nothing, unless a policy says otherwise."""

    def assume_fitted(self) -> None:
        """Do without ``fit``, where only shapes matter."""

    # ------------------------------------------------------------------ training

    def train(self: Policy, mode: bool = True) -> Policy:
        """Training mode, except for a frozen encoder."""
        super().train(mode)
        if self.encoder_frozen:
            self.encoder.eval()
        return self

    def autocast(self) -> AbstractContextManager[None]:
        """Inside, its networks compute in ``precision``."""
        return computing_in(self.precision, next(self.parameters()).device)

    def hold_frozen(self) -> None:
        """Keep weights that are not trained in what autocast casts them to at every use: same plans, half the memory.

        Those are the weights of linear layers and convolutions; norms, embeddings and biases stay in float32, and so
        does all where ``precision`` is no autocast. Saved afterwards, these weights are rounded: keep their file.
        """
        if self.precision != "bf16":
            return
        for _, part in cast_by_autocast(self):
            if not part.weight.requires_grad:
                part.weight = nn.Parameter(part.weight.detach().to(torch.bfloat16), requires_grad=False)

    def encode(self, batch: DrivingBatch) -> SceneContext:
        """Run the encoder once a scene. Without gradients when it is frozen."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.encoder_frozen), self.autocast():
            tokens, mask = tokens_of(self.encoder, batch)
        return SceneContext(tokens, mask, batch.command, batch.ego_status.float(), batch.history.float())

    @abstractmethod
    def imitation_loss(
        self, batch: DrivingBatch, draws: int = 1, generator: torch.Generator | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss on the recorded plans, and numbers to note; the encoder runs once.

        Args:
            draws: of noise a scene, where plans are made from noise.
            generator: of the noise, by default the batch's own ``random``.
        """

    # ------------------------------------------------------------------ plans

    @torch.no_grad()
    def sample(
        self,
        context: SceneContext,
        num_candidates: int,
        omega: float | None = None,
        generator: torch.Generator | None = None,
        noise: Tensor | None = None,
        sampling: Sampling | None = None,
    ) -> Tensor:
        """Plans ``(scene, num_candidates, 8, 3)`` from the combination of policies (paper Alg. 2), or from one.

        Args:
            omega: instead of that of the policy's own ``sampling``.
            noise: (scene, num_candidates, 8, channel), instead of the generator's.
            sampling: instead of the policy's own; ``Sampling()`` is the head without adapters.

        Combination and solver run in float32.
        """
        shape = (len(context), num_candidates, NUM_POSES, self.noise_channels)
        if noise is None:
            noise = normal(shape, generator, context.device)
        elif tuple(noise.shape) != shape:
            raise ValueError(f"noise has shape {tuple(noise.shape)}, expected {shape}")
        sampling = self.sampling if sampling is None else sampling
        sampling = sampling if omega is None else replace(sampling, omega=omega)
        return next(self.sample_each(context, [(sampling, noise)]))

    @abstractmethod
    def sample_each(self, context: SceneContext, draws: Iterable[tuple[Sampling, Tensor]]) -> Iterator[Tensor]:
        """What ``sample`` gives for each sampling and its noise (scene, candidate, 8, channel), to the bit; without
        gradients."""


def recorded_plans(batch: DrivingBatch) -> Tensor:
    """(scene, 8, 3) what is imitated. Raises ValueError where a batch has no plans."""
    if batch.plan is None:
        raise ValueError(f"imitation needs recorded plans; scene {batch.tokens[0]} and its batch have none")
    return batch.plan


def cast_by_autocast(module: nn.Module) -> Iterator[tuple[str, nn.Linear | nn.Conv2d]]:
    """Layers, by name, of whose weights autocast computes with nothing but what it casts them to."""
    for name, part in module.named_modules():
        plain = type(part) in (nn.Linear, nn.Conv2d, AdaptableLinear)  # others may do more with their weights
        if plain and isinstance(part, nn.Linear | nn.Conv2d):
            yield name, part
