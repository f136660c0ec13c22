"""The parity benchmark as its users run it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from navsim_bridge.pdm import SUB_SCORES
from tests.paths import ROOT

FIXTURES = sorted((ROOT / "tests" / "fixtures" / "golden_v1").glob("*.npz"))


@pytest.fixture(scope="module")
def main(load_benchmark: Callable[..., Any]) -> Callable[..., Any]:
    return load_benchmark("pdm_parity").main


def rewrite(source: Path, target: Path, change: Callable[..., Any]) -> None:
    with np.load(source) as file:
        fields = {name: file[name] for name in file.files}
    np.savez(target, **change(fields))


def test_agreement_table_is_printed_and_every_score_written(
    main: Callable[..., Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in FIXTURES[:2]:
        shutil.copy(path, tmp_path)
    out = tmp_path / "new" / "scores.json"
    assert main(["--golden", str(tmp_path), "--out", str(out)]) == 0
    scores = json.loads(out.read_text())
    assert set(scores) == {path.stem for path in FIXTURES[:2]}
    for path in FIXTURES[:2]:
        assert tuple(scores[path.stem]) == SUB_SCORES
        with np.load(path) as file:
            np.testing.assert_allclose(scores[path.stem]["score"], file["res_score"], atol=1e-6)
    printed = capsys.readouterr().out
    assert all(name in printed for name in SUB_SCORES)


def test_files_without_results_and_with_few_plans_are_scored(
    main: Callable[..., Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def strip(fields: dict[str, Any]) -> dict[str, Any]:
        kept = {name: value for name, value in fields.items() if not name.startswith(("res_", "dbg_", "sim_"))}
        return kept | {"proposals": fields["proposals"][:5]}

    rewrite(FIXTURES[0], tmp_path / "bare.npz", strip)
    shutil.copy(FIXTURES[1], tmp_path)
    assert main(["--golden", str(tmp_path), "--out", str(tmp_path / "scores.json")]) == 0
    scores = json.loads((tmp_path / "scores.json").read_text())
    with np.load(FIXTURES[0]) as file:
        np.testing.assert_allclose(scores["bare"]["score"], file["res_score"][:5], atol=1e-6)


def test_a_disagreement_fails_unless_it_is_fragile(
    main: Callable[..., Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def falsify(fields: dict[str, Any]) -> dict[str, Any]:
        fields["res_comfort"] = fields["res_comfort"].copy()
        fields["res_comfort"][3] = 1.0 - fields["res_comfort"][3]
        return fields

    def excuse(fields: dict[str, Any]) -> dict[str, Any]:
        fields = falsify(fields)
        fields["dbg_fragile"] = np.ones_like(fields["dbg_fragile"])
        return fields

    arguments = ["--golden", str(tmp_path), "--out", str(tmp_path / "scores.json")]
    rewrite(FIXTURES[0], tmp_path / "wrong.npz", falsify)
    assert main(arguments) == 1
    assert "wrong[3]" in capsys.readouterr().out
    rewrite(FIXTURES[0], tmp_path / "wrong.npz", excuse)
    assert main(arguments) == 0


def test_an_empty_directory_is_refused(
    main: Callable[..., Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["--golden", str(tmp_path), "--out", str(tmp_path / "scores.json")])
    assert "no .npz files" in capsys.readouterr().err
