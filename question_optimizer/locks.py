"""Advisory file locks: who holds one, and holding one, alone or with others, while it is needed."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from question_optimizer.errors import TRY_LATER, UserError


def lock_holder(lock: Path) -> str | None:
    """None: nobody holds `lock` exclusively. Otherwise who does, '' where that cannot be told.

    The lock is probed, never held: a shared flock is tried and dropped at once.
    """
    try:
        file = lock.open("rb")
    except FileNotFoundError:
        return None
    except PermissionError:
        # Windows locks make the file unreadable; on POSIX a file we may not read tells nothing.
        return "" if os.name == "nt" else None
    with file:
        try:
            import fcntl
        except ImportError:
            return None
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return _holder_by_proc(os.fstat(file.fileno()).st_ino)
        except OSError:  # a file system without flock: nobody can hold one
            return None
    return None


@contextlib.contextmanager
def only_one(
    lock: Path, what: str, *, advice: str = "wait for its end or change --data-dir"
) -> Iterator[None]:
    """Hold `lock` exclusively inside the block; UserError (75) naming who holds it already.

    The lock goes with the process, however it ends; the file stays and means nothing by itself.
    """
    with _opened(lock) as file:
        try:
            import fcntl
        except ImportError:  # Windows: SQLite's own locks still keep the data whole
            yield
            return
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = lock_holder(lock)
            by = f" in {holder}" if holder else ""
            raise UserError(
                f"{lock.parent}: {what} is running{by}; {advice}",
                exit_code=TRY_LATER,
            ) from None
        yield


@contextlib.contextmanager
def one_at_a_time(lock: Path) -> Iterator[None]:
    """Hold `lock` exclusively inside the block, after waiting for whoever holds it."""
    with _opened(lock) as file:
        with contextlib.suppress(ImportError, OSError):  # no flock here: last one wins, all whole
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def share(lock: Path) -> IO[str]:
    """Hold `lock`, with any others that share it, until the file is closed or the process ends."""
    file = _opened(lock)
    with contextlib.suppress(ImportError, OSError):  # no flock here: nobody is told of it
        import fcntl

        fcntl.flock(file, fcntl.LOCK_SH)
    return file


def is_held(lock: Path) -> bool:
    """Whether anybody holds `lock`, this process included, alone or shared; as far as that can be
    told. It is probed: an exclusive flock is tried and dropped at once."""
    with _opened(lock) as file:
        try:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except (ImportError, OSError):
            return False
    return False


def _opened(lock: Path) -> IO[str]:
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        return lock.open("a")
    except OSError as error:
        raise UserError(f"{lock}: cannot be written ({error.strerror})") from error


def _holder_by_proc(inode: int) -> str:
    """The process that Linux lists as holding an exclusive flock on this inode, '' if none is."""
    try:
        lines = Path("/proc/locks").read_text(encoding="ascii").splitlines()
    except OSError:
        return ""
    for line in lines:
        fields = line.replace("-> ", "").split()
        # 1: FLOCK  ADVISORY  WRITE 4711 fe:00:123456 0 EOF
        # The device is not compared: overlay and btrfs report another one to stat().
        if len(fields) >= 6 and fields[3] == "WRITE" and fields[5].endswith(f":{inode}"):
            return _process_name(int(fields[4]))
    return ""


def _process_name(pid: int) -> str:
    try:
        arguments = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return f"process {pid}"
    command = " ".join(part.decode(errors="replace") for part in arguments if part)
    command = "".join(char for char in command if char.isprintable())
    return f"process {pid} ({command[:60]})" if command else f"process {pid}"
