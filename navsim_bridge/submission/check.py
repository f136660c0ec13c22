"""Whether a submission is complete, and what the leaderboard would refuse or misread in it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dpvla.files import short
from dpvla.plan import NUM_POSES, PLAN_SECONDS, POSE_INTERVAL
from navsim_bridge.files.submissions import (
    PREDICTIONS,
    STAGES,
    Predictions,
    Submission,
    SubmissionError,
    SubmittedPlan,
    as_number,
    place_of,
    read_submission,
    several,
)
from navsim_bridge.splits.scene_filter import Split
from navsim_bridge.splits.scenes import SceneRecord
from navsim_bridge.splits.two_stage import Group

TOLERANCE = 1e-6
"""[s] Plans are scored up to here."""
MOST_NOTES = 20
"""Problems, or warnings, that are told of one file."""


@dataclass(frozen=True)
class Expected:
    """The scenes that a submission is to have plans of."""

    stages: tuple[tuple[str, ...], ...]  # tokens; of version 1.1 one stage, of version 2 two
    groups: tuple[Group, ...] = ()  # of two stages, where they are known

    @classmethod
    def listed_by(cls, split: Split) -> Expected | None:
        """Those that a split lists, so that neither logs nor images are needed; None where it lists none."""
        listed, staged = split.scene_filter.tokens, split.two_stage
        if split.scene_filter.max_scenes is not None:
            return None
        if staged is None:
            return None if listed is None else cls((listed,))
        if listed is None:
            listed = tuple(token for group in staged.groups or () for token in group.first_stage)
        return cls((listed, staged.tokens), staged.groups or ())

    @classmethod
    def found(cls, split: Split, records: Sequence[SceneRecord]) -> Expected:
        """All scenes of a split."""
        if split.two_stage is None:
            return cls((tuple(r.token for r in records),))
        return cls(stages_of(records), split.two_stage.groups or ())

    @property
    def two_stages(self) -> bool:
        """Whether it is of version 2."""
        return len(self.stages) == len(STAGES)

    def __str__(self) -> str:
        """'12146 scenes', '450 and 5462 scenes in two stages'."""
        counts = " and ".join(str(len(tokens)) for tokens in self.stages)
        return f"{counts} scenes" + (" in two stages" if self.two_stages else "")


def stages_of(records: Sequence[SceneRecord]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Tokens of recorded and of synthetic scenes."""
    return (
        tuple(r.token for r in records if r.synthetic is None),
        tuple(r.token for r in records if r.synthetic is not None),
    )


def check_submission(path: Path | str, expected: Expected | None = None, *, usual: bool = False) -> list[str]:
    """Check a submission file of either version; returns warnings.

    Args:
        path: the file.
        expected: the scenes that it must cover exactly; None leaves the tokens unchecked.
        usual: refuse plans of another sampling than 8 poses, 0.5 s apart, too. The official scorer takes them; what the
            leaderboard's server does is not known.

    Raises:
        SubmissionError: listing every reason why the leaderboard would refuse or misread the file.
        FileNotFoundError, UnsafePickleError, ValueError: see `read_submission`.
    """
    submission = read_submission(path)
    require(submission, expected, f"{path}: ", usual)
    warnings = _first_of(_unusual(submission))
    if not submission.two_stages:
        team = submission.metadata["team_name"]
        if not any("href" in part for part in (team if isinstance(team, (list, tuple)) else [team])):
            warnings.append("team_name holds no HTML link: version 1.1 of the rules asks for one to a technical report")
        if len(submission.stages[0]) < 3:
            seeds = several(len(submission.stages[0]), "seed")
            warnings.append(f"{seeds}: the leaderboard encourages three or more")
    if expected is None:
        warnings.append("the token set was not checked: give the split")
    return warnings


def require(submission: Submission, expected: Expected | None = None, where: str = "", usual: bool = False) -> None:
    """Raise SubmissionError that lists, behind ``where``, the problems of a submission; arguments as of them."""
    if problems := problems_of(submission, expected, usual):
        raise SubmissionError(where + "; ".join(_first_of(problems)))


