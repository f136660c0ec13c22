"""Noise schedule, sampler and guided combination; no networks."""

from dpvla.diffusion.guidance import clip_x0, combine
from dpvla.diffusion.samplers.dpm import DPMSolver
from dpvla.diffusion.schedule import PARAMETRIZATIONS, Parametrization, VPLinearSchedule

__all__ = ["PARAMETRIZATIONS", "DPMSolver", "Parametrization", "VPLinearSchedule", "clip_x0", "combine"]
