"""The selector: a network, what its outputs mean, what it is of; saved and read back as a folder."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TypedDict

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dpvla import __version__, files
from dpvla.checkpoint_layout import CONFIG_FILE, SELECTOR, SELECTOR_WEIGHTS
from dpvla.config import Size, from_dict, to_dict
from dpvla.manifest import check_manifest, require_manifest, sha256_of, write_manifest
from dpvla.models import DrivingPolicy, SceneContext
from dpvla.rl.token_files import Maker, MakerOnDisk
from dpvla.schema import read_as
from dpvla.selector.config import SelectorConfig
from dpvla.selector.network import SelectorNetwork
from dpvla.sub_scores import SCORE, RuleOnDisk, ScoringRule
from dpvla.tensors import described, empty_parameters, materialize, read_into, require_same, save_tensors, state_of
from dpvla.training.checkpoint import latest_checkpoint

FORMAT = 1


class SelectorError(ValueError):
    """A selector that cannot be used here; the message says why and what to do."""


@dataclass(frozen=True)
class Output:
    """One predicted score."""

    name: str
    kind: Literal["share", "value"]  # share: from 0 to 1, predicted as a logit; value: any number, as (x - mean) / std
    mean: float = 0.0
    std: float = 1.0

    @classmethod
    def of(cls, name: str, values: Tensor) -> Output:
        """As these values, which are learned from, ask for."""
        if float(values.min()) >= 0 and float(values.max()) <= 1:
            return cls(name, "share")
        std, mean = torch.std_mean(values.double())
        return cls(name, "value", float(mean), max(float(std), 1e-6))

    def predicted(self, raw: Tensor) -> Tensor:
        """What the network's output says of the score."""
        return raw.sigmoid() if self.kind == "share" else raw * self.std + self.mean

    def error(self, raw: Tensor, value: Tensor) -> Tensor:
        """Of the output, for each plan: cross-entropy of a share (its least at the mean), squared error of a value."""
        if self.kind == "share":
            return F.binary_cross_entropy_with_logits(raw, value, reduction="none")
        return (raw - (value - self.mean) / self.std).square()


