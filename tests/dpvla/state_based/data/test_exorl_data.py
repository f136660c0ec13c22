"""ExORL episode files: collected here, relabeled from physics, loaded as transitions."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dpvla.files import DirectoryInUseError, FileError
from dpvla.state_based.data.exorl import collection, rewards
from dpvla.state_based.data.exorl.collection import collect_episodes
from dpvla.state_based.data.exorl.collection_config import ExORLCollection
from dpvla.state_based.data.exorl.files import EpisodeFile
from dpvla.state_based.data.exorl.load import load_exorl
from dpvla.state_based.data.exorl.rewards import rewards_of
from dpvla.state_based.data.exorl.rnd_explorer import RNDExplorer
from dpvla.state_based.data.load import load_data
from dpvla.state_based.data.local_data import OtherDataError
from dpvla.state_based.data.npz import read_npz
from dpvla.state_based.data.transitions import ACTION_LIMIT
from dpvla.state_based.environments.control_suite import ControlEnvironment
from dpvla.tensors import CheckpointError, load_tensors
from tests.other_process import locked_elsewhere
from tools import collect_exorl

LENGTH = 24
SMALL: dict[str, Any] = {
    "hidden": 16, "batch_size": 16, "random_steps": 30, "update_every": 2, "steps": LENGTH, "checkpoint_every": 2,
    "quiet": True,
}  # fmt: skip


def _config(out: Path, **changes: Any) -> ExORLCollection:
    return ExORLCollection(out=str(out), **{**SMALL, "domain": "walker", "episodes": 5, **changes})


def _load(folder: Path, name: str = "walker-run", **changes: Any) -> Any:
    return load_exorl(name, folder, **{"workers": 1, "progress": False, **changes})


@pytest.fixture(scope="module")
def walker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exorl")
    collect_episodes(_config(folder))
    return folder


@pytest.fixture
def copy(walker: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(walker, tmp_path / "copy"))


def _files(folder: Path) -> list[Path]:
    return sorted((folder / "walker" / "rnd" / "buffer").glob("*.npz"))


def test_files_have_the_official_layout(walker: Path) -> None:
    assert [path.name for path in _files(walker)] == [f"episode_{index:06d}_{LENGTH}.npz" for index in range(5)]
    with np.load(_files(walker)[0]) as file:
        shapes = {key: (file[key].shape, file[key].dtype.name) for key in file.files}
        first = {key: file[key][0] for key in ("action", "reward", "discount")}
    rows = LENGTH + 1
    assert shapes == {
        "observation": ((rows, 24), "float32"),
        "action": ((rows, 6), "float32"),
        "reward": ((rows, 1), "float32"),
        "discount": ((rows, 1), "float32"),
        "physics": ((rows, 18), "float64"),
    }
    assert not first["action"].any() and first["reward"] == 0 and first["discount"] == 1


def test_transition_i_goes_from_row_i_minus_1_to_row_i(walker: Path) -> None:
    data = _load(walker).train
    with np.load(_files(walker)[1]) as file:
        observation, action = file["observation"], file["action"]
    here = slice(LENGTH, 2 * LENGTH)
    np.testing.assert_array_equal(data.observations[here], observation[:-1])
    np.testing.assert_array_equal(data.next_observations[here], observation[1:])
    np.testing.assert_array_equal(data.actions[here], action[1:].clip(-ACTION_LIMIT, ACTION_LIMIT))


def test_masks_are_one_throughout_and_terminals_mark_the_time_limit(walker: Path) -> None:
    data = _load(walker).train
    assert len(data) == 5 * LENGTH and (data.masks == 1).all()
    assert torch.nonzero(data.terminals).flatten().tolist() == [LENGTH * (i + 1) - 1 for i in range(5)]


def test_rewards_from_physics_are_those_collected_by_stepping(walker: Path) -> None:
    """Collection stores the reward of the domain's first task."""
    stored = []
    for path in _files(walker):
        with np.load(path) as file:
            stored.append(file["reward"][1:, 0])
    np.testing.assert_array_equal(_load(walker, "walker-stand").train.rewards, np.concatenate(stored))


