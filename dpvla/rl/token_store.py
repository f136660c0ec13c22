"""A token cache on disk, written once by all processes together, for this run and every later one.

Written is what the frozen encoder makes of every scene of a source. A run that is killed while writing keeps the shards
it has; the next one with the same encoder goes on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from tqdm import tqdm

from dpvla.batch import SceneSource
from dpvla.config import ConfigError
from dpvla.files import DirectoryInUseError, check_folder, free_bytes, one_writer
from dpvla.models import DPVLA, SceneContext
from dpvla.provenance import made_by
from dpvla.rl.config import TokensConfig
from dpvla.rl.token_files import (
    MANIFEST,
    Description,
    Maker,
    TokenCacheError,
    TokenFiles,
    missing_shards,
    write_manifest,
    write_shard,
)
from dpvla.rl.tokens import encoded, refuse_not_finite
from dpvla.training.reading import batches_ahead

SHARD_BYTES = 256e6
"""About the size of a shard: what a killed run loses of each process's work."""
SPARE_BYTES = 1e9
"""Stay free on the disk."""
PROBED = 3
"""Scenes that are encoded again when a cache is opened, to see that it is of these images."""
ROUNDING, APART = 0.01, 0.25
"""How far tokens of the same images may be off: this share of their size, or of their distance to another scene's."""

Result = TypeVar("Result")


def open_tokens(
    config: TokensConfig,
    policy: DPVLA,
    source: SceneSource,
    accelerator: Accelerator,
    portion: int,
    agreed: bool,
) -> TokenFiles | None:
    """The cache of ``config.directory``, made or completed first; None where there is to be none.

    Called on all processes. What it costs is said before it is written.

    Args:
        policy: whose encoder is frozen, on the accelerator's device.
        portion: scenes encoded together.
        agreed: whether more than ``config.limit_gb`` may be written.

    Raises:
        TokenCacheError: the folder's tokens were made by another encoder, of other images or scenes, or are damaged.
        ConfigError: it takes more than the limit.
        OSError: there is not enough room, which is found out before anything is written, or the disk fills up: what is
            written stays, and the same call goes on.
    """
    if config.directory is None:
        return None
    policy.eval()
    return _Opening(config, Path(config.directory), policy, source, accelerator, portion, agreed).open()


