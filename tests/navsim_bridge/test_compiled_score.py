"""Compiled kernels give what the tensor code gives, and are chosen, kept and missed in the ways that are promised."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from navsim_bridge.golden.v1 import read_golden
from navsim_bridge.golden.v2 import read_golden_epdms
from navsim_bridge.pdm import EPDMSBatch, SceneBatch, epdms_terms, score_plans
from navsim_bridge.pdm.compiled import choice
from navsim_bridge.pdm.geometry import near_polyline, points_in_polygons, project_on_polyline
from tests.paths import FIXTURES, ROOT

pytest.importorskip("numba")


def both(function: Any, *arguments: Any) -> tuple[Any, Any]:
    """What compiled kernels and the tensor code give."""
    with choice.using("compiled"):
        compiled = function(*arguments)
    with choice.using("torch"):
        return compiled, function(*arguments)


def assert_same(compiled: object, expected: object) -> None:
    """Flags and steps are the same; what is measured differs by rounding."""
    for field in dataclasses.fields(expected):  # type: ignore[arg-type]
        one, two = getattr(compiled, field.name), getattr(expected, field.name)
        tolerance = 1e-11 if two.is_floating_point() else 0
        torch.testing.assert_close(one, two, rtol=0, atol=tolerance, equal_nan=True, msg=field.name)


def test_pdm_scores_have_the_same_flags() -> None:
    files = [read_golden(path) for path in sorted((FIXTURES / "golden_v1").glob("*.npz"))[::2]]
    batch = SceneBatch.from_scenes([file.scene for file in files])
    plans = torch.from_numpy(np.stack([file.proposals for file in files]))
    assert_same(*both(score_plans, batch, plans))


def test_epdms_terms_have_the_same_flags() -> None:
    files = [read_golden_epdms(path) for path in sorted((FIXTURES / "golden_v2").glob("*.npz"))]
    batch = EPDMSBatch.from_scenes([file.scene for file in files])
    assert_same(*both(epdms_terms, batch, torch.from_numpy(np.stack([file.proposals for file in files]))))


def polygons_on_a_lattice(generator: torch.Generator, size: float) -> tuple[Tensor, Tensor]:
    """Closed rings of 10 edges (1, 9, 11, 2) between whole numbers, in 70 polygons; the last ring is padding."""
    chains = torch.randint(-6, 7, (1, 9, 11, 2), generator=generator).double() * size
    chains[:, :, -1] = chains[:, :, 0]
    chains[:, 3, 4:] = chains[:, 3, :1]  # a triangle that stays at its first vertex
    chains[:, -1] = torch.inf
    return chains, torch.tensor([[0, 1, 1, 2, 63, 64, 65, 69, 0]])


@pytest.mark.parametrize("size", [1.0, 1.5, 1000.0])
def test_points_on_edges_vertices_and_borders_of_cells_are_judged_alike(size: float) -> None:
    generator = torch.Generator().manual_seed(0)
    lattice = torch.cartesian_prod(*(torch.arange(-15, 16).double() / 2,) * 2) * size
    cells = torch.cartesian_prod(*(torch.arange(-5, 6).double() * 1.5 + 0.70710678,) * 2)
    far = torch.tensor([[1e7, 0.0], [-1e7, 1e7], [3e7, -3e7]], dtype=torch.float64)
    points = torch.cat((lattice, cells, far)).unsqueeze(0)
    for _ in range(5):
        compiled, expected = both(points_in_polygons, points, *polygons_on_a_lattice(generator, size), 70)
        assert expected.any()
        assert torch.equal(compiled, expected)


def test_lines_that_fold_back_and_repeat_vertices_are_projected_on_alike() -> None:
    generator = torch.Generator().manual_seed(0)
    line = torch.randint(-4, 5, (6, 12, 2), generator=generator).double()
    line[:, 5] = line[:, 4]
    mask = torch.arange(12) < torch.tensor([[12], [12], [9], [7], [3], [2]])
    points = torch.randint(-12, 13, (6, 200, 2), generator=generator).double() / 2
    assert torch.equal(*both(near_polyline, points, line, mask, 0.5))
    torch.testing.assert_close(*both(project_on_polyline, points, line, mask), rtol=0, atol=1e-12)


@pytest.fixture
def no_numba(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "numba" else find_spec(name))
    choice.without_numba.cache_clear()
    yield
    choice.without_numba.cache_clear()


def test_without_numba_tensor_code_scores_and_asking_for_more_names_the_extra(no_numba: None) -> None:
    poses = torch.zeros(1, 2, dtype=torch.float64)
    with choice.using("auto"):
        assert not choice.use_numba(poses)
        assert "dpvla[native]" in choice.on_cpu()
    with choice.using("compiled"), pytest.raises(choice.ScorerError, match=r"dpvla\[native\]"):
        choice.use_numba(poses)
    with choice.using("compiled"), pytest.raises(choice.ScorerError, match=r"^DPVLA_SCORER=compiled: numba is not ins"):
        choice.check(torch.device("cpu"))
    choice.check(torch.device("cpu"))


def test_numba_that_does_not_work_is_said_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from navsim_bridge.pdm.compiled import jit

    def broken() -> Any:
        raise ImportError("Numba needs NumPy 2.3 or less")

    monkeypatch.setattr(jit, "compiling", broken)
    choice.without_numba.cache_clear()
    try:
        with choice.using("auto"), pytest.warns(UserWarning, match=r"Numba needs NumPy 2.3.*tensor code instead"):
            assert not choice.use_numba(torch.zeros(1))
        assert not choice.use_numba(torch.zeros(1))
    finally:
        choice.without_numba.cache_clear()


def test_an_unknown_scorer_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(choice.VARIABLE, "cuda")
    with pytest.raises(ValueError, match="DPVLA_SCORER must be one of auto, torch, compiled, found 'cuda'"):
        choice.use_numba(torch.zeros(1))


def one_more(number: int) -> int:
    return number + 1


def test_kernels_are_kept_for_the_next_process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from navsim_bridge.pdm.compiled import jit

    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    for loaded in (0, 1):
        with jit.compiling():
            kernel = jit.kernel("i8(i8)")(one_more)
        assert kernel(1) == 2
        assert sum(kernel.stats.cache_hits.values()) == loaded
    assert list(tmp_path.rglob("*.nbi"))


def test_without_a_place_to_keep_them_kernels_are_compiled_anyway(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from navsim_bridge.pdm.compiled import jit

    (tmp_path / "file").touch()
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "file"))
    with pytest.warns(UserWarning, match="no kernels can be kept"), jit.compiling():
        kernel = jit.kernel("i8(i8)")(one_more)
    assert kernel(1) == 2


def test_what_fails_while_kernels_are_loaded_is_told_as_it_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from navsim_bridge.pdm.compiled import jit

    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    with pytest.raises(OSError, match="No space left on device"), jit.compiling():
        raise OSError(28, "No space left on device")


def test_no_compiler_is_loaded_before_plans_are_scored() -> None:
    code = "import sys, navsim_bridge.pdm_closed.planner; assert not {'numba', 'triton'} & {*sys.modules}"
    subprocess.run([sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": str(ROOT)}, check=True)
