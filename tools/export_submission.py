"""Write submission.pkl for the NAVSIM v1 leaderboard and check it; or check a file that exists."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dpvla import cli
from dpvla.cli import reporting_errors
from dpvla.config import Count, NotNegative, Whole
from dpvla.device import usable_device
from dpvla.files import check_file
from navsim_bridge.agents import BASELINES, Agent, PolicyAgent
from navsim_bridge.files import roots
from navsim_bridge.splits.scene_filter import load_split
from navsim_bridge.splits.scenes import SceneRecord, select_scenes
from navsim_bridge.splits.sensors import with_images
from navsim_bridge.submission.v1 import Team, validate_submission, write_submission

LEARNED = ("checkpoint", "seeds", "omega", "batch_size")
"""Options of --agent dpvla alone."""
WRITING = (
    *LEARNED, "agent", "out", "overwrite", "team_name", "authors", "email", "institution", "country", "device",
)  # fmt: skip
"""Options that --validate has no use for."""


@dataclass(frozen=True)
class ExportSubmission:
    """Plan for every scene of a split and write submission.pkl; or check a file with --validate."""

    agent: Literal["dpvla", "constant_velocity", "stand_still"] = "dpvla"  # who drives
    checkpoint: str = ""  # dpvla: checkpoint or model directory
    split: str = ""  # name of a split, or a YAML, CSV or Parquet file that lists its scenes
    out: str = "submission.pkl"  # the file to write
    overwrite: bool = False  # replace a file that is there
    validate: str = ""  # check this file and write nothing; with --split also its tokens
    team_name: str = ""  # shown on the leaderboard; its rules ask for a link to a technical report (HTML) in it
    authors: str = ""  # names, comma-separated
    email: str = ""  # contact address
    institution: str = ""  # affiliation
    country: str = ""  # country or region
    seeds: tuple[Whole, ...] = (0,)  # dpvla: one prediction per seed; the leaderboard encourages three
    omega: NotNegative | None = None  # dpvla: greediness of the guided combination; default: what it was trained with
    data_split: str = ""  # folder below navsim_logs/; default: what the split says, else the one that has its scenes
    data_root: str = ""  # folder with navsim_logs/; default: OPENSCENE_DATA_ROOT, then the demo world
    batch_size: Count = 64  # dpvla: scenes planned together
    device: str = "auto"  # cpu, cuda, cuda:1, ...
    plugin: tuple[str, ...] = ()  # modules of yours that add encoders, ...: names or .py files


@reporting_errors
def main(argv: Sequence[str] | None = None) -> None:
    options = cli.parse(ExportSubmission, argv)
    if options.validate:
        cli.refuse_given(options, WRITING, "writing, not to --validate")
        if not options.split:
            cli.refuse_given(options, ["data_split"], "--split")
        tokens = [r.token for r in _records(options)] if options.split else None
        _report(options.validate, tokens)
        return
    if not options.split:
        raise SystemExit("error: --split is needed")
    if options.agent != "dpvla":
        cli.refuse_given(options, LEARNED, "--agent dpvla")
    elif not options.checkpoint:
        raise ValueError("--agent dpvla needs --checkpoint")
    if not options.seeds or len(set(options.seeds)) < len(options.seeds):
        raise SystemExit("error: --seeds must name at least one seed, and each once")
    team = Team(options.team_name, options.authors, options.email, options.institution, options.country)
    team.metadata()  # before the work, as all that follows
    check_file(options.out)
    if Path(options.out).exists() and not options.overwrite:
        raise SystemExit(f"error: {options.out} exists: choose another --out, or replace it with --overwrite")
    agents = _agents(options)
    records = _records(options)
    if isinstance(agents[0], PolicyAgent):
        with_images(records, roots.data_root(options.data_root), agents[0].cameras, options.split)
    tokens = [r.token for r in records]
    predictions = [dict(zip(tokens, agent(records))) for agent in agents]
    write_submission(options.out, team, predictions)
    _report(options.out, tokens)


def _agents(options: ExportSubmission) -> list[Agent]:
    device = usable_device(options.device)
    if options.agent != "dpvla":
        return [BASELINES[options.agent]]
    first = PolicyAgent.from_checkpoint(
        options.checkpoint,
        roots.data_root(options.data_root),
        device,
        omega=options.omega,
        batch_size=options.batch_size,
    )
    first.refuse_idle_omega()
    return [first.with_seed(seed) for seed in options.seeds]


def _records(options: ExportSubmission) -> list[SceneRecord]:
    data_root = roots.data_root(options.data_root)
    return select_scenes(load_split(options.split, data_root, options.data_split), data_root)


def _report(path: str, tokens: Sequence[str] | None) -> None:
    for warning in validate_submission(path, tokens):
        print(f"warning: {warning}", file=sys.stderr)
    print(f"{path} is a valid submission" + (f" of {len(tokens)} scenes" if tokens is not None else ""))


if __name__ == "__main__":
    main()
