"""Which code scores: compiled kernels where they run, the tensor code elsewhere.

The environment variable ``DPVLA_SCORER`` forces one: "torch" for the tensor code alone, "compiled" for an error where a
compiler is missing; "auto", the default, takes what is there.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from typing import Literal, get_args

import torch
from torch import Tensor

VARIABLE = "DPVLA_SCORER"
Scorer = Literal["auto", "torch", "compiled"]


class ScorerError(ValueError):
    """``DPVLA_SCORER`` asks for what there is not."""


def asked_for() -> Scorer:
    """What ``DPVLA_SCORER`` says.

    Raises:
        ScorerError: something unknown.
    """
    value = os.environ.get(VARIABLE) or "auto"
    if value not in get_args(Scorer):
        raise ScorerError(f"{VARIABLE} must be one of {', '.join(get_args(Scorer))}, found {value!r}")
    return value  # type: ignore[return-value]


def check(device: torch.device) -> None:
    """Raise ScorerError now where scoring on ``device`` would do so; compilers are tried on the CPU alone."""
    if asked_for() == "compiled" and device.type == "cpu":
        _granted("compiled", without_numba())


@contextmanager
def using(scorer: Scorer) -> Iterator[None]:
    """Inside, ``DPVLA_SCORER`` is ``scorer``."""
    before = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = scorer
    try:
        yield
    finally:
        if before is None:
            del os.environ[VARIABLE]
        else:
            os.environ[VARIABLE] = before


def on_cpu() -> str:
    """In words: what scores on this CPU, and why it is not the compiled kernels where it is not."""
    if asked_for() == "torch":
        return f"tensor code ({VARIABLE}=torch)"
    problem = without_numba()
    return f"tensor code ({problem})" if problem else f"compiled kernels (numba {metadata.version('numba')})"


def use_triton(tensor: Tensor) -> bool:
    """Whether Triton's kernels take this tensor: it is on a GPU that they run on.

    Raises:
        ScorerError: they do not, but ``DPVLA_SCORER`` is "compiled".
    """
    if tensor.device.type != "cuda" or (scorer := asked_for()) == "torch":
        return False
    return _granted(scorer, _without_triton(tensor.device))


def use_numba(tensor: Tensor) -> bool:
    """Whether numba's kernels take this tensor: it is on the CPU, and they are there.

    The first call that wants them compiles or loads them.

    Raises:
        ScorerError: numba is missing or does not work, but ``DPVLA_SCORER`` is "compiled".
    """
    if type(tensor) is not Tensor or tensor.device.type != "cpu" or (scorer := asked_for()) == "torch":
        return False
    return _granted(scorer, without_numba())


def _granted(scorer: Scorer, problem: str) -> bool:
    if problem and scorer == "compiled":
        raise ScorerError(f"{VARIABLE}=compiled: {problem}")
    return not problem


@functools.lru_cache(maxsize=1)
def without_numba() -> str:
    """Why numba's kernels do not run here; empty when they do, which is tried once."""
    if importlib.util.find_spec("numba") is None:
        return "numba is not installed; pip install 'dpvla[native]' makes scoring several times as fast"
    try:
        from navsim_bridge.pdm.compiled import jit

        with jit.compiling():
            from navsim_bridge.pdm.compiled import areas, contacts, lines, tracker  # noqa: F401
    except Exception as error:  # made for another numpy or llvmlite, ...
        last_line = [type(error).__name__, *str(error).strip().splitlines()][-1]
        problem = f"numba does not work here: {last_line}"
        warnings.warn(f"{problem}; plans are scored by the tensor code instead, which is slower", stacklevel=2)
        return problem
    return ""


@functools.lru_cache(maxsize=16)
def _without_triton(device: torch.device) -> str:
    """Why Triton does not run on ``device``; empty when it does, which is tried once."""
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed, pip install triton"
    if not torch.cuda.is_available():  # a pretended GPU
        return f"torch finds no GPU {device}"
    from navsim_bridge.pdm.compiled import triton_tracker

    try:
        start, poses = torch.zeros((1, 11), device=device).double(), torch.zeros((1, 1, 41, 3), device=device).double()
        triton_tracker.track(start, poses, torch.zeros_like(poses[..., :40, 0]))
    except Exception as error:  # no C compiler, a GPU that is too old, ...: Triton raises whatever it likes
        last_line = [type(error).__name__, *str(error).strip().splitlines()][-1]
        problem = f"Triton cannot compile for {device}: {last_line}"
        warnings.warn(f"{problem}; plans are simulated by many small operations instead, which is slower", stacklevel=2)
        return problem
    return ""
