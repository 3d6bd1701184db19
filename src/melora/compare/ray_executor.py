"""Handing a study's runs to Ray: one started on this machine, or a cluster that shares the study's folder."""

import logging
import os
import socket
import threading
from concurrent.futures import Future
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ..errors import MeloraError
from ..training.schema import one_line
from .jobs import Job
from .process import Halt, Runs
from .state import State, note_failure, state_of

_REACH_SECONDS = 5.0
_HALT = "halt"  # the file whose being there tells every machine of the cluster to stop


class RayExecutor:
    """Every run is a Ray task, which starts the run's process on the machine that Ray chose.

    Args:
        output: the study's folder, on a disk that all machines share.
        address: of the cluster: auto, HOST:PORT or ray://HOST:PORT; None starts Ray here.
        cpus: processors that Ray sets aside for a run; also its number of threads.
        gpus: GPUs that Ray sets aside for a run, which alone it then sees; below 1 runs share one.

    Raises:
        MeloraError: Ray is missing or can't be reached, or has not what one run needs.
    """

    def __init__(self, output: Path, address: str | None, *, cpus: float, gpus: float) -> None:
        try:
            import ray
        except ModuleNotFoundError:
            raise MeloraError("--ray: Ray is not installed; run `pip install 'melora[compare]'`") from None
        self._ray = ray
        self._output = output.expanduser().absolute()
        self._halt_file = self._output / _HALT
        self._halt_file.unlink(missing_ok=True)
        self._connect(address)
        self._futures: set[Future[State]] = set()
        self._lock = threading.Lock()
        self._halted = False
        self.parallel = self._room(cpus, gpus)
        # A lost machine is no fault of the run's: another goes on from the last checkpoint, once.
        task = ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=1)(_make)
        threads = max(1, int(cpus))
        self._submit = lambda job, score: task.remote(job, score, str(self._output), os.getcwd(), threads)

    def submit(self, job: Job, *, score: bool, priority: int) -> "Future[State]":
        """Hand a run to Ray, which keeps its own order: the priority is not used."""
        future: Future[State] = Future()
        if self._halted:
            future.set_exception(Halt())
            return future
        reference = self._submit(job, score)
        threading.Thread(target=self._wait, args=(job, reference, future), daemon=True).start()
        return future

    def halt(self) -> None:
        """Stop all runs with a checkpoint, on all machines; tasks that wait end at once."""
        self._halted = True
        self._output.mkdir(parents=True, exist_ok=True)
        self._halt_file.touch()

    def close(self) -> None:
        """Leave Ray; one that was started here ends."""
        self._ray.shutdown()
        self._halt_file.unlink(missing_ok=True)

    def _connect(self, address: str | None) -> None:
        try:
            meant = _last_cluster() if address == "auto" else address
            if meant not in (None, "local"):
                check_reachable(str(meant), f"auto ({meant})" if address == "auto" else str(meant))
            self._ray.init(
                address=address if address is not None else "local",
                include_dashboard=False if address in (None, "local") else None,
                log_to_driver=False,
                logging_level=logging.ERROR,
                configure_logging=False,
            )
        except MeloraError:
            raise
        except Exception as error:  # ConnectionError, RuntimeError, ValueError: as Ray's versions have it
            raise MeloraError(
                f"--ray {address or ''}: can't be reached ({one_line(error)[:200]}); check that `ray status` works "
                "there (RAY_AUTH_MODE=token where the cluster asks for a token), or give --ray without an address to "
                "start Ray here"
            ) from None

    def _room(self, cpus: float, gpus: float) -> int:
        """How many runs go at a time now."""
        has = self._ray.cluster_resources()
        for name, key, wanted in (("--cpus", "CPU", cpus), ("--gpus", "GPU", gpus)):
            if wanted > has.get(key, 0):
                self._ray.shutdown()
                raise MeloraError(
                    f"{name} {wanted:g}: the Ray cluster has {has.get(key, 0):g}, so no run would ever start; ask for "
                    "less"
                )
        rooms = [has["CPU"] / cpus] + ([has["GPU"] / gpus] if gpus else [])
        return max(1, int(min(rooms)))

    def _wait(self, job: Job, reference: Any, future: "Future[State]") -> None:
        lost = self._ray.exceptions
        try:
            state: State | None = self._ray.get(reference)
        except (lost.WorkerCrashedError, lost.NodeDiedError, lost.OutOfMemoryError) as error:
            if self._halted:
                state = None
            else:
                note_failure(job, "killed", f"Ray lost the process that made the run: {one_line(error)[:300]}")
                state = state_of(job)
        except Exception as error:
            # What the task itself raised lies within Ray's error, whose text is a traceback.
            future.set_exception(Halt() if self._halted else getattr(error, "cause", None) or error)
            return
        if state is None:
            future.set_exception(Halt())
        else:
            future.set_result(state)


def _make(job: Job, score: bool, output: str, folder: str, threads: int) -> State | None:
    """In a Ray worker: make one run; None if the study was told to stop.

    Args:
        job: the run.
        score: whether to score it.
        output: the study's folder.
        folder: what relative paths in recipes are relative to.
        threads: of the run.

    Raises:
        MeloraError: this machine does not see the study's folder.
    """
    if not Path(output).is_dir() or not Path(folder).is_dir():
        raise MeloraError(
            f"{socket.gethostname()} does not see {output}; all machines of the cluster must share the folder that the "
            "study runs in, and its output"
        )
    os.chdir(folder)
    runs = Runs(Path(output), threads)
    over = threading.Event()

    def watch() -> None:
        while not over.wait(1.0):
            if (Path(output) / _HALT).exists():
                runs.halt()
                return

    if (Path(output) / _HALT).exists():
        return None
    threading.Thread(target=watch, daemon=True).start()
    try:
        return runs.make(job, score=score)
    except Halt:
        return None
    finally:
        over.set()


def _last_cluster() -> str | None:
    """What `auto` stands for: RAY_ADDRESS, a Ray that runs on this machine, or the last one, which may be gone.

    Raises:
        ConnectionError: there is none.
    """
    from ray._private.services import get_ray_address_from_environment

    address: str | None = get_ray_address_from_environment("auto", None)
    return address


def check_reachable(address: str, told: str | None = None) -> None:
    """Raise a MeloraError if nothing listens at a cluster's address: Ray itself tries for minutes to reach it.

    Args:
        address: HOST:PORT, or with ray:// before it.
        told: what the error calls it; None: the address.
    """
    told = told or address
    parts = urlsplit(address if "://" in address else f"ray://{address}")
    try:
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    if not host or not port:
        raise MeloraError(f"--ray {told}: is no address; give HOST:PORT, ray://HOST:PORT or auto")
    try:
        socket.create_connection((host, port), _REACH_SECONDS).close()
    except OSError as error:
        raise MeloraError(
            f"--ray {told}: nothing answers there ({one_line(error)}); start Ray with `ray start --head`, or give "
            "--ray without an address to start it here"
        ) from None
