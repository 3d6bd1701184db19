"""The batch size that fits into memory, found by trying."""

import logging
from collections.abc import Callable
from typing import TypeVar

from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size

from .failures import TrainingError
from .schema import one_line

logger = logging.getLogger(__name__)
T = TypeVar("T")


def with_halving(run: Callable[[int], T], rows: int) -> T:
    """`run(rows)`; where memory does not suffice, on a GPU or on the host, again with half the rows, and so on.

    Args:
        run: does all of its work anew in every call; it gets the batch size.
        rows: the batch size to start from.

    Raises:
        TrainingError: not even one row at a time fits.
    """
    while True:
        try:
            return run(rows)
        except RuntimeError as error:
            if not should_reduce_batch_size(error):
                raise
            if rows == 1:
                raise TrainingError(f"out of memory with one row at a time: {one_line(error)[:200]}") from None
        # After the handler, whose traceback would keep the failed batch's tensors alive.
        clear_device_cache(garbage_collection=True)
        rows //= 2
        logger.warning("out of memory; trying again with %d rows at a time", rows)
