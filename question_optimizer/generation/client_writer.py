"""Payload keys of points changed through an official client: a host's open one, or a server's."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from question_optimizer.chunk_store import ClientStore
from question_optimizer.errors import TRY_LATER, UserError, reason_of
from question_optimizer.records import PointId

if TYPE_CHECKING:
    from qdrant_client import QdrantClient

_NOT_FOUND = 404


class Change(NamedTuple):
    """Payload keys of one point to set, and keys to take away."""

    set: dict[str, Any]
    delete: Set[str] = frozenset()

    def __bool__(self) -> bool:
        """Whether it changes anything."""
        return bool(self.set or self.delete)


Changes = Mapping[PointId, Change]


class ClientWriter:
    """The points of one collection, read and changed through `client`, which stays open.

    What a point gets set is set whole or not at all, and then its keys are deleted: one request to
    a server for all points of an update, one transaction a point in a local folder.
    """

    def __init__(self, client: QdrantClient, collection: str, *, where: str = "the given client"):
        self._client = client
        self._where = where
        self._store = ClientStore(client, collection, where=where, owned=False)
        self.collection = self._store.collection

    def __enter__(self) -> ClientWriter:
        return self

    def __exit__(self, *exc: object) -> None:
        """Leave the client to whoever opened it."""

    def payloads(self, ids: Sequence[PointId]) -> dict[PointId, dict[str, Any]]:
        """{id: payload} of those that are there."""
        return dict(self._store.payloads(list(ids)))

    def update(self, changes: Changes) -> set[PointId]:
        """Make the changes; return the ids that are not there (any more).

        UserError where the client fails: some points may then have changed, each of them wholly.
        """
        with self._answering():
            if not changes or self._sent(changes):
                return set()
            return {i for i, change in changes.items() if not self._sent({i: change})}

    def _sent(self, changes: Changes) -> bool:
        """Whether all the points are there; if not, some of them may have been changed."""
        from qdrant_client.http.exceptions import UnexpectedResponse

        operations = [step for i, change in changes.items() for step in _operations(i, change)]
        try:
            self._client.batch_update_points(self.collection, operations, wait=True)
        except KeyError:  # what a local collection says of a point that it lacks
            return False
        except UnexpectedResponse as error:
            if error.status_code != _NOT_FOUND:
                raise
            return False
        return True

    @contextmanager
    def _answering(self) -> Iterator[None]:
        from qdrant_client.http.exceptions import ApiException

        try:
            yield
        except (ApiException, sqlite3.DatabaseError) as error:
            raise UserError(
                f"{self._where}: Qdrant did not write ({reason_of(error)}); run this again",
                exit_code=TRY_LATER,
            ) from error


def _operations(point_id: PointId, change: Change) -> Iterator[Any]:
    from qdrant_client import models

    if change.set:
        setting = models.SetPayload(payload=change.set, points=[point_id])
        yield models.SetPayloadOperation(set_payload=setting)
    if change.delete:
        deleting = models.DeletePayload(keys=sorted(change.delete), points=[point_id])
        yield models.DeletePayloadOperation(delete_payload=deleting)
