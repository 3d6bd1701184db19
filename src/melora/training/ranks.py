"""The processes (ranks) of one run under `accelerate launch`: which one speaks and writes, and how all fail together.

One process alone is rank 0 of 1; then nothing here waits or communicates.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch

from ..errors import MeloraError
from . import fsdp

T = TypeVar("T")
E = TypeVar("E", bound=BaseException)


_SHARED = "melora_told_by_main"


class RankError(RuntimeError):
    """Another rank failed; the message is that rank's."""


def rank() -> int:
    """This process's number, from 0; as the launcher says, so that it is known before any library is set up."""
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """How many processes make this run together."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main() -> bool:
    """Whether this is the process that speaks and writes."""
    return rank() == 0


def join(*, use_cpu: bool) -> None:
    """Meet the other ranks; later calls do nothing. Accelerate chooses the backend (gloo on CPUs).

    Args:
        use_cpu: the recipe's training.use_cpu.
    """
    if world_size() == 1 or torch.distributed.is_initialized():
        return
    from accelerate import PartialState

    if fsdp.is_on_cpus():
        fsdp.allow_cpus()
    PartialState(cpu=use_cpu or on_cpus())


def on_cpus() -> bool:
    """Whether there are CPUs alone, which accelerate must be told: it lets ranks meet on them only then."""
    return not torch.accelerator.is_available() and not is_sharded_launch()


def is_sharded_launch() -> bool:
    """Whether `accelerate launch` was told to use FSDP or DeepSpeed."""
    return _flag("ACCELERATE_USE_FSDP") or _flag("ACCELERATE_USE_DEEPSPEED")


def _flag(name: str) -> bool:
    return os.environ.get(name, "false").lower() == "true"


def leave() -> None:
    """Take leave of the other ranks, so that none is left waiting for this one."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def _joined() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized() and world_size() > 1


def gather(value: Any) -> list[Any]:
    """`value` of every rank, in their order. Every rank must call this; it waits for all."""
    if not _joined():
        return [value]
    values: list[Any] = [None] * world_size()
    torch.distributed.all_gather_object(values, value)
    return values


def any_rank(flag: bool) -> bool:
    """Whether `flag` is set on at least one rank: the same answer on all. Every rank must call this.

    One number is sent, on the device that the ranks compute on.
    """
    if not _joined():
        return flag
    from accelerate import PartialState

    votes = torch.tensor([int(flag)], device=PartialState().device)
    torch.distributed.all_reduce(votes, torch.distributed.ReduceOp.MAX)
    return bool(votes.item())


def shared(error: E) -> E:
    """Mark an error that every rank raises alike, the main one too: only that one need speak."""
    setattr(error, _SHARED, True)
    return error


def is_shared(error: BaseException) -> bool:
    """Whether the main rank reports this error as well."""
    return bool(getattr(error, _SHARED, False))


@contextmanager
def together() -> Iterator[None]:
    """A block that succeeds on all ranks or fails on all, with the first failing rank's error; it waits for all.

    Inside, ranks must not communicate: one that failed would leave the others waiting.

    Raises:
        MeloraError, RankError: on the ranks that did not fail themselves, what the failing one said.
    """
    failure: Exception | None = None
    try:
        yield
    except Exception as error:
        failure = error
    told = None if failure is None else (isinstance(failure, MeloraError), _kind(failure), str(failure))
    first = next((answer for answer in gather(told) if answer is not None), None)
    if failure is not None:
        raise shared(failure)
    if first is not None:
        is_input, kind, text = first
        raise shared(MeloraError(text) if is_input else RankError(f"{kind}{text}"))


def _kind(failure: Exception) -> str:
    """What the command line would put before the message of an error of this class."""
    return "" if type(failure).__name__ in ("TrainingError", "RankError") else f"{type(failure).__name__}: "


def main_only(work: Callable[[], object]) -> None:
    """Let the main process do `work`; all wait for it, and all fail if it fails."""
    with together():
        if is_main():
            work()


def in_turns(work: Callable[[], T]) -> T:
    """`work` on every rank, each machine's first rank before its others: they find in the cache what it downloaded."""
    is_first = int(os.environ.get("LOCAL_RANK", "0")) == 0
    results: list[T] = []
    for turn in (True, False):
        with together():
            if turn == is_first:
                results.append(work())
    return results[0]
