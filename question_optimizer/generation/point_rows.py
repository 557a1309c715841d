"""A row of a local Qdrant folder: read without running its code, changed in its payload alone.

A row is a pickle of qdrant's own classes. It is read by the restricted unpickler and pickled again
under the names that it had, so that every client that could read it before can read it after, and
its vectors are the same to the last bit. What is written has been read back and compared.
"""

from __future__ import annotations

import copyreg
import functools
import io
import marshal
import pickle
from base64 import b64encode
from contextlib import suppress
from typing import Any

from pydantic_core import to_jsonable_python

from question_optimizer.generation.client_writer import Change
from question_optimizer.qdrant_folder import Inert, RestrictedUnpickler, point_id_of
from question_optimizer.records import PointId

_RECORDS = "qdrant_client.http.models.models"
_PROTOCOL = 4  # what every client's Python can read; of keys it is the one that clients use


class Unusual(Exception):
    """A row that could not be changed and be otherwise as it was."""


def key_of(point_id: PointId) -> str:
    """The table's key of a point, as clients make it."""
    return b64encode(pickle.dumps(point_id, protocol=_PROTOCOL)).decode()


class _Record:
    """An instance of one of qdrant's classes as a pickle describes it: the class and the state."""

    of: type  # the class by whose name it was pickled
    state: Any = None

    def __setstate__(self, state: Any) -> None:
        if self.state is not None:
            raise pickle.UnpicklingError("a record with two states")
        self.state = state

    @property  # type: ignore[misc]  # the pickler compares it with the class that it writes
    def __class__(self) -> type:  # type: ignore[override]
        return self.of


@functools.cache
def _record_class(name: str) -> type:
    from qdrant_client.http.models import models

    return type("_Record", (_Record,), {"of": getattr(models, name)})


class _Reader(RestrictedUnpickler):
    """Remembers what a pickle names, and keeps the state of records as it stands there."""

    def __init__(self, blob: bytes):
        super().__init__(io.BytesIO(blob))
        self.named: set[tuple[str, str]] = set()

    def find_class(self, module: str, name: str) -> Any:
        found = super().find_class(module, name)  # raises for what is not known to be inert
        self.named.add((module, name))
        if found is not Inert:
            return found
        if module != _RECORDS:
            raise pickle.UnpicklingError(f"unusual class {module}.{name}")
        return _record_class(name)


class _Writer(pickle.Pickler):
    """Writes records as they were read."""

    def reducer_override(self, value: Any) -> Any:
        if issubclass(type(value), _Record):
            return copyreg.__newobj__, (value.of,), value.state  # type: ignore[attr-defined]
        return NotImplemented


def payload_of(blob: bytes) -> dict[str, Any]:
    """A row's payload as the official client gives it: what a host stored as it came, as JSON."""
    payload = _fields(_loaded(blob)[0]).get("payload")
    if not isinstance(payload, dict):
        return {}
    as_json: dict[str, Any] = to_jsonable_python(payload, fallback=str)
    return as_json


def rewritten(blob: bytes, point_id: PointId, change: Change) -> bytes:
    """The row with its payload changed; an exception if anything else of it would differ."""
    point, named = _loaded(blob)
    fields = _fields(point)
    if point_id_of(key_of(fields["id"])) != point_id:
        raise Unusual(f"it says that it is {fields['id']!r}")
    payload = {**(fields.get("payload") or {}), **change.set}
    fields["payload"] = {k: v for k, v in payload.items() if k not in change.delete}
    written = io.BytesIO()
    _Writer(written, protocol=_PROTOCOL).dump(point)
    again, named_again = _loaded(written.getvalue())
    if not _same(point, again):
        raise Unusual("it reads back as something else")
    if not named_again <= named:  # a class that another client's libraries may lack
        raise Unusual(f"it would name {sorted(named_again - named)}")
    return written.getvalue()


def _loaded(blob: bytes) -> tuple[Any, set[tuple[str, str]]]:
    """(a row's point, what its pickle names)."""
    reader = _Reader(blob)
    return reader.load(), reader.named


def _fields(point: Any) -> dict[str, Any]:
    """A point's fields by name, as its state holds them."""
    fields = point.state.get("__dict__") if issubclass(type(point), _Record) else None
    if not isinstance(fields, dict):
        raise Unusual("it is no point")
    return fields


def _same(one: Any, other: Any) -> bool:
    """Whether two values are alike in types, order and the bits of every number."""
    if type(one) is not type(other):
        return False
    with suppress(ValueError):  # marshal knows plain data only; of those it writes every bit
        if marshal.dumps(one, 2) == marshal.dumps(other, 2):
            return True
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(_same, one, other))
    if isinstance(one, dict):
        return _same([*one], [*other]) and _same([*one.values()], [*other.values()])
    if issubclass(type(one), _Record):
        return _same(one.state, other.state)
    if hasattr(one, "tobytes"):  # an array or a number of numpy's
        return bool(one.dtype == other.dtype and one.shape == other.shape) and (
            one.tobytes() == other.tobytes()
        )
    return bool(one == other) and not isinstance(one, float)
