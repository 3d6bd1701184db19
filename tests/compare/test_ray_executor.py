import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import ray

from melora.compare.jobs import Cell, Job
from melora.compare.known import Known
from melora.compare.process import Halt
from melora.compare.ray_executor import RayExecutor, check_reachable
from melora.compare.runner import Searches, records, run_study
from melora.compare.space import RATE
from melora.compare.state import failure_of, state_of
from melora.compare.study import Study
from melora.errors import MeloraError

# Of Ray's own: what it says of its next version, and a child process that it leaves to the garbage collector.
pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning:ray"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:ray"),
]


@pytest.fixture
def shut_down() -> Iterator[None]:
    yield
    ray.shutdown()


@pytest.fixture
def jobs(make_study: Callable[..., Study]) -> list[Job]:
    cell = Cell(make_study(), "rating", "melora")
    return [cell.job({RATE: 0.02}, seed) for seed in range(3)]


@pytest.mark.usefixtures("shut_down")
def test_runs_on_a_local_ray_and_halts(jobs: list[Job], tmp_path: Path) -> None:
    (tmp_path / "study").mkdir()
    executor = RayExecutor(tmp_path / "study", None, cpus=1, gpus=0)
    assert executor.parallel >= 1
    done = executor.submit(jobs[0], score=True, priority=0)
    assert done.result(300) == "scored"
    assert state_of(jobs[0]) == "scored"

    executor.halt()
    with pytest.raises(Halt):
        executor.submit(jobs[1], score=False, priority=0).result(60)
    assert state_of(jobs[1]) == "open"
    executor.close()
    assert not (tmp_path / "study" / "halt").exists()


@pytest.mark.usefixtures("shut_down")
@pytest.mark.parametrize(
    ("cpus", "gpus", "message"),
    [(4096, 0, "--cpus 4096: the Ray cluster has "), (1, 99, "--gpus 99: the Ray cluster has 0, so no run would")],
)
def test_more_than_the_cluster_has(tmp_path: Path, cpus: float, gpus: float, message: str) -> None:
    with pytest.raises(MeloraError, match=message):
        RayExecutor(tmp_path, None, cpus=cpus, gpus=gpus)


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("127.0.0.1:1", "--ray 127.0.0.1:1: nothing answers there"),
        ("ray://127.0.0.1:1", "--ray ray://127.0.0.1:1: nothing answers there"),
        ("nowhere", "--ray nowhere: is no address; give HOST:PORT, ray://HOST:PORT or auto"),
        ("host:port", "--ray host:port: is no address"),
        ("auto", "--ray auto: can't be reached"),
    ],
)
def test_an_unreachable_ray(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, address: str, message: str) -> None:
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(MeloraError, match=re.escape(message)) as caught:
        RayExecutor(tmp_path, address, cpus=1, gpus=0)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("left_behind", [True, False])
def test_auto_finds_a_cluster_that_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, left_behind: bool) -> None:
    """Ray itself tries for many minutes to reach what a killed cluster left in its folder, or RAY_ADDRESS names."""
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    if left_behind:
        (tmp_path / "ray").mkdir()
        (tmp_path / "ray" / "ray_current_cluster").write_text("127.0.0.1:1")
    else:
        monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with pytest.raises(MeloraError, match=r"^--ray auto \(127\.0\.0\.1:1\): nothing answers there") as caught:
        RayExecutor(tmp_path, "auto", cpus=1, gpus=0)
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("shut_down")
def test_a_machine_that_does_not_see_the_folder(jobs: list[Job], tmp_path: Path) -> None:
    executor = RayExecutor(tmp_path / "gone", None, cpus=1, gpus=0)
    with pytest.raises(Exception, match=r"does not see .*gone; all machines of the cluster must share"):
        executor.submit(jobs[0], score=False, priority=0).result(120)
    executor.close()


@pytest.mark.usefixtures("shut_down")
def test_a_lost_process_is_the_failure_of_its_run_alone(jobs: list[Job], tmp_path: Path) -> None:
    (tmp_path / "study").mkdir()
    executor = RayExecutor(tmp_path / "study", None, cpus=1, gpus=0)
    submit = executor._submit
    executor._submit = lambda job, score: ray.remote(max_retries=0)(lambda: os._exit(1)).remote()
    assert executor.submit(jobs[0], score=False, priority=0).result(120) == "failed"
    assert failure_of(jobs[0]).kind == "killed"
    assert failure_of(jobs[0]).reason.startswith("Ray lost the process that made the run: ")
    executor._submit = submit
    assert executor.submit(jobs[1], score=False, priority=0).result(300) == "trained"
    executor.close()


@pytest.fixture
def cluster() -> Iterator[str]:
    """The address of a cluster of one machine that says to have a GPU."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = ["start", "--head", "--block", f"--port={port}", "--num-cpus=2", "--num-gpus=1"]
    # A session of its own: Ray's daemons end with the group, and no other Ray of this machine does.
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "ray.scripts.scripts",
            *command,
            "--include-dashboard=false",
            "--node-ip-address=127.0.0.1",
        ],
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    address = f"127.0.0.1:{port}"
    try:
        for _ in range(120):
            try:
                check_reachable(address)
                break
            except MeloraError:
                assert process.poll() is None
                time.sleep(0.5)
        yield address
    finally:
        ray.shutdown()
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(60)


def test_a_whole_study_on_a_cluster_that_shares_its_gpu(
    cluster: str, make_study: Callable[..., Study], tmp_path: Path
) -> None:
    study = make_study(methods={"lora": {"adapter": {"method": "lora", "r": 4}}}, seeds=[0], search={"extend": 0})
    (tmp_path / "study").mkdir()
    executor = RayExecutor(tmp_path / "study", cluster, cpus=1, gpus=0.5)
    assert executor.parallel == 2
    lines: list[str] = []
    run_study(study, Searches(study), Known(), executor, executor.parallel, lines.append)
    executor.close()
    rows = records(study, Searches(study), Known())
    assert [row.status for row in rows] == ["done", "done"]
    assert sum(row.test_score is not None for row in rows) == 1
    assert len(lines) == 3
