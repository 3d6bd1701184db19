"""Group: contestants that are measured in turns, in one run, on one problem."""

from collections.abc import Callable
from dataclasses import asdict, dataclass

import psutil
import torch

from ..errors import MeloraError
from .peers import Peer
from .row import Environment, Facts, Row
from .timing import interleave


@dataclass(frozen=True)
class Built:
    """A contestant ready to run.

    Attributes:
        step: one call, the thing that is timed.
        saved, peak: measure its memory, where the suite asks for it (memory.py).
    """

    parameters: int
    step: Callable[[], object]
    saved: Callable[[], int] | None = None
    peak: Callable[[], int] | None = None


@dataclass(frozen=True)
class Group:
    """One line of work for the command: checked, estimated, measured, written.

    Attributes:
        facts: what all contestants share.
        peers: who takes part; the first is what the others are compared with.
        build: makes the contestants, in the order of `peers`; nothing is allocated before.
        gflop: of one call of the base, in 10^9 operations: for the estimate only.
        needs: bytes at the peak, roughly.
        adapters: how many adapters each peer's batch uses; 1 for all when empty.
        extra_seconds: what takes time beside the calls, such as compiling.
        timed: whether calls are timed.
        measure_instead: for what is no call in this process: returns the rows itself.
    """

    facts: Facts
    peers: tuple[Peer, ...]
    build: Callable[[], list[Built]]
    gflop: float
    needs: int = 0
    adapters: tuple[int, ...] = ()
    extra_seconds: float = 0.0
    timed: bool = True
    measure_instead: Callable[[int, Environment], list[Row]] | None = None

    @property
    def labels(self) -> list[str]:
        counts = self.adapters or (1,) * len(self.peers)
        return [
            peer.label + (f", {count} adapters" if count > 1 else "")
            for peer, count in zip(self.peers, counts, strict=True)
        ]

    def check(self, device: str) -> None:
        """Raise MeloraError where this machine has not the memory."""
        on_gpu = device.startswith("cuda")
        free = torch.cuda.mem_get_info()[0] if on_gpu else psutil.virtual_memory().available
        if self.needs > free:
            raise MeloraError(
                f"bench {self.facts.title} needs about {self.needs / 2**30:.1f} GiB, {free / 2**30:.1f} GiB are free: "
                "choose fewer tokens or a smaller layer"
            )

    def measure(self, repetitions: int, environment: Environment) -> list[Row]:
        """Build, run in turns, and return a row for each contestant."""
        if self.measure_instead is not None:
            return self.measure_instead(repetitions, environment)
        torch.manual_seed(0)
        built = self.build()
        timings, calls = interleave([one.step for one in built], repetitions) if self.timed else ([], 1)
        return [
            row(
                environment,
                self.facts,
                peer,
                adapters=self.adapters[i] if self.adapters else 1,
                parameters=one.parameters,
                repetitions=repetitions if self.timed else 1,
                calls=calls,
                **(asdict(timings[i]) if self.timed else {}),
                saved_bytes=one.saved() if one.saved else None,
                peak_bytes=one.peak() if one.peak else None,
            )
            for i, (peer, one) in enumerate(zip(self.peers, built, strict=True))
        ]


def row(environment: Environment, facts: Facts, peer: Peer, **measured: object) -> Row:
    """A Row of its parts."""
    values = {**asdict(environment), **asdict(facts), **asdict(peer), **measured}
    values["contestant"] = values.pop("method")
    return Row(**values)
