"""The second stage of a split of NAVSIM v2: which synthetic scenes follow which recorded ones, and where they lie.

A group is a recorded scene, the one 0.5 s before it, and pairs of synthetic scenes that follow them 4 s later; a pair
is again a scene and the one before it. The devkit scores the groups, not the scenes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dpvla.files import short

SYNTHETIC_TOKEN = 17
"""Length of a synthetic scene's token; the devkit knows them by it."""
MAPPING = "reactive_all_mapping"
"""Key of a split that has a second stage. Null: the server keeps the groups, as of `private_test_hard_two_stage`."""
SECOND_STAGE = "reactive_synthetic_initial_tokens"
"""Key of a scene filter: the tokens of the second stage."""
PICKLES, FRAMES, IMAGES = "synthetic_scene_pickles", "openscene_meta_datas", "sensor_blobs"
"""Folders of the second stage: scenes, frames of the split whose groups the server keeps, and images."""
MOST_NAMED = 3


class MappingError(ValueError):
    """Groups that do not fit together; the message names tokens and says what to do."""


@dataclass(frozen=True)
class Group:
    """A recorded scene with the one before it, and what follows them."""

    now: str
    previous: str
    pairs: tuple[tuple[str, str], ...]  # (now, previous) of the synthetic scenes

    @property
    def first_stage(self) -> tuple[str, str]:
        """Tokens of the recorded scenes."""
        return self.now, self.previous

    @property
    def second_stage(self) -> tuple[str, ...]:
        """Tokens of the synthetic scenes."""
        return tuple(token for pair in self.pairs for token in pair)


@dataclass(frozen=True)
class TwoStages:
    """What a split says of its second stage."""

    tokens: tuple[str, ...]  # of the synthetic scenes
    groups: tuple[Group, ...] | None  # None: the server keeps them, and plans can be submitted, not scored
    root: Path | None = None  # folder with the synthetic scenes, in `PICKLES`, and their images, in `IMAGES`

    @property
    def is_private(self) -> bool:
        """Whether the server keeps the groups: then logs are sequences of five frames without annotations."""
        return self.groups is None

    @property
    def scenes(self) -> Path:
        """Folder of the files of the scenes. Raises FileNotFoundError where it is not known or not there."""
        name = FRAMES if self.is_private else PICKLES
        if self.root is None:
            raise FileNotFoundError(f"no folder of synthetic scenes is known; {_REMEDY.format(name)}")
        if not (self.root / name).is_dir():
            raise FileNotFoundError(f"no synthetic scenes: no folder {self.root / name}; {_REMEDY.format(name)}")
        return self.root / name

    @property
    def images(self) -> Path | None:
        """Folder that the camera paths of the synthetic scenes begin in."""
        return self.root / IMAGES if self.root else None


_REMEDY = f"get them, or say with --synthetic-root which folder has {{}}/ and {IMAGES}/"


def incomplete(groups: Iterable[Group], there: Collection[str]) -> dict[Group, tuple[str, ...]]:
    """Groups that cannot be scored since some of their scenes are not among ``there``, and which."""
    lacking = {g: tuple(t for t in (*g.first_stage, *g.second_stage) if t not in there) for g in groups}
    return {group: tokens for group, tokens in lacking.items() if tokens}


def two_stages(mapping: object, second: object, first: Sequence[str] | None) -> TwoStages:
    """The second stage of a split.

    Args:
        mapping: what stands under `MAPPING`.
        second: what stands under `SECOND_STAGE` of the scene filter.
        first: the filter's tokens of the first stage.

    Raises:
        MappingError: values that are not as the devkit writes them, tokens that stand twice, or of which only one of
            filter and mapping knows; names them.
    """
    tokens = None if second is None else _tokens(SECOND_STAGE, second)
    if mapping is None:
        if not tokens or not first:
            raise MappingError(f"{MAPPING} is null: then the filter must list tokens and {SECOND_STAGE}")
        _check_lengths({"tokens": first, SECOND_STAGE: tokens})
        return TwoStages(tokens, None)
    if not isinstance(mapping, (list, tuple)) or not mapping:
        raise MappingError(f"{MAPPING}: expected a list of groups, found {short(mapping)}")
    groups = tuple(_group(f"{MAPPING}[{number}]", raw) for number, raw in enumerate(mapping))
    of_first = [token for group in groups for token in group.first_stage]
    of_second = [token for group in groups for token in group.second_stage]
    for stage in (of_first, of_second):
        twice = [token for token, count in Counter(stage).items() if count > 1]
        if twice:
            raise MappingError(f"{MAPPING}: {_some(twice)} twice: the devkit cannot add up such groups")
    _check_lengths({MAPPING: of_first, SECOND_STAGE: of_second})
    _compare("tokens", of_first if first is None else first, of_first)
    _compare(SECOND_STAGE, of_second if tokens is None else tokens, of_second)
    return TwoStages(tuple(of_second) if tokens is None else tokens, groups)