@pytest.mark.parametrize(
    "name", ["walker-walk", "walker-run", "quadruped-walk", "quadruped-run", "cheetah-run", "cheetah-run-backward",
             "jaco-reach-top-left", "jaco-reach-bottom-right"]
)  # fmt: skip
def test_relabelling_gives_the_rewards_of_stepping_and_of_full_resets(name: str) -> None:
    env, other = ControlEnvironment(name, seed=0), ControlEnvironment(name, seed=1).raw
    rng = np.random.default_rng(0)
    env.reset(3)
    physics, rewards = [], []
    for _ in range(40):
        rewards.append(env.step(rng.uniform(-1, 1, env.action_size)).reward)
        physics.append(env.physics_state())
    found = rewards_of(other, np.array(physics))
    np.testing.assert_array_equal(found, np.array(rewards, np.float32))
    for state, reward in zip(physics, found):
        with other.physics.reset_context():
            other.physics.set_state(state)
        assert np.float32(other.task.get_reward(other.physics)) == reward
    assert found.max() > 0


def test_one_of_running_forward_and_backward_is_rewarded(tmp_path: Path) -> None:
    collect_episodes(_config(tmp_path, domain="cheetah", episodes=1, steps=60, random_steps=100))
    forward, backward = (_load(tmp_path, f"cheetah-{task}").train.rewards for task in ("run", "run-backward"))
    assert (torch.minimum(forward, backward) == 0).all()
    assert (forward > 0).any() and (backward > 0).any()


def test_rewards_of_another_task_are_not_taken_for_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = {"walker-run": np.ones(3, np.float32), "walker-walk": np.zeros(3, np.float32)}
    monkeypatch.setattr(rewards, "_relabelled", lambda name, *_: made[name])
    episodes = [EpisodeFile(tmp_path, 0, 3)]
    for name in made:
        rewards.cached_rewards(name, episodes, "physics", tmp_path, 1, False)
    run, walk = sorted(tmp_path.glob("*.npz"))
    shutil.copy(walk, run)
    assert (rewards.cached_rewards("walker-run", episodes, "physics", tmp_path, 1, False) == 1).all()
    np.savez(run, rewards=made["walker-walk"])  # as earlier versions wrote them
    assert (rewards.cached_rewards("walker-run", episodes, "physics", tmp_path, 1, False) == 0).all()


def test_workers_do_not_change_the_rewards(walker: Path, copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rewards, "_CHUNK", 2)
    shutil.rmtree(copy / "walker" / "rnd" / "rewards", ignore_errors=True)
    np.testing.assert_array_equal(_load(copy, workers=2).train.rewards, _load(walker).train.rewards)


