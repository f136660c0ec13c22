"""Write submission.pkl for the NAVSIM v1 leaderboard and check it; or check a file that exists."""

from __future__ import annotations

import glob
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dpvla.cli import parse, refuse_given, reporting_errors
from dpvla.config import NotNegative, Whole
from dpvla.files import check_file, one_writer, remove_parts
from navsim_bridge.agents.crew import plan_together
from navsim_bridge.agents.options import SharedAgentOptions
from navsim_bridge.files.roots import DataOptions, data_root
from navsim_bridge.splits.scene_filter import load_split
from navsim_bridge.splits.scenes import SceneRecord, select_scenes
from navsim_bridge.splits.sensors import with_images
from navsim_bridge.submission.v1 import Team, validate_submission, write_submission

WRITING = (
    "checkpoint", "seeds", "omega", "select", "selector", "select_from", "select_omegas", "batch_size", "agent",
    "out", "overwrite", "team_name", "authors", "email",
    "institution", "country", "device", "decoder", "workers", "executor",
)  # fmt: skip
"""Options that --validate has no use for."""


@dataclass(frozen=True, kw_only=True)
class ExportSubmission(SharedAgentOptions, DataOptions):
    """Plan for every scene of a split and write submission.pkl; or check a file with --validate."""

    agent: str = "dpvla"  # dpvla, constant_velocity, stand_still, or one of yours
    omega: NotNegative | None = None  # dpvla: greediness of the guided combination; default: what it was trained with
    seeds: tuple[Whole, ...] = (0,)  # dpvla: one prediction per seed; the leaderboard encourages three
    split: str | None = None  # name of a split, or a YAML, CSV or Parquet file that lists its scenes
    out: str = "submission.pkl"  # the file to write
    overwrite: bool = False  # replace a file that is there
    validate: str | None = None  # check this file and write nothing; with --split also its tokens
    team_name: str = ""  # shown on the leaderboard; its rules ask for a link to a technical report (HTML) in it
    authors: str = ""  # names, comma-separated
    email: str = ""  # contact address
    institution: str = ""  # affiliation
    country: str = ""  # country or region


@reporting_errors
def main(argv: Sequence[str] | None = None) -> None:
    options = parse(ExportSubmission, argv)
    if options.validate is not None:
        refuse_given(options, WRITING, "writing, not to --validate")
        if options.split is None:
            refuse_given(options, ["data_split", "synthetic_root"], "--split")
        tokens = None if options.split is None else [r.token for r in _records(options, options.split)]
        _report(options.validate, tokens)
        return
    if options.split is None:
        raise ValueError("--split is needed")
    if options.agent == "human":
        raise ValueError("--agent human drives what was recorded, which is no submission; choose another agent")
    options.check_agent("seeds", "omega")
    if not options.seeds or len(set(options.seeds)) < len(options.seeds):
        raise ValueError("--seeds must name at least one seed, and each once")
    team = Team(options.team_name, options.authors, options.email, options.institution, options.country)
    team.metadata()  # before the work, as all that follows
    check_file(options.out)
    out = Path(options.out)
    lock = f".{out.name}.lock"
    cut = (out.parent / lock).exists()  # a killed export left it, which may have written its file before
    if out.exists() and not (options.overwrite or cut):
        raise ValueError(f"{out} exists: choose another --out, or replace it with --overwrite")
    with one_writer(out.parent, lock=lock):
        remove_parts(out.parent, glob.escape(out.name))
        tokens = _write(options, options.split, team)
    _report(options.out, tokens)


def _write(options: ExportSubmission, split: str, team: Team) -> list[str]:
    """Plan and write; the tokens of the scenes."""
    crew, root = options.crew(), data_root(options.data_root)
    agent = options.open_for(crew, root, omegas=() if options.omega is None else (options.omega,))
    records = with_images(_records(options, split), root, agent.cameras, split)
    tokens = [r.token for r in records]
    plans = plan_together(
        agent.open,
        records,
        crew,
        seeds=options.seeds,
        batch_size=options.batch_size,
        reads=[root, *(Path(path) for path in (options.checkpoint, options.selector) if path)],
    )
    write_submission(options.out, team, [dict(zip(tokens, of_seed)) for of_seed in plans])
    return tokens


def _records(options: ExportSubmission, split: str) -> list[SceneRecord]:
    root = data_root(options.data_root)
    return select_scenes(load_split(split, root, options.data_split, options.synthetic_root), root)


def _report(path: str, tokens: Sequence[str] | None) -> None:
    for warning in validate_submission(path, tokens):
        print(f"warning: {warning}", file=sys.stderr)
    print(f"{path} is a valid submission" + (f" of {len(tokens)} scenes" if tokens is not None else ""))


if __name__ == "__main__":
    main()