def _group(where: str, raw: object) -> Group:
    if not isinstance(raw, (list, tuple)) or len(raw) != 3:
        raise MappingError(f"{where}: expected [token, token before it, pairs], found {short(raw)}")
    now, previous, pairs = raw
    if not isinstance(pairs, (list, tuple)) or not pairs:
        raise MappingError(f"{where}: expected a list of pairs of tokens, found {short(pairs)}")
    for number, pair in enumerate(pairs):
        if not isinstance(pair, (list, tuple)) or len(pair) != 2:
            raise MappingError(f"{where}: pair {number}: expected two tokens, found {short(pair)}")
    first = _tokens(where, [now, previous])
    return Group(first[0], first[1], tuple((pair[0], pair[1]) for pair in (_tokens(where, pair) for pair in pairs)))


def _tokens(where: str, raw: object) -> tuple[str, ...]:
    if not isinstance(raw, (list, tuple)):
        raise MappingError(f"{where}: expected a list of tokens, found {short(raw)}")
    for token in raw:
        if not isinstance(token, str) or not token.isprintable() or not 0 < len(token) <= 200 or set(token) & {*"/\\"}:
            raise MappingError(f"{where}: expected a token in quotes, found {short(token)}")
    return tuple(raw)


def _check_lengths(stages: Mapping[str, Sequence[str]]) -> None:
    """The devkit tells the stages by the tokens' lengths."""
    for key, tokens in stages.items():
        synthetic = key == SECOND_STAGE
        wrong = [token for token in tokens if (len(token) == SYNTHETIC_TOKEN) != synthetic]
        if wrong:
            what = "no synthetic scene, whose tokens have" if synthetic else "a synthetic scene, not recorded: it has"
            raise MappingError(f"{key}: {_some(wrong)}: {what} {SYNTHETIC_TOKEN} characters")


def _compare(key: str, listed: Sequence[str], mapped: Sequence[str]) -> None:
    """That the filter's list and the mapping have the same tokens."""
    twice = [token for token, count in Counter(listed).items() if count > 1]
    if twice:
        raise MappingError(f"{key}: {_some(twice)} twice")
    unknown, missing = _without(mapped, listed), _without(listed, mapped)
    if unknown:
        raise MappingError(f"{MAPPING} names {_some(unknown)}, which {key} of the scene filter does not list")
    if missing:
        raise MappingError(f"{key} of the scene filter lists {_some(missing)}, which no group of {MAPPING} has")


def _without(tokens: Iterable[str], others: Iterable[str]) -> list[str]:
    there = set(others)
    return [token for token in tokens if token not in there]


def _some(tokens: Sequence[str]) -> str:
    """'token a', '5 tokens (a, b, c, ...)'."""
    if len(tokens) == 1:
        return f"token {tokens[0]}"
    return f"{len(tokens)} tokens ({', '.join(tokens[:MOST_NAMED])}{', ...' * (len(tokens) > MOST_NAMED)})"


def find_root(data_root: Path | None, split: str) -> Path | None:
    """Folder with the synthetic scenes of a split: that of its name below ``data_root``, else the only one there."""
    if data_root is None:
        return None
    if (data_root / split).is_dir():
        return data_root / split
    found = list(_roots(data_root))
    return found[0] if len(found) == 1 else data_root / split


def _roots(data_root: Path) -> Iterator[Path]:
    for path in sorted(data_root.glob("*")):
        if any((path / name).is_dir() for name in (PICKLES, FRAMES)):
            yield path
