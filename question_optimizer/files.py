"""Files that phases meet in: written whole or not at all, read with the line number in the error.

Every output `X` has an `X.meta.json` beside it, written last, so that its existence means
"finished" and its contents say from what, by what and at what price. Nothing in a meta file
depends on the clock: the same inputs give the same bytes.
"""

from __future__ import annotations

import contextlib
import filecmp
import functools
import hashlib
import json
import os
import threading
from collections.abc import Iterable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from question_optimizer import __version__
from question_optimizer.errors import UserError

SCHEMA_VERSION = 1
Record = TypeVar("Record", bound=BaseModel)
_VERSIONED = ("dspy", "qdrant-client", "sentence-transformers")


def write_atomic(path: Path, content: str | bytes) -> bool:
    """Write all of `content` or leave the old file untouched; return whether anything changed."""
    data = content.encode() if isinstance(content, str) else content
    if path.is_file() and path.read_bytes() == data:
        return False
    return _write_parts(path, [data])


def _write_parts(path: Path, parts: Iterable[bytes]) -> bool:
    """As `write_atomic`, for what is larger than memory; compared with the old file at the end."""
    # The name tells whose it is, so that a killed process's leftover is recognised as one.
    part = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(path)
        with part.open("wb") as file:
            file.writelines(parts)
            file.flush()
            os.fsync(file.fileno())
        if path.is_file() and filecmp.cmp(part, path, shallow=False):
            _discard(part)
            return False
        part.replace(path)
    except OSError as error:
        _discard(part)
        raise UserError(
            f"{path}: cannot be written ({error.strerror}); free the disk or change --data-dir"
        ) from error
    except BaseException:
        _discard(part)
        raise
    return True


def _discard(part: Path) -> None:
    with contextlib.suppress(OSError):
        part.unlink()


def _remove_leftovers(path: Path) -> None:
    """Delete what killed processes left of an earlier attempt to write `path`."""
    if os.name == "nt":  # where asking whether a process lives may end it
        return
    for leftover in path.parent.glob(f".{path.name}.*-*.tmp"):
        pid = leftover.name.removeprefix(f".{path.name}.").split("-")[0]
        try:
            if pid.isdigit() and int(pid) != os.getpid():
                os.kill(int(pid), 0)
        except ProcessLookupError:
            leftover.unlink(missing_ok=True)
        except OSError:  # alive, but another user's
            continue


def write_json(path: Path, value: Any) -> bool:
    """`value` as indented UTF-8 JSON, atomically; return whether the file changed."""
    return write_atomic(path, json.dumps(value, ensure_ascii=False, indent=2) + "\n")


def write_jsonl(path: Path, rows: Iterable[dict[str, Any]]) -> bool:
    """One compact JSON object a line, atomically; return whether the file changed."""
    return write_atomic(path, b"".join(map(_line, rows)))


def stream_jsonl(path: Path, rows: Iterable[dict[str, Any]]) -> bool:
    """As `write_jsonl`, row by row, for what is larger than memory."""
    return _write_parts(path, map(_line, rows))


def _line(row: dict[str, Any]) -> bytes:
    return (json.dumps(row, ensure_ascii=False) + "\n").encode()


def read_json(path: Path, *, made_by: str | None) -> Any:
    """The parsed file; UserError naming the phase to run if it is missing or damaged.

    `made_by` is the script that makes the file, None for one that a person writes.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: does not exist; {_remedy(made_by, missing=True)}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text ({error.reason}); {_remedy(made_by)}") from error
    except json.JSONDecodeError as error:
        raise UserError(
            f"{path}:{error.lineno}: not JSON ({error.msg}); {_remedy(made_by)}"
        ) from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error


def read_jsonl(path: Path, *, made_by: str | None) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number, object) for each line that is not blank; UserError naming the bad line."""
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                try:
                    row = json.loads(line)
                except json.JSONDecodeError as error:
                    raise UserError(
                        f"{path}:{number}: not JSON ({error.msg}); {_remedy(made_by)}"
                    ) from error
                if not isinstance(row, dict):
                    raise UserError(f"{path}:{number}: not an object; {_remedy(made_by)}")
                yield number, row
    except FileNotFoundError:
        raise UserError(f"{path}: does not exist; {_remedy(made_by, missing=True)}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text ({error.reason}); {_remedy(made_by)}") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error


