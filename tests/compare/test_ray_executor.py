import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import ray

from melora.compare.jobs import Cell, Job
from melora.compare.process import Halt
from melora.compare.ray_executor import RayExecutor
from melora.compare.space import RATE
from melora.compare.state import state_of
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
def test_an_unreachable_ray(tmp_path: Path, address: str, message: str) -> None:
    with pytest.raises(MeloraError, match=re.escape(message)) as caught:
        RayExecutor(tmp_path, address, cpus=1, gpus=0)
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("shut_down")
def test_a_machine_that_does_not_see_the_folder(jobs: list[Job], tmp_path: Path) -> None:
    executor = RayExecutor(tmp_path / "gone", None, cpus=1, gpus=0)
    with pytest.raises(Exception, match=r"does not see .*gone; all machines of the cluster must share"):
        executor.submit(jobs[0], score=False, priority=0).result(120)
    executor.close()
