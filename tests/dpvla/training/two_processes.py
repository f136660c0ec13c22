"""Run by `test_two_processes.py` under torchrun: imitation and DIPOLE in one go, and stopped and gone on with."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from accelerate import Accelerator

from dpvla.rl.config import WatchConfig
from dpvla.rl.held_out import SCORE, HeldOut
from dpvla.rl.stage import RolloutStage
from dpvla.rl.watching import Watch, Watched
from dpvla.training.best import Judge
from dpvla.training.loop import train
from dpvla.training.stage import Stage
from tests.dpvla.training.test_resume import LOOP, SENSORS, dipole, imitation, replace
from tests.scenes_in_memory import ScenesInMemory, prefer_left


def run(make: Callable[[Accelerator, Path], Stage], out: Path, stops: list[int]) -> Path:
    for stop in [*stops, 0]:
        accelerator = Accelerator(cpu=True)
        assert accelerator.num_processes == 2
        accelerator.end_training = lambda: None  # it would close the process group, which the next run needs
        stage = make(accelerator, out)
        config = replace(LOOP, steps=stage.steps, stop_after_step=stop)  # type: ignore[attr-defined]
        judge = None
        if getattr(stage, "held_out", None) is not None:
            judge, config = Judge(SCORE, "scenes"), replace(config, evaluate_every=stage.steps_per_cycle)  # type: ignore[attr-defined]
        try:
            last = train(stage, config, out, accelerator, judge=judge)
        except KeyboardInterrupt:
            accelerator.wait_for_everyone()
    weights = torch.cat([p.detach().flatten() for p in stage.module.parameters() if p.requires_grad])
    both = accelerator.gather(weights).view(2, -1)
    assert torch.equal(both[0], both[1]), "the processes ended with different weights"
    return last


def watched(start: Path) -> Callable[[Accelerator, Path], RolloutStage]:
    """DIPOLE, looked at in all ways."""

    def make(accelerator: Accelerator, out: Path) -> RolloutStage:
        stage = dipole(start, "behavior")(accelerator, out)
        stage.watch = Watch(WatchConfig(scenes=2), Watched({"other": prefer_left}, ("score",)), accelerator, 7)
        source = ScenesInMemory(5, SENSORS, seed=1)
        stage.held_out = HeldOut(source, {"": prefer_left}, stage.config, stage.tokens, accelerator)
        return stage

    return make


class Number(torch.nn.Module):
    """Its loss is a number."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.weight, self.number = torch.nn.Parameter(torch.zeros(1)), float(number)

    def forward(self, batch: object) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        return self.weight.sum() * 0 + self.number, {"a": torch.tensor(self.number)}


class Ranks:
    """A stage whose loss is its process's number, from 1."""

    def __init__(self, accelerator: Accelerator) -> None:
        self.module: torch.nn.Module = Number(accelerator.process_index + 1)

    def batches(self, first_step: int, log: object, whole_weights: object) -> Iterator[None]:
        while True:
            yield None

    def evaluate(self, step: int) -> dict[str, float]:
        return {"validation/loss": 0.5}

    def save(self, directory: Path) -> None:
        (directory / "model").mkdir()
        (directory / "model" / "config.json").write_text("{}")

    def restore(self, directory: Path) -> None: ...


if __name__ == "__main__":
    torch.set_num_threads(1)
    out = Path(sys.argv[1])
    model = run(lambda a, o: imitation(a, o, scenes=9), out / "imitation" / "straight", [])
    run(lambda a, o: imitation(a, o, scenes=9), out / "imitation" / "broken", [3, 4])
    run(watched(model), out / "dipole" / "straight", [])  # which changes nothing of it
    run(dipole(model, "behavior"), out / "dipole" / "broken", [1, 3])
    accelerator = Accelerator(cpu=True)
    accelerator.end_training = lambda: None
    train(Ranks(accelerator), replace(LOOP, steps=2, ema_decay=0.0), out / "ranks", accelerator)
    torch.distributed.destroy_process_group()
