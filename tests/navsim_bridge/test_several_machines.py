"""Jobs on a Ray cluster of two machines (two nodes of this one), of which the second is killed in the middle."""

from __future__ import annotations

import os
import pickle
import platform
from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from dpvla import __version__
from dpvla.parallel import Executor, ExecutorConfig, make_executor, run_jobs
from dpvla.parallel.ray_cluster import TRIES, Place, RayConfig, import_ray
from navsim_bridge.agents import crew, options
from navsim_bridge.evaluation import run as evaluation
from navsim_bridge.files.logs import log_path
from navsim_bridge.files.pickles import load_plain_pickle
from tests.navsim_bridge.conftest import LOG, World
from tests.worker_jobs import end_the_worker, fail_at_two, large, opened
from tools import cache_metrics, evaluate, export_submission

pytestmark = pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed")
TEAM = ["--team-name", "a", "--authors", "b", "--email", "c", "--institution", "d", "--country", "e"]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Two nodes with one core each; ``second`` is one of them."""
    ray, before = import_ray(), os.environ.get("RAY_ADDRESS")
    from ray.cluster_utils import Cluster

    node: dict[str, Any] = {"num_cpus": 1, "object_store_memory": 100 << 20, "include_dashboard": False}
    calm = {"memory_monitor_refresh_ms": 0}  # whatever else fills this machine
    made: Any = Cluster(initialize_head=True, head_node_args={**node, "_system_config": calm})
    made.second = made.add_node(**node)
    made.wait_for_nodes()
    os.environ["RAY_ADDRESS"] = made.address
    yield made
    ray.shutdown()
    made.shutdown()
    del os.environ["RAY_ADDRESS"]
    os.environ.update({"RAY_ADDRESS": before} if before else {})


@pytest.fixture(scope="module")
def executor(cluster: Any) -> Executor:
    return make_executor(RayConfig())


@pytest.fixture(scope="module")
def three_logs(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven scenes each, with tokens of their own."""
    root = tmp_path_factory.mktemp("three")
    for name in "abc":
        frames = load_plain_pickle(log_path(world.root, "mini", LOG))
        for frame in frames:
            frame["token"] = name + frame["token"][1:]
        path = log_path(root, "mini", name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(pickle.dumps(frames))
    return root


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name not in (".lock", "summary.json")}


def test_caches_scores_and_submissions_are_those_of_one_process_byte_for_byte(
    executor: Executor, world: World, three_logs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def its_workers_again(config: ExecutorConfig, workers: int) -> Executor:
        return executor if config.name == "ray" else make_executor(config, workers)

    for module in (cache_metrics, options):
        monkeypatch.setattr(module, "make_executor", its_workers_again)
    monkeypatch.chdir(tmp_path)  # relative names mean the same to all workers
    monkeypatch.setattr(evaluation, "SCENES_AT_ONCE", 4)
    monkeypatch.setattr(crew, "SCENES_AT_ONCE", 4)
    data = ["--split", str(world.split_file), "--data-root", str(three_logs)]
    maps, agent = ["--maps-root", str(world.maps)], ["--agent", "constant_velocity"]
    for name, who in {"one": ["--workers", "1"], "many": ["--executor", "ray"]}.items():
        cache_metrics.main([*data, *maps, "--out", f"{name}/cache", *who])
        evaluate.main([*data, *agent, "--metric-cache", f"{name}/cache", "--out", f"{name}/scores", *who])
        export_submission.main([*data, *agent, *TEAM, "--out", f"{name}/plans/submission.pkl", *who])
    for folder in ("cache", "scores", "plans"):
        assert contents(Path("many") / folder) == contents(Path("one") / folder)
    assert len(contents(Path("many/cache"))) == 4


def test_what_a_job_raises_is_raised_as_it_is(executor: Executor) -> None:
    with pytest.raises(ValueError, match=r"^scene abc of log x is odd$"):
        list(run_jobs(fail_at_two, [(n,) for n in range(4)], executor))


def test_a_folder_that_a_worker_does_not_see_is_named_with_the_machine(executor: Executor, tmp_path: Path) -> None:
    machine, gone = platform.node(), tmp_path / "gone"
    with pytest.raises(OSError, match=rf"^{machine} does not see {gone} \(to be read\): .* share folders"):
        list(run_jobs(fail_at_two, [(1,)], executor, reads=[gone]))
    other = Place(__version__, str(tmp_path), (), tmp_path / ".workers-of-another-folder")
    with pytest.raises(OSError, match=rf"^{machine} does not see {tmp_path} \(to be written to\)"):
        other.enter()
    with pytest.raises(OSError, match=rf"^{machine} does not see {gone} \(the working directory\)"):
        replace(other, folder=str(gone)).enter()
    with pytest.raises(ValueError, match=f"^{machine} has dpvla .*, not 0.0: install the same on all machines"):
        replace(other, version="0.0").enter()


def test_a_gpu_that_the_cluster_has_not_is_not_waited_for(executor: Executor) -> None:
    with pytest.raises(ValueError, match="the Ray cluster has no GPU"):
        list(run_jobs(fail_at_two, [(1,)], executor, gpu_each=True))


def test_a_job_that_kills_its_workers_is_given_up(executor: Executor, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ChildProcessError, match=f"a job has cost {TRIES} workers"):
        list(run_jobs(end_the_worker, [(0,)], executor))
    said = capfd.readouterr()
    assert said.out == "" and said.err == f"a worker on {platform.node()} was lost; what it was doing is done again\n"


def test_a_killed_machine_loses_nothing(
    cluster: Any, executor: Executor, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    numbers, nodes, workers = [], [], []
    for number, array, worker, node in run_jobs(
        large, [(n,) for n in range(16)], executor, opener=opened, in_order=True
    ):
        assert array.sum() == 200_000 * number and array.flags.writeable
        numbers.append(number)
        nodes.append(node)
        workers.append(worker)
        if {*nodes} == {cluster.head_node.node_id, cluster.second.node_id} and cluster.second in cluster.worker_nodes:
            cluster.remove_node(cluster.second, allow_graceful=False)
    assert numbers == [*range(16)]
    assert {*nodes} == {cluster.head_node.node_id, cluster.second.node_id} and len({*workers}) == 2
    said = capfd.readouterr()
    assert said.err.count("was lost; what it was doing is done again") == 1
    assert "aylet" not in said.out + said.err
