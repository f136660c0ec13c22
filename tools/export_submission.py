"""Write submission.pkl for a leaderboard of NAVSIM v1 or v2 and check it; join parts; or check a file that exists."""

from __future__ import annotations

import glob
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from dpvla.cli import parse, refuse_given, reporting_errors
from dpvla.config import NotNegative, Whole
from dpvla.files import check_file, one_writer, remove_parts
from navsim_bridge.agents.crew import plan_together
from navsim_bridge.agents.options import SharedAgentOptions
from navsim_bridge.agents.plans import each
from navsim_bridge.files.roots import DataOptions, data_root
from navsim_bridge.splits.scene_filter import Split, load_split
from navsim_bridge.splits.scenes import SceneRecord, select_scenes
from navsim_bridge.splits.sensors import with_images
from navsim_bridge.splits.shard import Shard
from navsim_bridge.submission import v1, v2
from navsim_bridge.submission.check import Expected, check_submission
from navsim_bridge.submission.merge import merge_submissions
from navsim_bridge.submission.team import Team

PLANNING = (
    "checkpoint", "submission", "seeds", "omega", "select", "selector", "select_from", "select_omegas", "batch_size",
    "agent", "shard", "device", "decoder", "workers", "executor",
)  # fmt: skip
"""Options of planning alone."""
WRITING = (*PLANNING, "out", "overwrite", "team_name", "authors", "email", "institution", "country")
"""Options that --check and --validate have no use for."""


@dataclass(frozen=True, kw_only=True)
class ExportSubmission(SharedAgentOptions, DataOptions):
    """Plan for every scene of a split and write submission.pkl: of NAVSIM v2 for a split of two stages, else of v1.

    Or check a file with --check or --validate, or join files of --shard K/N, or of further seeds, with --merge.
    """

    agent: str = "dpvla"  # dpvla, constant_velocity, stand_still, or one of yours
    omega: NotNegative | None = None  # dpvla: greediness of the guided combination; default: what it was trained with
    seeds: tuple[Whole, ...] = (0,)  # dpvla, v1: one prediction per seed; the leaderboard encourages three
    split: str | None = None  # name of a split, or a YAML, CSV or Parquet file that lists its scenes
    shard: str | None = None  # K/N, such as 3/16: plan for this part of the scenes alone; --merge joins the files
    merge: tuple[str, ...] = ()  # instead of planning: join these files to --out; with --split its scenes are checked
    out: str = "submission.pkl"  # the file to write
    overwrite: bool = False  # replace a file that is there
    check: str | None = None  # as --validate, and every plan must have 8 poses, 0.5 s apart
    validate: str | None = None  # look for what the official code fails on or misreads; with --split also at tokens
    team_name: str = ""  # shown on the leaderboard; its rules ask for a link to a technical report (HTML) in it
    authors: str = ""  # names, comma-separated
    email: str = ""  # contact address
    institution: str = ""  # affiliation
    country: str = ""  # country or region

    @property
    def team(self) -> Team:
        """Who submits."""
        return Team(self.team_name, self.authors, self.email, self.institution, self.country)


@reporting_errors
def main(argv: Sequence[str] | None = None) -> None:
    options = parse(ExportSubmission, argv)
    modes = {"--check": options.check, "--validate": options.validate, "--merge": options.merge}
    given = [name for name, value in modes.items() if value]
    if len(given) > 1:
        raise ValueError(f"{' and '.join(given)} are different things to do: give one of them")
    if options.split is None and given:
        refuse_given(options, ["data_split", "synthetic_root"], "--split")
    if options.merge:
        refuse_given(options, PLANNING, "planning, not to --merge")
        expected = _expected(options)
        with _writing(options):
            merge_submissions(options.merge, options.out, options.team, expected)
        return _report(options.out, expected)
    if file := options.check or options.validate:
        refuse_given(options, WRITING, f"writing, not to {given[0]}")
        return _report(file, _expected(options), usual=bool(options.check))
    if options.split is None:
        raise ValueError("--split is needed")
    if options.agent == "human":
        raise ValueError("--agent human drives what was recorded, which is no submission; choose another agent")
    if options.agent == "submission":
        raise ValueError("--agent submission is a submission already: join files with --merge")
    options.check_agent("seeds", "omega")
    if not options.seeds or len(set(options.seeds)) < len(options.seeds):
        raise ValueError("--seeds must name at least one seed, and each once")
    options.team.metadata()  # before the work, as all that follows
    shard = Shard.parse(options.shard) if options.shard else None
    with _writing(options):
        expected = _write(options, options.split, shard)
    _report(options.out, expected)
    if shard is not None:
        print(
            f"it is shard {shard}; when all are there: tools/export_submission.py --merge FILES --split {options.split}"
        )