@dataclass(frozen=True)
class _Opening:
    config: TokensConfig
    folder: Path
    policy: DPVLA
    source: SceneSource
    accelerator: Accelerator
    portion: int
    agreed: bool

    def open(self) -> TokenFiles:
        description, missing, whole = self._together(self._found)
        if description is not None and missing == [] and not whole:  # killed between the last shard and the manifest
            self._together(lambda: write_manifest(self.folder, description) if self._is_main else None)
        elif not whole:
            self._write(description)
        files = self._together(self._whole)
        if whole:
            self._together(lambda: self._probe(files) if self._is_main else None)
        scenes = len(files.description.scenes)
        size = _shown(scenes * files.description.bytes_per_scene)
        self.accelerator.print(f"tokens: {self.folder} holds {scenes} scenes, {size}")
        return files

    def _found(self) -> tuple[Description | None, list[int], bool]:
        """What the folder holds, which must be of this encoder, which shards are missing, and whether it is whole."""
        description = Description.read(self.folder)
        if description is None:
            return None, [], False
        if differing := Maker.of(self.policy).differences(description.maker):
            raise TokenCacheError(
                f"{self.folder} holds tokens of another encoder ({'; '.join(differing)}): choose another "
                "--tokens.directory, or delete it"
            )
        missing = missing_shards(self.folder, description)
        whole = not missing and (self.folder / MANIFEST).is_file()
        if not whole and description.scenes != tuple(self.source.tokens):
            raise TokenCacheError(
                f"{self.folder} is the unfinished token cache of {len(description.scenes)} other scenes (here "
                f"{len(self.source)}): finish it with the run that began it, choose another --tokens.directory, or "
                "delete it"
            )
        return description, missing, whole

    def _whole(self) -> TokenFiles:
        description = Description.read(self.folder)
        assert description is not None
        files = TokenFiles(self.folder, description)
        files.rows(self.source.tokens)
        if self.config.verify:
            mine = range(self.accelerator.process_index, description.shards, self.accelerator.num_processes)
            bar = tqdm(files.check(mine), desc="checksums", total=len(mine), unit="shard", disable=not self._is_main)
            for _ in bar:
                pass
        return files

    def _probe(self, files: TokenFiles) -> None:
        """Encode some scenes again: nothing else tells whether these are the images that the tokens are of."""
        count = len(self.source)
        rows = sorted({round(i * (count - 1) / max(1, PROBED - 1)) for i in range(PROBED)})
        now = encoded(self.policy, self.source.batch(rows), self.accelerator.device).to("cpu", torch.bfloat16)
        then = files.read(files.rows([self.source.tokens[row] for row in rows]))
        for place, row in enumerate(rows):
            here, there = now.tokens[place].float(), then.tokens.float()
            off = float((here - there[place]).norm())
            others = [float((here - other).norm()) for i, other in enumerate(there) if i != place]
            allowed = max(ROUNDING * float(here.norm()), APART * min(others, default=0.0))
            same_numbers = all(
                torch.equal(getattr(now, name)[place], getattr(then, name)[place])
                for name in ("command", "ego_status", "history")
            )
            if not same_numbers or not off <= allowed:
                raise TokenCacheError(
                    f"{self.folder} is of other {'images' if same_numbers else 'data'} than are found now: scene "
                    f"{self.source.tokens[row]} differs; choose another --tokens.directory, or delete it"
                )

    def _write(self, description: Description | None) -> None:
        """All shards that are missing, each process its share, after saying what that costs."""
        made, per_scene = self._together(self._measured)
        if description is not None:
            made = replace(made, scenes_per_shard=description.scenes_per_shard)
        missing = missing_shards(self.folder, made)
        self._together(lambda: self._announce(made, missing, per_scene) if self._is_main else None)
        with ExitStack() as stack:
            self._together(lambda: stack.enter_context(self._held()) if self._is_main else None)
            missing = self._together(lambda: self._still_missing(made))
            self._together(lambda: self._begin(made) if self._is_main else None)
            self._write_shards(made, missing)
            self._together(lambda: write_manifest(self.folder, made) if self._is_main else None)

    def _still_missing(self, made: Description) -> list[int]:
        """Once nobody else writes."""
        found = Description.read(self.folder)
        if found is not None and found.number != made.number:
            raise TokenCacheError(
                f"{self.folder} has become another token cache meanwhile: the same command says which"
            )
        return missing_shards(self.folder, made)

    def _held(self) -> ExitStack:
        stack = ExitStack()
        try:
            stack.enter_context(one_writer(self.folder))
        except DirectoryInUseError as error:
            raise DirectoryInUseError(str(error).replace("--out", "--tokens.directory")) from None
        return stack

    def _measured(self) -> tuple[Description, float]:
        """How tokens look, and seconds a scene takes here, from one portion after a first scene."""
        encoded(self.policy, self.source.batch([0]), self.accelerator.device)
        rows = range(min(self.portion, len(self.source)))
        began = time.perf_counter()
        context = encoded(self.policy, self.source.batch(rows), self.accelerator.device).to("cpu")
        per_scene = (time.perf_counter() - began) / len(rows)
        tokens, width = context.tokens.shape[1:]
        has_mask = context.mask is not None
        one = Description({}, ("",), 1, (tokens, width), has_mask, {}).bytes_per_scene
        # Whole portions, and small enough that all processes have something to do.
        share = -(-len(self.source) // self.accelerator.num_processes)
        per_shard = min(max(1, int(SHARD_BYTES / one) // self.portion) * self.portion, share)
        description = Description(
            Maker.of(self.policy).as_dict(), tuple(self.source.tokens), per_shard, (tokens, width), has_mask, made_by()
        )
        return description, per_scene

    def _announce(self, made: Description, missing: Sequence[int], per_scene: float) -> None:
        scenes = sum(len(made.rows(shard)) for shard in missing)
        size, whole = scenes * made.bytes_per_scene, len(made.scenes) * made.bytes_per_scene
        minutes = per_scene * scenes / min(self.accelerator.num_processes, max(1, len(missing))) / 60
        there = "" if scenes == len(made.scenes) else f" ({len(made.scenes) - scenes} of its scenes are there already)"
        print(
            f"tokens: encoding {scenes} scenes once into {self.folder}{there}: {_shown(size)}, about {minutes:.1f} "
            "minutes"
        )
        if whole > self.config.limit_gb * 1e9 and not self.agreed:
            raise ConfigError(
                f"the token cache takes {_shown(whole)} of disk, more than tokens.limit_gb = {self.config.limit_gb:g}: "
                "give --yes to write it, or leave --tokens.directory out"
            )
        check_folder(self.folder)
        free = free_bytes(self.folder)
        if size + SPARE_BYTES > free:
            raise OSError(
                f"the token cache needs {_shown(size)} and {_shown(SPARE_BYTES)} to spare, {_shown(free)} are free "
                f"at {self.folder}: nothing is written"
            )

    def _begin(self, made: Description) -> None:
        for left in self.folder.glob(".shard_*"):  # half written by a run that was killed
            left.unlink()
        (self.folder / MANIFEST).unlink(missing_ok=True)  # it would vouch for shards that are written again
        made.write(self.folder)

    def _write_shards(self, made: Description, missing: Sequence[int]) -> None:
        processes = self.accelerator.num_processes
        mine = missing[self.accelerator.process_index :: processes]
        portions = [
            rows[start : start + self.portion]
            for rows in map(made.rows, mine)
            for start in range(0, len(rows), self.portion)
        ]
        decoded = batches_ahead(self.source, portions, self.config.workers, self.accelerator.device, self.config.ahead)

        def shard(number: int) -> None:
            rows, parts = made.rows(number), list[SceneContext]()
            while sum(map(len, parts)) < len(rows):
                batch = next(decoded)
                context = encoded(self.policy, batch, self.accelerator.device)
                refuse_not_finite(self.policy, context, batch.tokens)
                parts.append(context.to("cpu", torch.bfloat16))
                bar.update(len(batch))
            try:
                write_shard(self.folder, made, number, SceneContext.cat(parts))
            except OSError as error:
                raise OSError(
                    f"cannot write shard {number} of {made.shards} of {self.folder} ({error.strerror}); those before "
                    "it are kept: make room, and the same command goes on"
                ) from None

        total = sum(len(made.rows(number)) for number in mine)
        with tqdm(desc="tokens", total=total, unit="scene", disable=not self._is_main) as bar:
            for first in range(0, len(missing), processes):  # together, so that where one fails none waits for it
                place = first // processes
                self._together(lambda at=place: shard(mine[at]) if at < len(mine) else None)  # type: ignore[misc]

    @property
    def _is_main(self) -> bool:
        return self.accelerator.is_main_process

    def _together(self, work: Callable[[], Result]) -> Result:
        """Do ``work`` on this process; where it fails on any, every process raises that error."""
        if self.accelerator.num_processes == 1:
            return work()
        failed: Exception | None = None
        result: Result | None = None
        try:
            result = work()
        except (ValueError, OSError) as error:
            failed = error
        errors = [error for error in gather_object([failed]) if error is not None]
        if errors:
            raise failed or errors[0]
        return result  # type: ignore[return-value]


def _shown(size: float) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 1e8 else f"{size / 1e6:.2f} MB"
