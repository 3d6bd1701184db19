import os
import signal
import threading
from types import FrameType

from melora.training.signals import StopRequest


def test_the_first_sigterm_asks_and_the_second_acts_as_before() -> None:
    got: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        got.append(number)

    before = signal.signal(signal.SIGTERM, note)
    try:
        with StopRequest() as stop:
            assert not stop.received
            os.kill(os.getpid(), signal.SIGTERM)
            assert stop.received
            assert got == []
            os.kill(os.getpid(), signal.SIGTERM)
            assert got == [signal.SIGTERM]
        with StopRequest():
            pass
        assert signal.getsignal(signal.SIGTERM) is note
    finally:
        signal.signal(signal.SIGTERM, before)


def test_in_another_thread_nothing_is_changed() -> None:
    seen: list[object] = []

    def work() -> None:
        with StopRequest() as stop:
            seen.extend([stop.received, signal.getsignal(signal.SIGTERM)])

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [False, signal.getsignal(signal.SIGTERM)]
