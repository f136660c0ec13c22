"""Roll-outs that a run keeps: the plans of every cycle with all their sub-scores, for whoever learns from them later.

A folder holds ``description.json`` (what encodes the scenes, what scored the plans, how the scenes are called),
``cycle_00000.safetensors`` and on, each as ``RolloutBuffer.save`` writes it and whole from the start, and a manifest
with their checksums. A cycle that is rolled out again after a kill replaces its file by one of the same bytes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

from dpvla.checkpoint_layout import KEPT_ROLL_OUTS
from dpvla.files import FileError, check_folder, free_bytes, write_json
from dpvla.manifest import MANIFEST, check_manifest, read_manifest, sha256_of, write_manifest
from dpvla.models import DPVLA
from dpvla.plan import NUM_POSES
from dpvla.rl.buffer import RolloutBuffer
from dpvla.rl.token_files import Maker, MakerOnDisk
from dpvla.schema import read_as
from dpvla.sub_scores import SCORE, RuleOnDisk, ScoringRule
from dpvla.tensors import CheckpointError

FORMAT = 1
DESCRIPTION = "description.json"
_CYCLE = re.compile(r"cycle_(\d{5})\.safetensors")


def kept_bytes(cycles: int, scenes: int, candidates: int, scores: int = 7) -> int:
    """What roll-outs of so many cycles take: plans in float32, each of the scores (PDMS: 7) in float64."""
    return cycles * scenes * candidates * (4 * 3 * NUM_POSES + 8 * scores)


class _Description(TypedDict):
    format: int
    maker: MakerOnDisk
    rule: RuleOnDisk
    scenes: list[str]


@dataclass(frozen=True)
class KeptRollOuts:
    """The folder, with what its description says."""

    folder: Path
    maker: Mapping[str, Any]  # of ``token_files.Maker``: the frozen encoder that the policy rolled out with
    rule: ScoringRule  # what scored the plans
    scenes: tuple[str, ...]  # names of the scenes of the source, which a cycle's ``indices`` count

    def begin(self, cycles: int, scenes: int, candidates: int) -> str:
        """Make the folder and its description; what so many cycles will take, in words.

        Raises OSError where it cannot be, or where there is not the room.
        """
        check_folder(self.folder)
        needed = kept_bytes(cycles, scenes, candidates, len(self.rule.sub_scores) + 1)
        if needed > (free := free_bytes(self.folder)):
            raise OSError(
                f"roll-outs of {cycles} cycles take {needed / 1e9:.3g} GB, {free / 1e9:.3g} GB are free at "
                f"{self.folder}: nothing is written; make room, or leave --rollouts.keep out"
            )
        description = {
            "format": FORMAT,
            "maker": dict(self.maker),
            "rule": self.rule.as_dict(),
            "scenes": list(self.scenes),
        }
        write_json(self.folder / DESCRIPTION, description)
        return f"roll-outs: plans and scores of {cycles} cycles are kept in {self.folder}, {needed / 1e6:.3g} MB"

    def write(self, buffer: RolloutBuffer) -> None:
        """Keep the plans and scores of a cycle; what else an algorithm keeps of its roll-outs is left out."""
        name = f"cycle_{buffer.cycle:05d}.safetensors"
        kept = RolloutBuffer(buffer.cycle, buffer.indices, {"plans": buffer.roll_outs["plans"]}, buffer.scores)
        kept.save(self.folder / name)
        write_manifest(self.folder, names=(DESCRIPTION, name))

    @classmethod
    def read(cls, run: Path | str) -> KeptRollOuts:
        """Those of a run, or of the folder itself.

        Raises FileError or ManifestError: there are none, or the folder is damaged.
        """
        run = Path(run)
        folder = run if (run / DESCRIPTION).is_file() else run / KEPT_ROLL_OUTS
        if not (folder / DESCRIPTION).is_file():
            raise FileError(
                f"{run} has kept no roll-outs ({folder / DESCRIPTION} is not there): tools/rl_finetune.py keeps them "
                "with --rollouts.keep"
            )
        found = read_as(folder / DESCRIPTION, _Description)
        if found["format"] != FORMAT:
            raise FileError(f"{folder / DESCRIPTION}: format {found['format']}, this code reads {FORMAT}")
        if not check_manifest(folder, [DESCRIPTION]):
            raise FileError(f"{folder / MANIFEST} is missing: the run was stopped before its first cycle was kept")
        return cls(folder, found["maker"], ScoringRule.of(found["rule"]), tuple(found["scenes"]))

    def refuse_other_encoder(self, policy: DPVLA, where: str) -> None:
        """Raise FileError unless they were made with the encoder of ``policy``. Reads all of its weights once."""
        if differing := Maker.of(policy).differences(self.maker):
            raise FileError(
                f"the roll-outs of {where} were made with another encoder ({'; '.join(differing)}): give the "
                "--checkpoint that their run started from, or the run itself"
            )

    def require_scenes(self, scenes: Sequence[str], where: str, split: str) -> None:
        """Raise FileError where they are of scenes that are not among ``scenes``, the ones of ``split``."""
        there = set(scenes)
        if missing := [name for name in self.scenes if name not in there]:
            raise FileError(
                f"the roll-outs of {where} are of {len(missing)} scenes that {split} does not hold, first "
                f"{missing[0]:.80}: give the split that they were made on"
            )

    def fingerprint(self) -> str:
        """SHA-256 of the checksums of all that is kept."""
        return sha256_of(self.folder / MANIFEST)

    def cycles(self) -> list[RolloutBuffer]:
        """All that are kept, in order, read and checked.

        Raises ManifestError, FileError or CheckpointError that names the file: it is damaged, or of another source.
        """
        names = sorted(name for name in read_manifest(self.folder) if _CYCLE.fullmatch(name))
        check_manifest(self.folder, names)
        return [self._read(self.folder / name) for name in names]

    def _read(self, path: Path) -> RolloutBuffer:
        buffer = RolloutBuffer.load(path)
        if len(buffer) and not 0 <= int(buffer.indices.min()) <= int(buffer.indices.max()) < len(self.scenes):
            raise CheckpointError(
                f"{path} holds scenes that {DESCRIPTION} beside it does not name: it is another run's"
            )
        missing = {SCORE, *(one.name for one in self.rule.sub_scores)} - buffer.scores.keys()
        if missing:
            raise CheckpointError(f"{path} holds no {sorted(missing)[0]}, which {DESCRIPTION} beside it names")
        return buffer
