"""SIGTERM as a request: what batch systems such as Slurm send some time before they kill."""

import signal
import threading
from types import FrameType, TracebackType
from typing import Self


class StopRequest:
    """A context in which the first SIGTERM only sets `received`; the second acts as it would without this.

    Outside the main thread, where Python lets no handler be set, nothing is changed.
    """

    def __init__(self) -> None:
        self.received = False
        self._before: signal._HANDLER = None

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, self._receive)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.received = True
        self._restore()

    def _restore(self) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)
            self._before = None
