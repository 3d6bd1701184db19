"""One process at a time works on a run: told by a lock that ends with the process, however it ends."""

import fcntl
from pathlib import Path
from typing import IO


class FileLock:
    """An advisory lock on a file that exists; where the file system has none (some network ones), nothing is locked."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: IO[bytes] | None = None

    def is_taken(self) -> bool:
        """Whether another process holds it now. Any number of processes may ask at once."""
        try:
            with self.path.open("rb") as file:
                return not _try(file, fcntl.LOCK_SH)
        except FileNotFoundError:
            return False

    def take(self) -> bool:
        """Hold it until `release` or the end of this process; False if another process holds it."""
        file = self.path.open("r+b")
        if not _try(file, fcntl.LOCK_EX):
            file.close()
            return False
        self._file = file
        return True

    def release(self) -> None:
        """Let go of it; without effect if it is not held."""
        if self._file is not None:
            self._file.close()
            self._file = None


def _try(file: IO[bytes], kind: int) -> bool:
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # no locks on this file system
        return True
    return True
