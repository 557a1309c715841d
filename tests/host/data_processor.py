"""Stage one: a document's chunks, as docling leaves them, become nodes of the index."""

from llama_index.core.schema import NodeRelationship, RelatedNodeInfo, TextNode

CHUNKS = {
    "0a5d1c1e-9d1b-4b3a-8f43-8f0f9b6a0001": (
        "Brake pads wear by friction.\n\n<!-- formula-not-decoded -->\n\n"
        "Pad thickness, minimum = 5 mm. Pad thickness, new = 35 mm."
    ),
    "0a5d1c1e-9d1b-4b3a-8f43-8f0f9b6a0002": (
        "Figure 3: door leaf with spindle drive\n\n3 Doors ........ 17\n\n"
        "The leaf closes by a spindle drive and a belt; the drive holds it by its own friction."
    ),
}


def ingest(index) -> int:
    """Put the new document into the index; the number of its nodes."""
    nodes = [
        TextNode(
            id_=node_id,
            text=text,
            metadata={"file_name": "depot.pdf", "headings": ["Maintenance"]},
            relationships={NodeRelationship.SOURCE: RelatedNodeInfo(node_id="depot")},
        )
        for node_id, text in CHUNKS.items()
    ]
    index.insert_nodes(nodes)
    return len(nodes)
