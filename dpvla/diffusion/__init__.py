"""Noise schedule, sampler and guided combination; no networks."""

from dpvla.diffusion.guidance import clip_x0, combine
from dpvla.diffusion.schedule import PARAMETRISATIONS, Parametrisation, VPLinearSchedule
from dpvla.diffusion.solver import DPMSolver

__all__ = ["PARAMETRISATIONS", "DPMSolver", "Parametrisation", "VPLinearSchedule", "clip_x0", "combine"]