def problems_of(submission: Submission, expected: Expected | None = None, usual: bool = False) -> list[str]:
    """Why the leaderboard would refuse or misread a submission; arguments as of `check_submission`.

    A stage of which nothing is expected, as in a part of a split, may be empty.
    """
    problems = list(_text_problems(submission))
    if expected is not None and expected.two_stages != submission.two_stages:
        wanted = " and ".join(STAGES if expected.two_stages else (PREDICTIONS,))
        return [*problems, f"it is a submission of version {submission.version}, where the split needs {wanted}"]
    for stage, (key, seeds) in enumerate(_by_key(submission)):
        if submission.two_stages and len(seeds) != 1:
            problems.append(f"{key} must hold exactly one dict, found {len(seeds)}")
        if not seeds or (not seeds[0] and (expected is None or expected.stages[stage])):
            problems.append(f"there are no predictions{f' in {key}' if submission.two_stages else ''}")
            continue
        wanted_tokens = seeds[0] if expected is None else expected.stages[stage]
        for number, seed in enumerate(seeds):
            where = place_of(key, number, submission.two_stages)
            groups = () if expected is None else expected.groups
            problems += _token_problems(where, seed, wanted_tokens, groups)
            problems += _plan_problems(where, seed, usual)
    both = sorted(set.intersection(*({token for seed in seeds for token in seed} for seeds in submission.stages)))
    if submission.two_stages and both:
        problems.append(f"{several(len(both), 'token')} in both stages, first {both[0]}")
    return problems


def _by_key(submission: Submission) -> Iterator[tuple[str, tuple[Predictions, ...]]]:
    yield from zip(STAGES if submission.two_stages else (PREDICTIONS,), submission.stages)


def _text_problems(submission: Submission) -> Iterator[str]:
    for key, value in submission.metadata.items():
        parts = value if isinstance(value, (list, tuple)) else [value]
        if not parts or not all(isinstance(part, str) and part.strip() for part in parts):
            yield f"{key!r} is empty or not text: {short(value)}"


def _token_problems(
    where: str, found: Collection[str], wanted: Collection[str], groups: Sequence[Group]
) -> Iterator[str]:
    there, asked = set(found), set(wanted)
    missing, extra = sorted(asked - there), sorted(there - asked)
    if missing:
        lacking = sum(not there.issuperset(set(of_group) & asked) for of_group in _members(groups))
        why = f", so that {lacking} of {several(len(groups), 'group')} cannot be scored" if lacking else ""
        yield f"{where}: {len(missing)} of {len(asked)} tokens are missing, first {missing[0]}{why}"
    if extra:
        yield f"{where}: {several(len(extra), 'token')} not in the split, first {extra[0]}"


def _members(groups: Sequence[Group]) -> Iterator[tuple[str, ...]]:
    for group in groups:
        yield (*group.first_stage, *group.second_stage)


def _plan_problems(where: str, seed: Predictions, usual: bool) -> Iterator[str]:
    """The first bad plan, and how many more there are: one says enough."""
    bad = [(token, why) for token, plan in seed.items() if (why := plan.problem() or (_other(plan) if usual else ""))]
    if bad:
        more = f" (and {len(bad) - 1} more of its {len(seed)} plans)" if bad[1:] else ""
        yield f"{where}, token {bad[0][0]}: {bad[0][1]}{more}"


def _other(plan: SubmittedPlan) -> str:
    """That a plan, of which the official scorer makes what it says, is not of the usual sampling."""
    count, interval = len(plan.poses), float(plan.sampling[2])
    if (count, interval) == (NUM_POSES, POSE_INTERVAL):
        return ""
    return f"{several(count, 'pose')} every {interval:g} s, where the format has {NUM_POSES} every {POSE_INTERVAL:g} s"


def _first_of(notes: list[str]) -> list[str]:
    return notes if len(notes) <= MOST_NOTES else [*notes[:MOST_NOTES], f"and {len(notes) - MOST_NOTES} more"]


def _unusual(submission: Submission) -> list[str]:
    """What the official scorer takes although it is not what its own agents give."""
    notes: Counter[str] = Counter()
    for plan in (plan for seeds in submission.stages for seed in seeds for plan in seed.values()):
        count, horizon, interval = len(plan.poses), float(plan.sampling[1]), float(plan.sampling[2])
        poses, end = several(count, "pose"), count * interval
        if (count, interval) != (NUM_POSES, POSE_INTERVAL):
            note = f"of {poses} every {interval:g} s: the scorer interpolates at 10 Hz up to {PLAN_SECONDS:g} s"
            if end < PLAN_SECONDS - TOLERANCE:
                note += f", standing from {end:g} s on"
            elif end > PLAN_SECONDS + TOLERANCE:
                note += ", and reads nothing later"
            notes[note] += 1
        if not math.isclose(horizon, end):
            notes[
                f"with a horizon of {horizon:.15g} s, whose poses end at {end:g} s: the scorer goes by the poses"
            ] += 1
        if as_number(plan.sampling[0]) != count:
            notes[f"with num_poses {short(plan.sampling[0])} for {poses}: the scorer does not read it"] += 1
        if plan.poses.dtype != np.float32:
            notes[f"with poses in {plan.poses.dtype}, usually float32: the scorer computes in float64"] += 1
    return [f"{several(count, 'plan')} {note}" for note, count in notes.items()]
