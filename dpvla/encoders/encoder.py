"""What a scene encoder is.

To add one, write a module with two classes and one line::

    @dataclass(frozen=True)
    class MyConfig(EncoderConfig):
        name: str = "mine"              # the name it is registered under
        patch: Count = 16               # its own keys, each with a default and a comment for --help


    class MyEncoder(Encoder[MyConfig]):
        Config = MyConfig

        def __init__(self, config: MyConfig) -> None:
            super().__init__(config)
            self.token_width = 256
            ...

        def forward(self, batch: DrivingBatch) -> tuple[Tensor, Tensor | None]:
            ...


    ENCODERS["mine"] = MyEncoder        # dpvla.encoders.registry

and give every tool ``--plugin my_module``; pretraining chooses it with ``--model.encoder mine``. A checkpoint then
holds its config and its weights, and data are read as its ``sensors`` say. ``examples/encoder.py`` is such a module.
One that looks at no camera has a config of ``AnyEncoderConfig``: no image is read for it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar, Generic, TypeVar

import torch
from torch import Tensor, nn

from dpvla.batch import DrivingBatch, fake_batch
from dpvla.encoders.config import AnyEncoderConfig
from dpvla.files import short
from dpvla.registry import ContractError
from dpvla.sensors import Sensors

ConfigT = TypeVar("ConfigT", bound=AnyEncoderConfig)


class Encoder(nn.Module, ABC, Generic[ConfigT]):
    """Cameras, command and whatever else a batch holds to scene tokens, which the head attends to.

    The constructor takes the config and reads no files; released weights, if there are any, are the business of
    ``from_config``. Parameters and persistent buffers are saved by the policy. Where saved weights are to be read, it
    is called with parameters on the meta device; one that computes with them is called again with real ones, and
    takes their memory twice.
    """

    Config: ClassVar[type[AnyEncoderConfig]]
    token_width: int
    """Size of a token; the constructor sets it."""

    def __init__(self, config: ConfigT) -> None:
        super().__init__()
        self.config = config

    @classmethod
    def from_config(cls, config: ConfigT) -> Encoder[ConfigT]:
        """The encoder before training, with released weights where the config asks for them."""
        return cls(config)

    @classmethod
    def outline(cls, config: ConfigT) -> Encoder[ConfigT]:
        """The encoder with whatever weights, to count and plan with; neither network nor released weights."""
        return cls(config)

    @classmethod
    def from_architecture(cls, config: ConfigT, architecture: Any) -> Encoder[ConfigT]:
        """The encoder of a saved policy, whose weights are loaded afterwards; neither network nor released files.

        Args:
            architecture: what ``architecture`` of the saved one said.
        """
        if architecture is not None:
            raise TypeError(f"{cls.__name__} is described by its config alone, found more: {short(architecture, 80)}")
        return cls(config)

    def architecture(self) -> Any:
        """What ``from_architecture`` needs beside the config, as plain JSON values; None where that is all."""
        return None

    @property
    def sensors(self) -> Sensors:
        """What it looks at; images of ``forward`` are these."""
        return self.config.sensors

    @abstractmethod
    def forward(self, batch: DrivingBatch) -> tuple[Tensor, Tensor | None]:
        """Tokens (scene, token, token_width), and a mask (scene, token), True for real tokens; None where all are."""

    def repeated_layers(self) -> list[nn.Module]:
        """Layers that may be compiled, recomputed or sharded by themselves; each is called by its ``forward`` alone."""
        return []

    def fake_batch(self, scenes: int, generator: torch.Generator | None = None) -> DrivingBatch:
        """A batch that it can read and a policy can learn, made without data: for tests and measurements."""
        return fake_batch(self.sensors, scenes, generator)


def width_of(encoder: Encoder[Any]) -> int:
    """Its ``token_width``; raises ContractError where it has set none."""
    width = getattr(encoder, "token_width", None)
    if isinstance(width, bool) or not isinstance(width, int) or width < 1:
        raise ContractError(f"the encoder {encoder.config.name} must set token_width, a whole number, found {width!r}")
    return width


def tokens_of(encoder: Encoder[Any], batch: DrivingBatch) -> tuple[Tensor, Tensor | None]:
    """What ``forward`` gives; raises ContractError where that is not what this page says."""
    given, expected = encoder(batch), f"(scene, token, width) = ({len(batch)}, token, {encoder.token_width})"
    name = f"the encoder {encoder.config.name}"
    if not (isinstance(given, tuple) and len(given) == 2 and isinstance(given[0], Tensor)):
        raise ContractError(f"{name} gives a {type(given).__name__}, not tokens {expected} and a mask or None")
    tokens, mask = given
    if tokens.dim() != 3 or (len(tokens), tokens.shape[2]) != (len(batch), encoder.token_width):
        raise ContractError(f"{name} gives tokens {tuple(tokens.shape)}, not {expected}")
    if mask is not None and (mask.shape != tokens.shape[:2] or mask.dtype != torch.bool):
        raise ContractError(
            f"{name} gives a mask {tuple(mask.shape)} of {mask.dtype}, not (scene, token) = {tuple(tokens.shape[:2])} "
            "of torch.bool"
        )
    return tokens, mask
