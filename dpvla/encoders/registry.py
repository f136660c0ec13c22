"""Encoders by name, and the former ways to write their configs."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

from dpvla.config import ConfigError, OneOf
from dpvla.encoders.config import AnyEncoderConfig
from dpvla.registry import Registry, look_up

if TYPE_CHECKING:
    from dpvla.encoders.encoder import Encoder

ENCODERS = Registry(
    "dpvla.encoders.encoder:Encoder",
    {
        "florence": "dpvla.encoders.config:FlorenceConfig",
        "timm": "dpvla.encoders.config:TimmConfig",
        "ego_status": "dpvla.encoders.config:EgoStatusConfig",
        "latent_transfuser": "dpvla.encoders.config:LatentTransfuserConfig",
    },
    florence="dpvla.encoders.florence:FlorenceEncoder",
    timm="dpvla.encoders.timm:TimmEncoder",
    ego_status="dpvla.encoders.ego_status:EgoStatusEncoder",
    latent_transfuser="dpvla.encoders.latent_transfuser:LatentTransfuserEncoder",
)


def encoder_class(config: AnyEncoderConfig) -> type[Encoder[Any]]:
    """The encoder that a config is of."""
    found: type[Encoder[Any]] = look_up(ENCODERS, config.name, "encoder")
    return found


OF_FLORENCE = {"revision", "views_in_text_encoder"}
OF_TIMM = {"pretrained", "stride", "width", "summary_width", "mixer_blocks", "mixer_heads", "options"}


def in_full(data: Mapping[str, Any]) -> Mapping[str, Any]:
    """A config as version 0.1.0 wrote it, in today's words.

    There ``name`` was ``timm:NETWORK``, ``florence:tiny``, a hub id or a directory, every encoder had the keys of all,
    and ``num_cameras`` stood for what is ``cameras`` now.
    """
    data = dict(data)
    whole = "num_cameras" in data  # all keys of then: what a checkpoint holds
    count = data.pop("num_cameras", 3)
    if count != 3:
        raise ConfigError(f"encoder.num_cameras {count!r} is gone: name the cameras, such as cameras: [front]")
    name = data.get("name")
    if not isinstance(name, str) or name in ENCODERS:
        return data
    if name.startswith("timm:"):
        data |= {"name": "timm", "network": name.removeprefix("timm:")}
        others = OF_FLORENCE
    elif name.startswith("florence:") or "/" in name or whole or os.path.isdir(name):
        data |= {"name": "florence", "source": name.removeprefix("florence:")}
        others = OF_TIMM
    else:
        return data  # one that is not registered
    return {key: value for key, value in data.items() if key not in others}


AnyEncoder = Annotated[AnyEncoderConfig, OneOf(ENCODERS, "encoder", in_full)]
"""Type of a config's field that holds an encoder's config."""
