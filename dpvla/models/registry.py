"""Heads by name: what makes plans of an encoder's tokens. Which policy a head belongs to, ``policies`` says."""

from __future__ import annotations

from typing import Annotated

from dpvla.config import OneOf
from dpvla.models.head_configs import AnyHeadConfig
from dpvla.registry import Registry

HEADS = Registry(
    None,
    {
        "diffusion": "dpvla.models.head_configs:HeadConfig",
        "regression": "dpvla.models.head_configs:RegressionConfig",
    },
    diffusion="dpvla.models.head:DiTHead",
    regression="dpvla.models.regression_head:RegressionHead",
)
AnyHead = Annotated[AnyHeadConfig, OneOf(HEADS, "head", keeps=False)]
"""Type of a config's field that holds a head's config."""
