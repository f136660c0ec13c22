"""Submissions of parts of a split, or of further seeds, joined to one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from dpvla.files import short
from navsim_bridge.files.submissions import (
    Predictions,
    Submission,
    SubmissionError,
    SubmittedPlan,
    read_submission,
    several,
    write_submission_file,
)
from navsim_bridge.submission.check import Expected, require
from navsim_bridge.submission.team import Team


def merge_submissions(
    paths: Sequence[Path | str], out: Path | str, team: Team, expected: Expected | None = None
) -> Path:
    """Join files to one, which is written when nothing is wrong with it.

    Files of other scenes each are parts of a split. Files of version 1.1 with the same scenes each are seeds, in order.

    Args:
        paths: of the files, two or more.
        out: the file to write.
        team: metadata; what is empty is that of the files, which then must agree.
        expected: the scenes that the whole must cover exactly; None leaves the tokens unchecked.

    Raises:
        SubmissionError: files that do not fit each other, or a whole with problems, all listed.
        FileNotFoundError, UnsafePickleError, ValueError: see `read_submission`.
    """
    parts = {str(path): read_submission(path) for path in paths}
    if len(parts) < 2:
        raise SubmissionError("there is nothing to merge: give two files or more")
    first, *others = parts
    for other in others:
        if parts[other].version != parts[first].version:
            raise SubmissionError(
                f"{first} is a submission of version {parts[first].version}, {other} of {parts[other].version}"
            )
    metadata = {key: text if text.strip() else _common(parts, key) for key, text in team.by_key.items()}
    stages = tuple(
        _joined({path: part.stages[stage] for path, part in parts.items()}, parts[first].two_stages)
        for stage in range(len(parts[first].stages))
    )
    require(Submission(metadata, stages), expected, f"{several(len(parts), 'file')} merged: ")
    return write_submission_file(out, metadata, stages)


def _common(parts: Mapping[str, Submission], key: str) -> str:
    (first, value), *others = ((path, part.metadata[key]) for path, part in parts.items())
    for path, other in others:
        if type(other) is not type(value) or other != value:
            option = "--country" if key.startswith("country") else f"--{key.replace('_', '-')}"
            raise SubmissionError(
                f"{key!r} is {short(value)} in {first} and {short(other)} in {path}; say which with {option}"
            )
    return value  # type: ignore[no-any-return]


def _joined(seeds: Mapping[str, Sequence[Predictions]], staged: bool) -> tuple[Predictions, ...]:
    """The predictions of files: those of parts seed by seed, those of further seeds one after another."""
    tokens = {path: {token for seed in of_file for token in seed} for path, of_file in seeds.items()}
    if not staged and all(found == next(iter(tokens.values())) for found in tokens.values()):
        return tuple(seed for of_file in seeds.values() for seed in of_file)
    from_file: dict[str, str] = {}
    for path, found in tokens.items():
        if twice := sorted(found & from_file.keys()):
            of_both = f"{several(len(twice), 'token')}, first {twice[0]}"
            raise SubmissionError(f"{from_file[twice[0]]} and {path} both have plans of {of_both}")
        from_file |= dict.fromkeys(found, path)
    counts = {path: len(of_file) for path, of_file in seeds.items()}
    if len(set(counts.values())) > 1:
        shown = ", ".join(f"{path} {count}" for path, count in counts.items())
        raise SubmissionError(f"parts must have the same number of seeds (dicts); found {shown}")
    whole: list[dict[str, SubmittedPlan]] = [{} for _ in range(next(iter(counts.values())))]
    for of_file in seeds.values():
        for into, seed in zip(whole, of_file):
            into.update(seed)
    return tuple(whole)
