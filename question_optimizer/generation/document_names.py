"""What people call the documents that the ledger knows by id: their file names."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from question_optimizer.chunk_store import ChunkStore, chunk_of
from question_optimizer.hostile_text import one_line
from question_optimizer.records import PointId

_LONGEST = 120  # characters of a name; of a longer one the end, as paths have the name there


def document_names(
    store: ChunkStore, chunks: Mapping[str, PointId], text_key: str | None = None
) -> dict[str, str]:
    """{document: its file name}, each as one of its `chunks` in the collection has it.

    Documents without one, or whose chunk is gone, are left out. Where two have the same name, the
    document's id stands behind it in brackets. Reads these chunks and no others. A name is one
    printable line; HTML in it is as it was.
    """
    documents = {chunk_id: document for document, chunk_id in chunks.items()}
    named: dict[str, str] = {}
    for chunk_id, payload in store.payloads(list(documents)):
        chunk, _ = chunk_of(chunk_id, payload, text_key)
        if chunk is not None and (name := _shown(chunk.file_name or "")):
            named[documents[chunk_id]] = name
    alike = Counter(named.values())
    return {
        document: name if alike[name] == 1 else f"{name} [{_shown(document)}]"
        for document, name in named.items()
    }


def _shown(name: str) -> str:
    line = one_line(name)
    return line if len(line) <= _LONGEST else f"…{line[-_LONGEST:]}"
