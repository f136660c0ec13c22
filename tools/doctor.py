"""Check this machine: Python, packages, GPU, linear algebra, scores, data. One line per finding, with the remedy."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

try:
    from dpvla.cli import parse, refuse_given, reporting_errors
    from dpvla.files import check_file, write_text
    from navsim_bridge.doctor.data import Missing, missing_csv
    from navsim_bridge.doctor.examine import each, examine
    from navsim_bridge.doctor.finding import ERROR, OK, WARNING, Finding
    from navsim_bridge.files.roots import DataAndMapOptions
except ModuleNotFoundError as missing:
    raise SystemExit(f"ERROR   module {missing.name} is missing -> pip install -e . in dpvla's checkout") from None


@dataclass(frozen=True)
class Doctor(DataAndMapOptions):
    """Say what is wrong with this machine and what to do. Exits with 1 when something is broken."""

    split: tuple[str, ...] = ()  # also count the logs and scenes of these, and missing or empty camera files
    missing: str | None = None  # with --split: write the scenes that cannot be used, and why, to this CSV file
    metric_cache: str | None = None  # also check every byte of this cache
    checkpoint: str | None = None  # also check every byte of this run, checkpoint or model
    scores: tuple[str, ...] = ()  # only say what made these: folders of tools/evaluate.py, or score files of the devkit
    submission: str | None = None  # only say whether this file is complete; with one --split also its scenes
    write_manifest: str | None = None  # only note checksums of this checkpoint or model anew, changed on purpose
    cameras: tuple[str, ...] = ()  # of the camera files to count; default: front_left, front and front_right

    @staticmethod
    def in_full(data: Mapping[str, Any]) -> Mapping[str, Any]:
        """One split as a list."""
        return {**data, "split": [data["split"]]} if isinstance(data.get("split"), str) else data

    def __post_init__(self) -> None:
        if self.submission is not None and len(self.split) > 1:
            raise ValueError(f"split names {len(self.split)} splits, and a submission is of one: give one")


@reporting_errors
def main(argv: Sequence[str] | None = None) -> None:
    options = parse(Doctor, argv)
    if not options.split:
        refuse_given(options, ["data_split", "synthetic_root", "cameras", "missing"], "--split")
    if options.missing is not None:
        check_file(options.missing)
    if options.write_manifest is not None:
        return write_anew(options.write_manifest)
    counts = {OK: 0, WARNING: 0, ERROR: 0}
    lost: list[Missing] = []
    for finding in findings(options, lost):
        counts[finding.level] += 1
        print(finding, flush=True)
    if options.missing is not None:
        write_text(options.missing, missing_csv(lost))
        print(f"{len(lost)} scenes that cannot be used: {options.missing}")
    print(f"{counts[OK]} ok, {counts[WARNING]} warnings, {counts[ERROR]} broken")
    if counts[ERROR]:
        raise SystemExit(1)


def findings(options: Doctor, lost: list[Missing]) -> Iterator[Finding]:
    """What is asked of files alone, or of the machine and its data."""
    asked: list[Callable[[], Iterator[Finding]]] = []
    if options.scores:
        from navsim_bridge.doctor.results import check_results  # with torch, which the machine may lack

        asked += [partial(check_results, path) for path in options.scores]
    if options.submission is not None:
        asked.append(partial(submission_findings, options))
    if asked:
        return each(asked)
    return examine(
        options.data_root, options.maps_root, options.split, options.metric_cache, options.data_split, options.cameras,
        options.checkpoint, options.synthetic_root, lost,
    )  # fmt: skip


def submission_findings(options: Doctor) -> Iterator[Finding]:
    """What tools/export_submission.py --check says of a file."""
    from navsim_bridge.files.roots import data_root
    from navsim_bridge.splits.scene_filter import load_split
    from navsim_bridge.splits.scenes import select_scenes
    from navsim_bridge.submission.check import Expected, check_submission

    assert options.submission is not None
    try:
        expected = None
        if options.split:
            (name,) = options.split
            root = data_root(options.data_root)
            split = load_split(name, root, options.data_split, options.synthetic_root)
            expected = Expected.listed_by(split) or Expected.found(split, select_scenes(split, root))
        warnings = check_submission(options.submission, expected, usual=True)
    except (ValueError, OSError) as error:
        yield Finding(ERROR, str(error), "make it again, or join its parts with tools/export_submission.py --merge")
        return
    scenes = f" of {expected}" if expected is not None else ""
    yield Finding(OK, f"{options.submission} is a complete submission{scenes}")
    for warning in warnings:
        yield Finding(WARNING, f"{options.submission}: {warning}")


def write_anew(folder: str) -> None:
    """The manifest of a checkpoint, and of the model and adapters in it, or of one of these alone."""
    from dpvla.checkpoint_layout import ADAPTERS, CONFIG_FILE, MODEL, SAMPLING_FILE
    from dpvla.config import ConfigError
    from dpvla.manifest import renew_manifests

    path = Path(folder)
    if not any((path / name).is_file() for name in (CONFIG_FILE, SAMPLING_FILE, f"{MODEL}/{CONFIG_FILE}")):
        raise ConfigError(f"--write-manifest {folder}: no checkpoint, model or adapters; give the folder of one")
    for written in renew_manifests(path, (MODEL, ADAPTERS)):
        print(f"wrote {written}")


if __name__ == "__main__":
    main()
