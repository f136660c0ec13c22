"""Policies for the model tests."""

import pytest

from dpvla.models import DPVLA, DPVLAConfig
from tests.dpvla.models.tiny_policies import CONFIGS, make_policy


@pytest.fixture(params=CONFIGS)
def config(request: pytest.FixtureRequest) -> DPVLAConfig:
    return CONFIGS[request.param]()


@pytest.fixture
def policy(config: DPVLAConfig) -> DPVLA:
    return make_policy(config)


@pytest.fixture
def light() -> DPVLA:
    """The timm variant, for tests that do not concern the encoder."""
    return make_policy(DPVLAConfig.tiny())
