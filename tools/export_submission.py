"""Write submission.pkl for the NAVSIM v1 leaderboard and check it; or check a file that exists."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from dpvla import config
from dpvla.config import reporting_errors
from navsim_bridge import roots
from navsim_bridge.agents import BASELINES, Agent, PolicyAgent
from navsim_bridge.scene_filter import load_split
from navsim_bridge.scenes import select_scenes
from navsim_bridge.submission import Team, validate_submission, write_submission


@dataclass(frozen=True)
class ExportSubmission:
    """Plan for every scene of a split and write submission.pkl; or check a file with --validate."""

    agent: Literal["dpvla", "constant_velocity", "stand_still"] = "dpvla"  # who drives
    checkpoint: str = ""  # dpvla: checkpoint or model directory
    split: str = ""  # name of a split, or a YAML file in the devkit's scene-filter schema
    out: str = "submission.pkl"  # the file to write
    validate: str = ""  # check this file and write nothing; with --split also its tokens
    team_name: str = ""  # shown on the leaderboard; its rules ask for a link to a technical report (HTML) in it
    authors: str = ""  # names, comma-separated
    email: str = ""  # contact address
    institution: str = ""  # affiliation
    country: str = ""  # country or region
    seeds: tuple[int, ...] = (0,)  # dpvla: one prediction per seed; the leaderboard encourages three
    omega: float = 1.0  # dpvla: greediness of the guided combination
    data_root: str = ""  # folder with navsim_logs/; default: OPENSCENE_DATA_ROOT, then the demo world
    batch_size: int = 64  # dpvla: scenes planned together
    device: str = "auto"  # cpu, cuda, cuda:1, ...


@reporting_errors
def main(argv: Sequence[str] | None = None) -> None:
    options = config.parse(ExportSubmission, argv)
    if options.validate:
        tokens = _tokens(options) if options.split else None
        _report(options.validate, tokens)
        return
    if not options.split:
        raise SystemExit("error: --split is needed")
    if (options.agent == "dpvla") != bool(options.checkpoint):
        raise SystemExit("error: --checkpoint belongs to --agent dpvla, which needs it")
    team = Team(options.team_name, options.authors, options.email, options.institution, options.country)
    team.metadata()  # before the work
    data_root = roots.data_root(options.data_root)
    records = select_scenes(load_split(options.split, data_root), data_root)
    tokens = [r.token for r in records]
    predictions = [dict(zip(tokens, agent(records))) for agent in _agents(options)]
    write_submission(options.out, team, predictions)
    _report(options.out, tokens)


def _agents(options: ExportSubmission) -> list[Agent]:
    if options.agent != "dpvla":
        return [BASELINES[options.agent]]
    device = ("cuda" if torch.cuda.is_available() else "cpu") if options.device == "auto" else options.device
    first = PolicyAgent.from_checkpoint(
        options.checkpoint,
        roots.data_root(options.data_root),
        device,
        omega=options.omega,
        batch_size=options.batch_size,
    )
    return [first.with_seed(seed) for seed in options.seeds]


def _tokens(options: ExportSubmission) -> list[str]:
    data_root = roots.data_root(options.data_root)
    return [r.token for r in select_scenes(load_split(options.split, data_root), data_root)]


def _report(path: str, tokens: Sequence[str] | None) -> None:
    for warning in validate_submission(path, tokens):
        print(f"warning: {warning}", file=sys.stderr)
    print(f"{path} is a valid submission" + (f" of {len(tokens)} scenes" if tokens is not None else ""))


if __name__ == "__main__":
    main()
