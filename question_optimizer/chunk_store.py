"""Where chunks live: a local Qdrant folder, a client somebody has open, or a server.

Every store gives the same ids and payloads for the same data, in the same order. Payloads become
`Chunk` records here, and generated questions become payload updates.
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from question_optimizer.errors import TRY_LATER, UserError, reason_of
from question_optimizer.hostile_text import storable
from question_optimizer.qdrant_folder import (
    QdrantFolder,
    choose_collection,
    dense_vector,
    id_order,
    read_folder_meta,
    refuse_if_locked,
)
from question_optimizer.records import Chunk, PointId

if TYPE_CHECKING:
    from qdrant_client import QdrantClient

QUERY_KEY = "generated_query"
PROVENANCE_KEY = "generated_query_provenance"
TEXT_KEYS = ("text", "chunk_text", "document", "page_content", "content")
_PAGE = 10_000  # local mode sorts every id for every page, so pages must be few
_BATCH = 200


class ChunkStore(Protocol):
    """One collection, open for reading."""

    collection: str

    def point_ids(self) -> list[PointId]:
        """Every point id, numbers first, then UUIDs as text."""

    def payloads(self, ids: list[PointId]) -> Iterator[tuple[PointId, dict[str, Any]]]:
        """(id, payload) in the order asked for; ids that are not there are left out."""

    def vectors(self, ids: list[PointId]) -> Iterator[tuple[PointId, list[float]]]:
        """(id, dense vector) in the order asked for; ids without one are left out."""

    def close(self) -> None:
        """Release files and connections."""


class ClientStore:
    """A collection read through an official client: a server's, or one that a host has open."""

    def __init__(self, client: QdrantClient, collection: str | None, *, where: str, owned: bool):
        self.client = client
        self._owned = owned
        self._where = where
        try:
            there = [described.name for described in client.get_collections().collections]
            aliases = {a.alias_name: a.collection_name for a in client.get_aliases().aliases}
        except Exception as error:  # the client wraps whatever its transport raises
            there, aliases = self._names_by_asking(collection, error)
        self.collection = choose_collection(collection, there, aliases=aliases, where=where)

    def _names_by_asking(
        self, collection: str | None, error: Exception
    ) -> tuple[list[str], dict[str, str]]:
        """Servers older than aliases, and keys that may not list: ask for the one collection."""
        try:
            if collection and self.client.collection_exists(collection):
                return [collection], {}
            return [d.name for d in self.client.get_collections().collections], {}
        except Exception:
            self.close()
            denied = getattr(error, "status_code", None) in (401, 403)
            advice = "set QO_QDRANT_API_KEY" if denied else "is it running there?"
            raise UserError(
                f"{self._where}: no answer from Qdrant ({reason_of(error)}); {advice}"
            ) from error

    @contextmanager
    def _answering(self) -> Iterator[None]:
        from qdrant_client.http.exceptions import ApiException

        try:
            yield
        except ApiException as error:
            raise UserError(
                f"{self._where}: Qdrant did not answer ({reason_of(error)}); run this again",
                exit_code=TRY_LATER,
            ) from error

    def point_ids(self) -> list[PointId]:
        ids: list[PointId] = []
        offset = None
        with self._answering():
            limit = max(1, min(self.client.count(self.collection, exact=True).count, _PAGE))
        while True:
            with self._answering():
                records, offset = self.client.scroll(
                    self.collection,
                    limit=limit,
                    offset=offset,
                    with_payload=False,
                    with_vectors=False,
                )
            ids.extend(_plain_id(record.id) for record in records)
            if offset is None:
                return sorted(ids, key=id_order)

    def payloads(self, ids: list[PointId]) -> Iterator[tuple[PointId, dict[str, Any]]]:
        for start in range(0, len(ids), _BATCH):
            batch = ids[start : start + _BATCH]
            with self._answering():
                records = self.client.retrieve(
                    self.collection, batch, with_payload=True, with_vectors=False
                )
            found = {_plain_id(record.id): record.payload or {} for record in records}
            yield from ((point_id, found[point_id]) for point_id in batch if point_id in found)

    def vectors(self, ids: list[PointId]) -> Iterator[tuple[PointId, list[float]]]:
        for start in range(0, len(ids), _BATCH):
            batch = ids[start : start + _BATCH]
            with self._answering():
                records = self.client.retrieve(
                    self.collection, batch, with_payload=False, with_vectors=True
                )
            found = {_plain_id(record.id): record.vector for record in records}
            for point_id in batch:
                vector = dense_vector(found.get(point_id), where=f"{self._where}: point {point_id}")
                if vector is not None:
                    yield point_id, vector

    def close(self) -> None:
        if self._owned:
            self.client.close()