def read_records(path: Path, record: type[Record], *, made_by: str | None) -> list[Record]:
    """All lines of a JSONL file as `record`s; UserError naming the first bad line and field."""
    return [
        parsed(record, row, where=f"{path}:{number}", fix=_remedy(made_by))
        for number, row in read_jsonl(path, made_by=made_by)
    ]


def parsed(record: type[Record], row: Any, *, where: str, fix: str) -> Record:
    """`row` as a `record`; UserError `where: what is wrong; fix` if it does not fit."""
    try:
        return record.model_validate(row)
    except ValidationError as error:
        raise UserError(f"{where}: {faults(error)[0]}; {fix}") from error


def faults(error: ValidationError) -> list[str]:
    """What is wrong with a record, field by field, in words."""
    found = []
    for fault in error.errors(include_url=False):
        field = ".".join(str(part) for part in fault["loc"]) or "record"
        found.append(f"no {field}" if fault["type"] == "missing" else f"{field}: {fault['msg']}")
    return found


def _remedy(made_by: str | None, *, missing: bool = False) -> str:
    if made_by is None:
        return "name one that does" if missing else "correct the file"
    return f"run {made_by} first" if missing else f"rerun {made_by}"


def sha256(path: Path) -> str:
    """Hex digest of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest(value: Any) -> str:
    """Hex digest of a JSON value, independent of key order."""
    text = json.dumps(value, ensure_ascii=False, sort_keys=True, default=str)
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()


def meta_path(path: Path) -> Path:
    """Where the meta file of `path` lives."""
    return path.with_name(path.name + ".meta.json")


def write_meta(
    path: Path, *, phase: str, settings: dict[str, Any], inputs: dict[str, Any], **rest: Any
) -> bool:
    """Write `X.meta.json` for the finished output `path`; return whether it changed.

    `inputs` maps names to sha256 digests. `rest` is what the phase has to tell: counts, models,
    usage, rehearsal.
    """
    return write_json(
        meta_path(path),
        {
            "schema_version": SCHEMA_VERSION,
            "phase": phase,
            "output": {"name": path.name, "sha256": sha256(path)},
            "settings": settings,
            "inputs": inputs,
            **rest,
            "versions": _library_versions(),
        },
    )


def read_meta(path: Path, *, made_by: str) -> dict[str, Any]:
    """The meta of `path`; UserError if it is missing (unfinished) or newer than this program."""
    place = meta_path(path)
    if path.exists() and not place.exists():
        raise UserError(f"{path}: unfinished, {place.name} is missing; {_remedy(made_by)}")
    meta = read_json(place, made_by=made_by)
    if not isinstance(meta, dict) or not isinstance(meta.get("schema_version"), int):
        raise UserError(f"{place}: no schema_version; {_remedy(made_by)}")
    if meta["schema_version"] > SCHEMA_VERSION:
        raise UserError(
            f"{place}: schema version {meta['schema_version']} is newer than the {SCHEMA_VERSION} "
            "this program knows; upgrade question-optimizer"
        )
    return meta


def check_schema(path: Path) -> None:
    """UserError if `path` was made by a newer program; a file without meta may pass."""
    if meta_path(path).exists():
        read_meta(path, made_by="the phase that makes it")


def is_finished(path: Path, *, settings: dict[str, Any], inputs: dict[str, Any]) -> bool:
    """Whether `path` was finished from exactly these settings and inputs and is untouched since."""
    if not (path.is_file() and meta_path(path).is_file()):
        return False
    try:
        meta = read_meta(path, made_by="")
    except UserError:
        return False
    made_from = {"settings": meta.get("settings"), "inputs": meta.get("inputs")}
    output = meta.get("output")
    untouched = isinstance(output, dict) and output.get("sha256") == sha256(path)
    return untouched and digest(made_from) == digest({"settings": settings, "inputs": inputs})


@functools.cache
def _library_versions() -> dict[str, str]:
    found = {"question-optimizer": __version__}
    for name in _VERSIONED:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
