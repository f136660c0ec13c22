"""Tensors on disk: the format's own bytes, and memory for a model once."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from dpvla import tensors
from dpvla.batch import DrivingBatch
from dpvla.encoders.config import EncoderConfig
from dpvla.encoders.encoder import Encoder
from dpvla.encoders.registry import ENCODERS
from dpvla.models import DPVLA
from dpvla.tensors import CheckpointError, empty_parameters, load_tensors, materialize, read_into, save_tensors
from tests.dpvla.models.tiny_policies import CONFIGS, make_policy
from tests.gpu.pretended import PretendedGPU, value

MEGABYTE = 2**20
READERS: tuple[Callable[[Path], object], ...] = (lambda path: read_into({"a": torch.zeros(3)}, path), load_tensors)


def peak_bytes(work: Callable[[], object]) -> int:
    """Memory that ``work`` adds to this process at most."""
    status = Path("/proc/self/status")
    Path("/proc/self/clear_refs").write_text("5")

    def kilobytes(key: str) -> int:
        return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith(key))

    before = kilobytes("VmRSS")
    work()
    return 1024 * (kilobytes("VmHWM") - before)


def test_files_have_the_bytes_of_the_formats_own_writer(tmp_path: Path) -> None:
    made: dict[str, Tensor] = {"ü": torch.ones(2, 3).t(), "empty": torch.ones(0, 3), "number": torch.tensor(2.0)}
    made |= {f"{dtype} {index}": torch.ones(index).to(dtype) for dtype in tensors.DTYPES.values() for index in (3, 1)}
    save_tensors(tmp_path / "x", made)
    whole = {name: tensor.contiguous() for name, tensor in made.items()}
    assert (tmp_path / "x").read_bytes() == safetensors.torch.save(whole, metadata={"format": "pt"})


def test_a_type_that_is_not_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"x holds torch\.complex64"):
        save_tensors(tmp_path / "x", {"x": torch.ones(1, dtype=torch.complex64)})
    assert not [*tmp_path.iterdir()]


def test_writing_and_reading_take_no_second_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensors, "PORTION", 8 * MEGABYTE)
    path = tmp_path / "x.safetensors"
    made = {str(i): torch.rand(2 * MEGABYTE) for i in range(25)}  # 200 MB
    total = sum(tensor.nbytes for tensor in made.values())
    assert peak_bytes(lambda: save_tensors(path, made)) < 0.1 * total
    loaded = {name: torch.empty_like(tensor) for name, tensor in made.items()}
    assert peak_bytes(lambda: read_into(loaded, path)) < 1.12 * total
    assert all(torch.equal(loaded[name], tensor) for name, tensor in made.items())


@pytest.mark.parametrize("name", CONFIGS)
def test_a_policy_is_loaded_without_being_initialized_and_nothing_is_drawn(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = make_policy(CONFIGS[name]())
    policy.save_pretrained(tmp_path)
    seen: list[bool] = []

    def spy(module: nn.Module, device: torch.device | str) -> None:
        seen.extend(parameter.is_meta for parameter in module.parameters())
        materialize(module, device)

    monkeypatch.setattr("dpvla.models.driving_policy.materialize", spy)
    before = torch.get_rng_state()
    loaded = DPVLA.from_pretrained(tmp_path)
    assert torch.equal(torch.get_rng_state(), before)
    assert seen and all(seen)
    theirs = {**dict(loaded.named_parameters()), **dict(loaded.named_buffers())}
    for key, tensor in (*policy.named_parameters(), *policy.named_buffers()):  # those that no file holds, too
        assert torch.equal(tensor, theirs[key]) and tensor.stride() == theirs[key].stride(), key
        assert tensor.requires_grad == theirs[key].requires_grad, key


def test_a_policy_is_loaded_onto_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = make_policy(CONFIGS["tiny_florence"]())
    policy.save_pretrained(tmp_path)
    read = list(tensors.read_tensors(tmp_path / "model.safetensors"))  # which cannot map files to pretended tensors
    monkeypatch.setattr(tensors, "read_tensors", lambda path: iter(read))
    gpu = PretendedGPU()
    with gpu():
        loaded = DPVLA.from_pretrained(tmp_path, gpu.device)
        places = {tensor.device for tensor in (*loaded.parameters(), *loaded.buffers())}
    assert places == {gpu.device}
    theirs = {**dict(loaded.named_parameters()), **dict(loaded.named_buffers())}
    for key, tensor in policy.state_dict().items():
        assert torch.equal(value(theirs[key]), tensor), key


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 3, bias=False)
        self.second = nn.Linear(3, 3, bias=False)
        self.second.weight = self.first.weight


def test_tied_weights_stay_tied(tmp_path: Path) -> None:
    save_tensors(tmp_path / "x", Tied().state_dict())
    with empty_parameters():
        tied = Tied()
    materialize(tied, "cpu")
    read_into(tied.state_dict(), tmp_path / "x")
    assert tied.first.weight is tied.second.weight and not tied.first.weight.is_meta
    assert torch.equal(tied.first.weight, safetensors.torch.load_file(tmp_path / "x")["first.weight"])


def test_what_is_not_finite_is_found_at_either_end(tmp_path: Path) -> None:
    for number in (torch.nan, torch.inf, -torch.inf):
        save_tensors(tmp_path / "x", {"a": torch.ones(3), "b": torch.tensor([0.0, number, 1.0])})
        with pytest.raises(CheckpointError, match="x: b holds NaN or infinity, and 0 other"):
            read_into({"a": torch.zeros(3), "b": torch.zeros(3)}, tmp_path / "x")


def test_what_becomes_infinite_as_it_is_read_is_refused(tmp_path: Path) -> None:
    save_tensors(tmp_path / "x", {"a": torch.full((3,), 1e300, dtype=torch.float64)})
    for read in READERS:
        with pytest.raises(CheckpointError, match=r"a holds NaN or infinity|of another kind, first a"):
            read(tmp_path / "x")


def test_a_shape_that_no_number_of_64_bits_counts_is_named(tmp_path: Path) -> None:
    shape = {"dtype": "F32", "shape": [0, 2**62, 2**62], "data_offsets": [0, 0]}
    header = json.dumps({"a": shape}).encode()
    (tmp_path / "x").write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(CheckpointError, match=r"cannot read .*x: "):
        read_into({"a": torch.zeros(3)}, tmp_path / "x")


def test_names_of_strangers_are_short_in_errors(tmp_path: Path) -> None:
    save_tensors(tmp_path / "x", {"a" * 10**5: torch.zeros(3)})
    with pytest.raises(CheckpointError, match="1 unexpected, first aaa") as error:
        read_into({}, tmp_path / "x")
    assert len(str(error.value)) < 1000


@dataclass(frozen=True)
class MeasuringConfig(EncoderConfig):
    name: str = "self_measuring"


class SelfMeasuring(Encoder[MeasuringConfig]):
    """Runs itself once in its constructor, which weights without numbers cannot."""

    Config = MeasuringConfig

    def __init__(self, config: MeasuringConfig) -> None:
        super().__init__(config)
        self.map = nn.Linear(4, 6)
        self.token_width = int(self.map(torch.ones(4)).sum().isfinite()) * 6

    def forward(self, batch: DrivingBatch) -> tuple[Tensor, None]:
        return self.map(batch.ego_status)[:, None], None


def test_an_encoder_that_computes_in_its_constructor_is_loaded_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(ENCODERS, "self_measuring", SelfMeasuring)
    policy = make_policy(replace(CONFIGS["tiny"](), encoder=MeasuringConfig()))
    policy.save_pretrained(tmp_path)
    loaded = DPVLA.from_pretrained(tmp_path)
    assert all(torch.equal(loaded.state_dict()[key], tensor) for key, tensor in policy.state_dict().items())
