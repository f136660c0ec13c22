"""Policies for the model tests."""

import pytest

from dpvla.models import DPVLA, DPVLAConfig
from tests.dpvla.models.tiny_policies import make_policy


@pytest.fixture(params=["tiny", "tiny_florence"])
def config(request) -> DPVLAConfig:
    return getattr(DPVLAConfig, request.param)()


@pytest.fixture
def policy(config) -> DPVLA:
    return make_policy(config)


@pytest.fixture
def light() -> DPVLA:
    """The timm variant, for tests that do not concern the encoder."""
    return make_policy(DPVLAConfig.tiny())