class Selector(nn.Module):
    """Predicts sub-scores of plans from what the frozen encoder leaves of a scene, and says which plan is best."""

    def __init__(
        self,
        config: SelectorConfig,
        rule: ScoringRule,
        outputs: Sequence[Output],
        maker: Mapping[str, Any],
        context_width: int,
    ) -> None:
        """
        Args:
            rule: of the scores that it is trained on.
            outputs: every sub-score of the rule, and the score.
            maker: of ``token_files.Maker``: the encoder whose tokens it reads.
            context_width: of those tokens.
        """
        super().__init__()
        self.config, self.rule, self.outputs, self.maker = config, rule, tuple(outputs), dict(maker)
        self.network = SelectorNetwork(config, context_width, len(self.outputs))

    def forward(self, context: SceneContext, plans: Tensor) -> Tensor:
        """The network's own (scene, candidate, output)."""
        raw: Tensor = self.network(context, plans)
        return raw

    def predicted(self, raw: Tensor) -> dict[str, Tensor]:
        """By name of output (scene, candidate); ``score`` is what plans are chosen by.

        That is the mean of two: the score predicted as such, and the one that the predicted sub-scores come to.
        """
        found = {output.name: output.predicted(raw[..., i]) for i, output in enumerate(self.outputs)}
        if self.rule.sub_scores:
            found[SCORE] = (found[SCORE] + self.rule.total(found)) / 2
        return found

    @torch.no_grad()
    def choose(self, context: SceneContext, plans: Tensor) -> Tensor:
        """(scene,) which of the plans (scene, candidate, 8, 3) is predicted to score best; of equals the first.

        A plan that is not finite is never chosen where another is, and the others are judged as if it were one of them.
        """
        finite = plans.isfinite().flatten(-2).all(dim=-1)
        first = finite.float().argmax(dim=-1)
        stand_in = plans[torch.arange(len(plans), device=plans.device), first].nan_to_num()[:, None]
        plans = torch.where(finite[..., None, None], plans, stand_in)
        score = self.predicted(self(context, plans))[SCORE]
        score = torch.where(finite & score.isfinite(), score, -torch.inf)
        places = torch.arange(score.shape[-1], device=score.device)
        best = score == score.amax(dim=-1, keepdim=True)
        return torch.where(best, places, score.shape[-1]).amin(dim=-1)  # argmax would give any of equals on a GPU

    def refuse_other_encoder(self, policy: DrivingPolicy, where: str) -> None:
        """Raise SelectorError unless ``policy`` encodes scenes as the selector has learned to read them.

        Reads all of the encoder's weights once. ``where``: names the selector.
        """
        if differing := Maker.of(policy).differences(self.maker):
            raise SelectorError(
                f"{where} reads the tokens of another encoder ({'; '.join(differing)}): train one on roll-outs of this "
                "policy (tools/train_selector.py)"
            )

    # ------------------------------------------------------------------ files

    def save_pretrained(self, directory: Path | str) -> None:
        """Write ``config.json``, ``selector.safetensors`` and their checksums; each atomic."""
        directory = Path(directory)
        save_tensors(directory / SELECTOR_WEIGHTS, state_of(self))
        description = {
            "format": FORMAT,
            "dpvla_version": __version__,
            "selector": to_dict(self.config),
            "rule": self.rule.as_dict(),
            "outputs": [asdict(output) for output in self.outputs],
            "maker": self.maker,
            "context_width": self.network.context_width,
        }
        files.write_json(directory / CONFIG_FILE, description)
        write_manifest(directory, names=(CONFIG_FILE, SELECTOR_WEIGHTS))

    @classmethod
    def from_pretrained(cls, directory: Path | str, device: torch.device | str = "cpu") -> Selector:
        """Read what ``save_pretrained`` wrote, in eval mode.

        Raises FileNotFoundError or ValueError: files are missing, damaged, not finite or do not fit each other.
        """
        directory = Path(directory)
        path = directory / CONFIG_FILE
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing: {directory} is not a saved selector")
        found = read_as(path, _Description)
        if found["format"] != FORMAT:
            raise files.FileError(f"{path}: format {found['format']}, this code reads {FORMAT}")
        require_manifest(directory, True, [CONFIG_FILE])
        rule = ScoringRule.of(found["rule"])
        outputs = [Output(**one) for one in found["outputs"]]
        if {output.name for output in outputs} != {SCORE, *(one.name for one in rule.sub_scores)}:
            raise files.FileError(f"{path}: outputs are not the sub-scores of its rule and {SCORE}")
        config = from_dict(SelectorConfig, found["selector"], str(path))
        made = (config, rule, outputs, found["maker"], found["context_width"])
        weights = directory / SELECTOR_WEIGHTS
        with torch.device("meta"):
            require_same(state_of(cls(*made)), described(weights), weights)  # before memory is taken
        with empty_parameters():
            selector = cls(*made)
        materialize(selector, device)
        check_manifest(directory, [SELECTOR_WEIGHTS])
        read_into(state_of(selector), weights)
        return selector.eval().requires_grad_(False)


class _Output(TypedDict):
    name: str
    kind: Literal["share", "value"]
    mean: float
    std: float


class _Description(TypedDict):
    """``config.json``."""

    format: int
    selector: dict[str, Any]
    rule: RuleOnDisk
    outputs: list[_Output]
    maker: MakerOnDisk
    context_width: Size


def find_selector(path: Path | str) -> Path:
    """The folder of a selector from itself, from a checkpoint that holds one, or from a run: its newest checkpoint's.

    Raises SelectorError when it is none of these.
    """
    path = Path(path)
    newest = latest_checkpoint(path)
    for folder in (path, path / SELECTOR, *([newest / SELECTOR] if newest is not None else [])):
        if (folder / SELECTOR_WEIGHTS).is_file() and (folder / CONFIG_FILE).is_file():
            return folder
    raise SelectorError(
        f"no selector at {path}: expected a run of tools/train_selector.py, a checkpoint of it, or the folder "
        f"{SELECTOR} of one"
    )


def selector_hash(folder: Path) -> str:
    """SHA-256 of a selector: of what it says it is, and of its weights."""
    parts = [sha256_of(folder / name) for name in (CONFIG_FILE, SELECTOR_WEIGHTS)]
    return hashlib.sha256("".join(parts).encode()).hexdigest()