@contextmanager
def _writing(options: ExportSubmission) -> Iterator[None]:
    """Held while ``--out`` is written; raises ValueError where it is not to be replaced."""
    check_file(options.out)
    out = Path(options.out)
    lock = f".{out.name}.lock"
    cut = (out.parent / lock).exists()  # a killed export left it, which may have written its file before
    if out.exists() and not (options.overwrite or cut):
        raise ValueError(f"{out} exists: choose another --out, or replace it with --overwrite")
    with one_writer(out.parent, lock=lock):
        remove_parts(out.parent, glob.escape(out.name))
        yield


def _write(options: ExportSubmission, name: str, shard: Shard | None) -> Expected:
    """Plan and write; what it is to hold."""
    crew, root = options.crew(), data_root(options.data_root)
    agent = options.open_for(crew, root, omegas=() if options.omega is None else (options.omega,))
    split = load_split(name, root, options.data_split, options.synthetic_root)
    if split.two_stage is not None and len(options.seeds) > 1:
        raise ValueError(
            f"split {split.name} has two stages, of which a submission has one prediction each: one --seeds"
        )
    records = _part(select_scenes(split, root), options, shard)
    records = with_images(records, root, agent.cameras, name)
    plans = plan_together(
        agent.open,
        records,
        crew,
        seeds=options.seeds,
        batch_size=options.batch_size,
        reads=[root, *(Path(p) for p in (options.checkpoint, options.selector, options.synthetic_root) if p)],
    )
    by_token = [dict(zip((r.token for r in records), each(of_seed))) for of_seed in plans]
    expected = Expected.found(split, records)
    if split.two_stage is None:
        v1.write_submission(options.out, options.team, by_token)
    else:
        first, second = ({token: by_token[0][token] for token in tokens} for tokens in expected.stages)
        v2.write_submission(options.out, options.team, first, second, part=shard is not None)
    return expected


def _part(records: list[SceneRecord], options: ExportSubmission, shard: Shard | None) -> list[SceneRecord]:
    """The scenes of a shard: whole batches, so that scenes are planned together with the same ones as without it."""
    if shard is None:
        return records
    size = options.planned_together
    batches = [records[first : first + size] for first in range(0, len(records), size)]
    if len(batches) < shard.count:
        found = f"{len(records)} scenes, {size} of which are planned together"
        raise ValueError(f"--shard {shard}: the split has {found}; give at most {len(batches)} shards")
    return [record for batch in shard.take(batches) for record in batch]


def _expected(options: ExportSubmission) -> Expected | None:
    """The scenes of ``--split``: those that it lists, or where it lists none those of its logs."""
    if options.split is None:
        return None
    split = _split(options, options.split)
    return Expected.listed_by(split) or Expected.found(split, select_scenes(split, data_root(options.data_root)))


def _split(options: ExportSubmission, name: str) -> Split:
    """A split, which may be known without data."""
    try:
        root = data_root(options.data_root)
    except FileNotFoundError:
        if options.data_root is not None:
            raise
        root = None
    return load_split(name, root, options.data_split, options.synthetic_root)


def _report(path: str, expected: Expected | None, usual: bool = False) -> None:
    for warning in check_submission(path, expected, usual=usual):
        print(f"warning: {warning}", file=sys.stderr)
    scenes = f" of {expected}" if expected is not None else ""
    print(f"{path} is a valid submission{scenes} ({Path(path).stat().st_size / 1000:.1f} kB)")


if __name__ == "__main__":
    main()