def _plain_id(point_id: Any) -> PointId:
    return point_id if isinstance(point_id, int) else str(point_id)


class _CopiedFolderStore(ClientStore):
    """A local folder read by the official client, on a private copy: opening one writes to it."""

    def __init__(self, path: Path, collection: str | None, *, even_if_locked: bool):
        # The restricted reader goes first over every point: the official client unpickles anything.
        with QdrantFolder(path, collection, even_if_locked=even_if_locked) as vetted:
            vetted.vet()
            name = vetted.collection
        self._copy = tempfile.TemporaryDirectory(prefix="question-optimizer-")
        copy = Path(self._copy.name) / "qdrant"
        # It would load every collection, so it gets to see the one that was vetted.
        shutil.copytree(path / "collection" / name, copy / "collection" / name)
        meta = {"collections": {name: read_folder_meta(path)["collections"][name]}, "aliases": {}}
        (copy / "meta.json").write_text(json.dumps(meta), encoding="utf-8")
        try:
            client = _client_on(copy)
        except Exception as error:  # pydantic's, sqlite3's or its own: whatever it stumbles over
            self._copy.cleanup()
            raise UserError(
                f"{path}: the official client cannot open it ({reason_of(error)}); "
                "leave out --via-client"
            ) from error
        super().__init__(client, name, where=str(path), owned=True)

    def close(self) -> None:
        super().close()
        self._copy.cleanup()


def open_store(
    *,
    path: Path | None = None,
    url: str | None = None,
    api_key: str | None = None,
    collection: str | None = None,
    via_client: bool = False,
    even_if_locked: bool = False,
) -> ChunkStore:
    """The collection at `path` or `url`. UserError saying what to do where it cannot be opened."""
    if url:
        from qdrant_client import QdrantClient

        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # an insecure key on loopback
                # Its version check warns from a thread, in the middle of our output.
                client = QdrantClient(
                    url=url, api_key=api_key, timeout=60, check_compatibility=False
                )
        except ValueError as error:  # urllib3's LocationParseError is one
            raise UserError(
                f"{without_secrets(url)}: no server's address; it looks like http://localhost:6333"
            ) from error
        return ClientStore(client, collection, where=without_secrets(url), owned=True)
    if path is None:
        raise UserError("no chunks to read: give --qdrant-path or --qdrant-url (or QO_QDRANT_PATH)")
    if via_client:
        return _CopiedFolderStore(path, collection, even_if_locked=even_if_locked)
    return QdrantFolder(path, collection, even_if_locked=even_if_locked)


def without_secrets(url: str) -> str:
    """A server's address as it may be shown: without user, password and query."""
    scheme, mark, rest = url.partition("://")
    address = re.split(r"[?#]", rest if mark else scheme)[0]
    before, slash, path = address.partition("/")
    return f"{scheme + mark if mark else ''}{before.rpartition('@')[2]}{slash}{path}"


def open_client(path: Path) -> QdrantClient:
    """An official client on an existing local folder, for writing.

    Folder, lock and every stored point are checked first: the client itself would create a
    database where there is none, load every point before it tries the lock, and run whatever code
    a hostile pickle holds.
    """
    names = read_folder_meta(path)["collections"]
    refuse_if_locked(path)
    for name in names:
        with QdrantFolder(path, name) as folder:
            folder.vet()
    return _client_on(path)


def _client_on(path: Path) -> QdrantClient:
    from qdrant_client import QdrantClient

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "local mode is not recommended for more than 20,000"
        try:
            return QdrantClient(path=str(path), force_disable_check_same_thread=True)
        except RuntimeError as error:  # somebody was faster
            raise UserError(
                f"{path}: locked; close the other Qdrant client and run this again",
                exit_code=TRY_LATER,
            ) from error


# ---------------------------------------------------------------------- reading


