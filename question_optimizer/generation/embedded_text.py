"""The text that LlamaIndex embedded for a node: metadata that is not excluded, and its text.

Only to compare vectors with. LlamaIndex itself would do it as well, but it is no dependency, and
its templates are `str.format` strings, which from a foreign folder may reach into any object.
"""

from __future__ import annotations

import json
import re
from typing import Any


def embedded_text(node_content: str, text: str) -> str:
    """What was embedded for the chunk `text`, as `_node_content` tells; else the text alone."""
    try:
        node = json.loads(node_content)
    except (ValueError, RecursionError):
        return text
    metadata = node.get("metadata") if isinstance(node, dict) else None
    if not isinstance(metadata, dict):
        return text
    excluded = node.get("excluded_embed_metadata_keys")
    hidden = set(map(str, excluded)) if isinstance(excluded, list) else set()
    line = _string(node.get("metadata_template"), "{key}: {value}")
    lines = [
        _filled(line, {"{key}": str(key), "{value}": str(value)})
        for key, value in metadata.items()
        if key not in hidden
    ]
    separator = node.get("metadata_separator", node.get("metadata_seperator"))
    above = _string(separator, "\n").join(lines).strip()
    if not above:
        return text
    whole = _string(node.get("text_template"), "{metadata_str}\n\n{content}")
    return _filled(whole, {"{metadata_str}": above, "{content}": text}).strip()


def _string(value: Any, default: str) -> str:
    return value if isinstance(value, str) else default


def _filled(template: str, values: dict[str, str]) -> str:
    """The template with its fields replaced at once: a value that looks like a field stays."""
    return re.sub("|".join(map(re.escape, values)), lambda found: values[found.group()], template)