def test_rewards_are_computed_once_and_again_when_files_change(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def listen(env: Any, physics: np.ndarray) -> np.ndarray:
        calls.append(len(physics))
        return rewards_of(env, physics)

    monkeypatch.setattr(rewards, "rewards_of", listen)
    shutil.rmtree(copy / "walker" / "rnd" / "rewards", ignore_errors=True)
    first = _load(copy).train.rewards
    assert (_load(copy).train.rewards == first).all() and calls == [5 * LENGTH]
    _load(copy, "walker-walk")
    assert len(calls) == 2
    with np.load(_files(copy)[0]) as file:
        arrays = {key: file[key] for key in file.files}
    arrays["physics"][:, 2] += 0.1  # lean forward
    np.savez(_files(copy)[0], **arrays)
    assert (_load(copy).train.rewards[:LENGTH] != first[:LENGTH]).any() and len(calls) == 3
    cached = sorted((copy / "walker" / "rnd" / "rewards").glob("walker-run-*.npz"))
    cached[0].write_bytes(b"damaged")
    cached[1].write_bytes(b"damaged")
    _load(copy)
    assert len(calls) == 4


def test_the_first_whole_episodes_are_used_when_asked(walker: Path) -> None:
    whole = _load(walker).train
    for wanted, episodes in ((1, 1), (LENGTH, 1), (LENGTH + 1, 2), (10**9, 5)):
        part = _load(walker, max_transitions=wanted).train
        assert len(part) == episodes * LENGTH
        np.testing.assert_array_equal(part.rewards, whole.rewards[: len(part)])
    with pytest.raises(ValueError, match="max_transitions must be at least 1"):
        _load(walker, max_transitions=0)


def test_what_made_the_data_stands_beside_it(walker: Path, copy: Path) -> None:
    data = load_data("walker-run", walker)
    assert data.validation is None and data.about["origin"] == "locally generated"
    assert data.about["collected_with"]["collector"] == "rnd" and data.about["packages"].keys() == {
        "dm_control",
        "mujoco",
    }
    assert json.dumps(data.about)
    (copy / "walker" / "rnd" / "collection.json").unlink()
    assert load_data("walker-run", copy).about["origin"].startswith("unknown")


def test_missing_data_is_explained(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as error:
        _load(tmp_path, "jaco-reach-top-left")
    text = str(error.value)
    assert str(tmp_path / "jaco" / "rnd" / "buffer") in text
    assert "exorl/jaco/rnd.zip" in text and f"tools/collect_exorl.py --domain jaco --out {tmp_path}" in text


@pytest.mark.parametrize(
    "change, message",
    [
        ({"physics": None}, "lacks physics"),
        (
            {"physics": np.full((LENGTH + 1, 18), np.nan)},
            r"physics\[0, 0\] is nan, and 449 more are wrong",
        ),
        ({"observation": np.zeros((LENGTH + 1, 17), np.float32)}, r"observation rows have shape \(17,\).* \(24,\)"),
        ({"action": np.zeros((LENGTH, 6), np.float32)}, "action has 24 rows, where 25 belong"),
        (
            {"action": np.array([{}] * (LENGTH + 1), object)},
            "not a readable npz file .action: .* no plain numbers",
        ),
    ],
)
def test_unusable_episodes_are_named(copy: Path, change: dict[str, Any], message: str) -> None:
    path = _files(copy)[3]
    with np.load(path) as file:
        arrays = {key: file[key] for key in file.files} | change
    np.savez(path, **{key: value for key, value in arrays.items() if value is not None})
    with pytest.raises(ValueError, match=rf"(?s){re.escape(str(path))}.*{message}"):
        _load(copy)


def test_a_cut_off_episode_is_named(copy: Path) -> None:
    path = _files(copy)[2]
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(ValueError, match=f"{path} is not a readable npz file"):
        _load(copy)


def test_a_killed_collection_goes_on_and_gives_the_same_bytes(
    walker: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = collection.write_episode

    def dies_in_the_fourth(buffer: Path, index: int, arrays: dict[str, np.ndarray]) -> EpisodeFile:
        path = write(buffer, index, arrays)
        if index == 3:
            raise KeyboardInterrupt  # before the state that has seen it is saved
        return path

    monkeypatch.setattr(collection, "write_episode", dies_in_the_fourth)
    with pytest.raises(KeyboardInterrupt):
        collect_episodes(_config(tmp_path))
    assert len(_files(tmp_path)) == 4
    monkeypatch.setattr(collection, "write_episode", write)
    torch.rand(5)  # the caller's random numbers play no part
    collect_episodes(_config(tmp_path, episodes=4))
    collect_episodes(_config(tmp_path))
    assert [path.read_bytes() for path in _files(tmp_path)] == [path.read_bytes() for path in _files(walker)]


def test_other_settings_and_foreign_episodes_are_not_mixed(copy: Path) -> None:
    with pytest.raises(OtherDataError, match="seed 0, this run has 1"):
        collect_episodes(_config(copy, seed=1))
    _files(copy)[0].unlink()
    with pytest.raises(OtherDataError, match=r"has learned from 5 episodes but .* holds 4"):
        collect_episodes(_config(copy))
    (copy / "walker" / "rnd" / "collection.json").unlink()
    with pytest.raises(OtherDataError, match="not collected by this tool"):
        collect_episodes(_config(copy))


def test_novelty_falls_most_where_the_agent_has_learned() -> None:
    explorer = _quick_explorer()
    known = torch.randn(256, 4, generator=torch.Generator().manual_seed(1)) * torch.tensor([1.0, 1.0, 0.02, 0.02])
    new = known.flip(-1)
    explorer.normalize.eval()  # compare the states as they are
    before = [explorer._novelty(states).mean().item() for states in (known, new)]
    for _ in range(60):
        explorer.update(known, torch.zeros(256, 1), known)
    known_left, new_left = (explorer._novelty(s).mean().item() / b for s, b in zip((known, new), before))
    assert known_left < 0.3 and new_left > 2 * known_left


@pytest.mark.parametrize("side", [1, -1])
def test_the_actor_goes_where_novelty_is(side: int) -> None:
    """Actions of one sign lead to scattered states, the others always to the same one."""
    explorer = _quick_explorer()
    explorer.optimizers["predictor"].param_groups[0]["lr"] = 1e-4
    draws = torch.Generator().manual_seed(1)
    start = torch.zeros(256, 4)
    for _ in range(60):
        actions = torch.rand(256, 1, generator=draws) * 2 - 1
        reached = 2 * torch.randn(256, 4, generator=draws) * (actions * side > 0)
        explorer.update(start, actions, reached)
    assert side * torch.tanh(explorer.actor(start[:1])).item() > 0.05


def _quick_explorer() -> RNDExplorer:
    explorer = RNDExplorer(observation_size=4, action_size=1, hidden=32, seed=0)
    for optimizer in explorer.optimizers.values():
        optimizer.param_groups[0]["lr"] = 3e-3
    return explorer


def test_the_tool_collects_and_refuses_unknown_domains(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = ["--episodes", "1", "--steps", "5", "--hidden", "8", "--batch-size", "4", "--quiet"]
    collect_exorl.main(["--domain", "cheetah", "--out", str(tmp_path), *small])
    assert "1 episodes; locally generated" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        collect_exorl.main(["--domain", "hopper"])
    assert "unknown domain 'hopper'; choose from: walker" in capsys.readouterr().err


def test_two_collections_at_once_are_one_writer(copy: Path) -> None:
    before = {path.name: path.read_bytes() for path in _files(copy)}
    with locked_elsewhere(copy / "walker" / "rnd"), pytest.raises(DirectoryInUseError, match="is being written by"):
        collect_episodes(_config(copy, episodes=6))
    assert {path.name: path.read_bytes() for path in _files(copy)} == before
    assert load_data("walker-run", copy).about["origin"] == "locally generated"


def _former_state(folder: Path) -> dict[str, Any]:
    """What version 0.1.0 would have saved instead of what ``folder`` holds."""
    env = ControlEnvironment("walker-stand")
    explorer = RNDExplorer(env.observation_size, env.action_size, SMALL["hidden"], seed=0)
    path = folder / "walker/rnd/collector.safetensors"
    state = load_tensors(path)
    for name in ("sha256", "learned_from"):
        state.pop(name)
    episodes = int(state.pop("episodes"))
    explorer.restore(state, path)
    optimizers = {name: optimizer.state_dict() for name, optimizer in explorer.optimizers.items()}
    networks = {name.replace("normalize.", "normalise."): tensor for name, tensor in explorer.state_dict().items()}
    agent = {"networks": networks, "optimizers": optimizers, "generator": explorer.generator.get_state()}
    return {"episodes": episodes, "agent": agent}


def _as_before(folder: Path, saved: Any) -> Path:
    """``folder`` with a state as version 0.1.0 saved it."""
    former = folder / "walker/rnd/collector.pt"
    (folder / "walker/rnd/collector.safetensors").unlink()
    torch.save(saved, former)
    return former


def test_a_collection_of_an_earlier_version_goes_on_and_gives_the_same_bytes(copy: Path, tmp_path: Path) -> None:
    former = _as_before(copy, _former_state(copy))
    assert collect_episodes(_config(copy)) and former.exists(), "nothing to do"
    collect_episodes(_config(copy, episodes=7))
    assert not former.exists()
    collect_episodes(_config(tmp_path / "whole", episodes=7))
    assert _contents(copy) == _contents(tmp_path / "whole")


def _contents(folder: Path) -> dict[str, bytes]:
    files = [folder / "walker/rnd/collector.safetensors", *(folder / "walker/rnd/buffer").iterdir()]
    return {path.name: path.read_bytes() for path in files}


@pytest.mark.parametrize(
    "change, reason",
    [
        (lambda saved: [1, 2], "is no readable state"),
        (lambda saved: {"agent": saved["agent"]}, "is no readable state"),
        (lambda saved: saved | {"episodes": "many"}, "is no readable state"),
        (lambda saved: saved | {"agent": {"networks": {}}}, "is no readable state"),
        (lambda saved: saved | {"agent": saved["agent"] | {"networks": {}}}, "missing, first networks"),
        (lambda saved: saved | {"agent": saved["agent"] | {"generator": torch.zeros(4)}}, "generator"),
        (lambda saved: saved | {"agent": saved["agent"] | {"generator": 7}}, "generator"),
        (lambda saved: saved["agent"]["networks"]["actor.0.weight"].fill_(torch.nan) is None or saved, "holds NaN"),
    ],
)
def test_a_foreign_state_of_an_earlier_version_is_named(copy: Path, change: Any, reason: str) -> None:
    former = _as_before(copy, change(_former_state(copy)))
    with pytest.raises(CheckpointError, match=f"(?s)^{former}.*{reason}.*delete {former.parent} to collect anew$"):
        collect_episodes(_config(copy, episodes=6))
    assert len(_files(copy)) == 5


def test_a_damaged_state_is_named(copy: Path) -> None:
    path = copy / "walker/rnd/collector.safetensors"
    content = path.read_bytes()
    flipped = bytearray(content)
    flipped[-5] ^= 1
    for damaged in (b"", content[:1000], bytes(flipped), content[:8] + b"[" + content[9:]):
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=str(path)):
            collect_episodes(_config(copy, episodes=6))
    path.write_bytes(content)
    former = path.with_name("collector.pt")
    path.unlink()
    for damaged in (b"", b"PK\x03\x04", b"\x80\x04N."):
        former.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=f"^{former} is no readable state"):
            collect_episodes(_config(copy, episodes=6))
    assert len(_files(copy)) == 5


def test_a_state_goes_with_the_episodes_it_has_learned_from(copy: Path) -> None:
    first, second, *_ = _files(copy)
    first.write_bytes(second.read_bytes())
    with pytest.raises(OtherDataError, match="has learned from other episodes than"):
        collect_episodes(_config(copy, episodes=6))


@pytest.mark.parametrize(
    "content, reason",
    [
        ("{}", "origin: is missing"),
        ('{"origin": 3, "settings": {}}', "origin: expected a text, found 3"),
        ('{"origin": "official", "settings": null}', "settings: expected a mapping, found None"),
        ("[]", "must hold a JSON object"),
        ("[" * 100_000, "is not valid JSON: it is nested too deep"),
    ],
)
def test_a_damaged_description_is_named(copy: Path, content: str, reason: str) -> None:
    path = copy / "walker/rnd/collection.json"
    path.write_text(content)
    for use in (lambda: _load(copy), lambda: collect_episodes(_config(copy))):
        with pytest.raises(FileError, match=f"^{path}:? {reason}"):
            use()


@pytest.mark.parametrize(
    "key, value, reason",
    [
        ("action", np.inf, r"action\[3, 0\] is inf; expected at most ±1"),
        ("action", -1.5, r"action\[3, 0\] is -1\.5"),
        ("observation", 1e38, r"observation\[3, 0\] is 1e\+38"),
        ("physics", 1e300, r"physics\[3, 0\] is 1e\+300"),
        ("reward", np.nan, r"reward\[3, 0\] is nan"),
        ("discount", 7, r"discount\[3, 0\] is 7"),
    ],
)
def test_numbers_that_cannot_be_right_are_named(copy: Path, key: str, value: float, reason: str) -> None:
    path = _files(copy)[3]
    arrays = read_npz(path)
    arrays[key][3, 0] = value
    np.savez(path, **arrays)  # type: ignore[arg-type]
    with pytest.raises(FileError, match=f"^{path}: {reason}"):
        _load(copy)


@pytest.mark.parametrize("name", ["episode_000001_0.npz", "episode_000001_99999999999.npz", "episode_000001_12.npz"])
def test_lengths_that_are_not_so_are_named(copy: Path, name: str) -> None:
    path = _files(copy)[1].rename(_files(copy)[1].with_name(name))
    with pytest.raises(FileError, match=f"^{path}: (an episode without a transition|.* has 25 rows, where)"):
        _load(copy)