def chunk_of(
    point_id: PointId, payload: Mapping[str, Any], text_key: str | None = None
) -> tuple[Chunk | None, str]:
    """(chunk, payload key its text came from); (None, '') for a point without text."""
    node = _node(payload)
    text, key = _text_in(payload, node, text_key)
    if not text:
        return None, ""
    metadata = {**_nested(payload), **node.get("metadata", {}), **payload}
    origin = metadata.get("origin")
    file_name = metadata.get("file_name") or (
        origin.get("filename") if isinstance(origin, dict) else None
    )
    headings = metadata.get("headings")
    return (
        Chunk(
            chunk_id=point_id,
            chunk_text=storable(text),
            document_id=_known(metadata, "document_id", "doc_id", "ref_doc_id")
            or _string(file_name),
            file_name=_string(file_name),
            headings=[_string(h) or "" for h in headings] if isinstance(headings, list) else [],
            page_no=_first_page(metadata.get("doc_items")),
            existing_query=_former_query(metadata),
        ),
        key,
    )


def former_query_of(payload: Mapping[str, Any]) -> str | None:
    """The question that the old generator left in a payload or in its node."""
    return _former_query({**_node(payload).get("metadata", {}), **payload})


def _former_query(payload: Mapping[str, Any]) -> str | None:
    """The old generator's question, which ours keeps beside its own when it replaces one."""
    provenance = payload.get(PROVENANCE_KEY)
    if isinstance(provenance, dict):
        return _string(provenance.get("former_query"))
    return _string(payload.get(QUERY_KEY))


def neighbours_of(payload: Mapping[str, Any]) -> tuple[PointId | None, PointId | None]:
    """The ids of the previous and the next chunk, as LlamaIndex's node names them ("2" and "3")."""
    relations = _node(payload).get("relationships")
    if not isinstance(relations, dict):
        return None, None
    before, after = (relations.get(key) for key in ("2", "3"))
    return _node_id(before), _node_id(after)


def _node_id(related: Any) -> PointId | None:
    value = related.get("node_id") if isinstance(related, dict) else None
    return value if isinstance(value, int | str) else None


def extract_text(payload: Mapping[str, Any], text_key: str | None = None) -> tuple[str, str]:
    """(text, where it was found), ('', '') if none. LlamaIndex's node first, then the usual keys.

    With `text_key` (dots descend into objects) only that key is looked at. Never LlamaIndex's
    `get_content`: it would carry the old `generated_query` along.
    """
    return _text_in(payload, _node(payload), text_key)


def _text_in(
    payload: Mapping[str, Any], node: dict[str, Any], text_key: str | None
) -> tuple[str, str]:
    if text_key:
        value: Any = payload
        for part in text_key.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        return (value, text_key) if isinstance(value, str) and value.strip() else ("", "")
    resource = node.get("text_resource")
    candidates = [("_node_content.text", node.get("text"))]
    if isinstance(resource, dict):  # newer LlamaIndex nodes
        candidates.append(("_node_content.text_resource.text", resource.get("text")))
    candidates += [(key, payload.get(key)) for key in TEXT_KEYS]
    for key, value in candidates:
        if isinstance(value, str) and value.strip():
            return value, key
    return "", ""


def _node(payload: Mapping[str, Any]) -> dict[str, Any]:
    content = payload.get("_node_content")
    if isinstance(content, str):
        try:
            content = json.loads(content)
        except (ValueError, RecursionError):
            return {}
    if not isinstance(content, dict):
        return {}
    if not isinstance(content.get("metadata", {}), dict):
        return {**content, "metadata": {}}
    return content


def _nested(payload: Mapping[str, Any]) -> dict[str, Any]:
    """LangChain keeps a document's metadata one level down, its file under `source`."""
    nested = payload.get("metadata")
    if not isinstance(nested, dict):
        return {}
    return {"file_name": nested.get("source"), **nested}


def _known(metadata: Mapping[str, Any], *keys: str) -> str | None:
    """LlamaIndex writes the string "None" where a node has no source document."""
    for key in keys:
        value = _string(metadata.get(key))
        if value and value != "None":
            return value
    return None


def _string(value: Any) -> str | None:
    if value is None or isinstance(value, dict | list):
        return None
    return storable(str(value)).strip() or None


def _first_page(doc_items: Any) -> int | None:
    """The lowest page number that docling's provenance names."""
    if not isinstance(doc_items, list):
        return None
    pages = [
        prov.get("page_no")
        for item in doc_items
        if isinstance(item, dict) and isinstance(item.get("prov"), list)
        for prov in item["prov"]
        if isinstance(prov, dict)
    ]
    return min((page for page in pages if isinstance(page, int)), default=None)
