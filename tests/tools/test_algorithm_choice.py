"""Which options an algorithm takes, from the recipe and from the command line."""

from __future__ import annotations

from pathlib import Path

import pytest

from dpvla.algorithms.config import CFGRLConfig, DipoleConfig, WeightedRegressionConfig
from dpvla.algorithms.registry import ALGORITHMS
from dpvla.cli import parse
from dpvla.registry import look_up_config
from tools.rl_finetune import DEMO, FinetuneConfig


def parsed(*words: str) -> FinetuneConfig:
    return parse(FinetuneConfig, words, None, DEMO)


def test_another_algorithm_than_the_recipes_has_its_own_defaults_and_the_recipes_cycles(tmp_path: Path) -> None:
    recipe = parsed()
    assert recipe.algorithm == DipoleConfig(beta=2.0, anchor="behavior")
    assert parsed("--algorithm", "dipole", "--algorithm.beta", "3").algorithm == DipoleConfig(beta=3, anchor="behavior")
    for name in {*ALGORITHMS.configs} - {"dipole"}:
        other = parsed("--algorithm", name)
        assert other.algorithm == look_up_config(ALGORITHMS, name, "algorithm")()
        assert (other.rollouts, other.loop) == (recipe.rollouts, recipe.loop)
    (tmp_path / "a.yaml").write_text("algorithm: cfgrl")
    (tmp_path / "b.yaml").write_text("algorithm: {omega: 3}")
    files = [f"--config={path}" for path in (DEMO, tmp_path / "a.yaml", tmp_path / "b.yaml")]
    assert parsed(*files).algorithm == CFGRLConfig(omega=3)
    assert parsed(*files, "--algorithm=weighted_regression", "--algorithm.clip=None").algorithm == (
        WeightedRegressionConfig(clip=None)
    )


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--algorithm best_of_group --algorithm.beta 1", "--algorithm.beta belongs to --algorithm dipole or "),
        (
            "--algorithm cfgrl --algorithm.only-when always",
            "--algorithm.only-when belongs to --algorithm best_of_group",
        ),
        (
            "--algorithm weighted_regression --algorithm.beta 0",
            "algorithm.beta must be above 0, found 0",
        ),
        ("--algorithm weighted_regression --algorithm.clip 0", "algorithm.clip must be above 0 or null, found 0"),
        ("--algorithm.beta -1", "algorithm.beta must be at least 0, found -1"),
        ("--algorithm.spread-floor 0", "algorithm.spread_floor must be above 0, found 0"),
        ("--algorithm.anchor both", "'both'"),
        ("--algorithm best_of_groups", "unknown algorithm 'best_of_groups'; nearest valid name: 'best_of_group'"),
        ("--rollouts.group-size 1", "rollouts.group_size must be at least 2, found 1"),
        ("--rollouts.cycles -1", "rollouts.cycles must be at least 1, found -1"),
    ],
)
def test_what_an_algorithm_cannot_be_is_one_line(words: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        parsed(*words.split())
    *_, last = capsys.readouterr().err.splitlines()
    assert end.value.code == 2 and last.startswith("error: ") and said in last


def test_a_key_of_another_algorithm_in_a_file_is_told_whose_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.yaml").write_text("algorithm: {name: best_of_group, beta: 2}")
    with pytest.raises(SystemExit):
        parsed("--config", str(tmp_path / "a.yaml"))
    said = capsys.readouterr().err
    assert "a.yaml: unknown key 'algorithm.beta' of algorithm best_of_group: it belongs to dipole and weighted_" in said
