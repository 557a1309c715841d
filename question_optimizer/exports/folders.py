"""A folder replaced as a whole: it is filled beside the old one, and takes its place when done."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from question_optimizer.errors import UserError


@contextlib.contextmanager
def replaced(folder: Path, *, finished_by: str) -> Iterator[Path]:
    """An empty folder to fill; at the end of the block it takes the place of `folder`.

    On an error it is removed, and the old one stays as it was. UserError for a `folder` that is not
    empty and does not hold `finished_by`: it is none of ours, and must not be deleted. A process
    that is killed between the two renamings leaves the old folder under a name that the next call
    brings back.
    """
    folder = folder.resolve()
    new, old = (folder.with_name(f".{folder.name}.{what}") for what in ("new", "old"))
    try:
        recover(folder)
        refuse_foreign(folder, finished_by)
        folder.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir()
        yield new
        _settle(new)
        if folder.exists():
            folder.rename(old)
        new.rename(folder)
        shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        raise _unwritable(folder, error) from error
    finally:
        shutil.rmtree(new, ignore_errors=True)


@contextlib.contextmanager
def scratch(folder: Path) -> Iterator[Path]:
    """A folder beside `folder` for temporary files, gone at the end; what a killed process left
    in it goes first, so only one process at a time may ask for it."""
    place = folder.resolve().with_name(f".{folder.resolve().name}.work")
    shutil.rmtree(place, ignore_errors=True)
    try:
        place.mkdir(parents=True)
    except OSError as error:
        raise _unwritable(folder, error) from error
    try:
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)


def recover(folder: Path) -> None:
    """Bring back the old folder, where a process was killed before the new one had its place."""
    folder = folder.resolve()
    old = folder.with_name(f".{folder.name}.old")
    if old.is_dir() and not folder.exists():
        old.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def _unwritable(folder: Path, error: OSError) -> UserError:
    reason = error.strerror or str(error)
    return UserError(f"{folder}: cannot be written ({reason}); free the disk or change --out")


def refuse_foreign(folder: Path, finished_by: str) -> None:
    """UserError unless `folder` is missing, empty, or one of ours."""
    if folder.is_dir():
        if any(folder.iterdir()) and not (folder / finished_by).is_file():
            raise UserError(
                f"{folder}: holds other files and would be replaced as a whole; "
                "give a folder of its own with --out"
            )
    elif folder.exists():
        raise UserError(f"{folder}: is a file; give a folder with --out")


def _settle(folder: Path) -> None:
    """Every file on the disk before the folder gets its name."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
