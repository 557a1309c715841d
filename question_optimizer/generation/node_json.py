"""Keys put into LlamaIndex's `_node_content` without touching another byte, and taken out again.

The payload key `_node_content` holds a whole node as JSON text. Parsing it and dumping it again
would change what nobody asked to change: escapes, white space, the spelling of numbers, duplicate
keys. So the text itself is edited: a JSON decoder finds where things stand, and what is put in is
written as its surroundings are.

LlamaIndex reads a node's metadata from this text alone. A key put there is also named in the node's
two lists of exclusions, or the next re-embedding would put the question into its own chunk's
vector.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

Former = dict[str, Any]
"""What `restored` needs, as JSON:

    keys      {key: None if the metadata lacked it, {"raw": its value's text} if that was replaced,
              {"cuts": [[text, place], …]} if the key was taken out}
    excluded  {list of exclusions: the keys that it lacked}
    made      members that the node lacked, in the order in which they were made
"""

_EXCLUSIONS = ("excluded_embed_metadata_keys", "excluded_llm_metadata_keys")
_SPACE = re.compile(r"[ \t\n\r]*")
_HALF_PAIR = re.compile("[\ud800-\udfff]")
_DECODER = json.JSONDecoder()


class _Part(NamedTuple):
    """A member of an object or an element of a list, by where it stands in the text."""

    name: Any  # a member's key; a list's element itself
    start: int
    name_end: int
    value: int
    end: int


class _Style(NamedTuple):
    """How the text was written, for what comes in addition."""

    escaped: bool  # ASCII only
    colon: str
    comma: str  # inside one line

    def dump(self, value: Any) -> str:
        text = json.dumps(
            value, ensure_ascii=self.escaped, separators=(self.comma, self.colon), allow_nan=False
        )
        # Half a surrogate pair stays escaped: raw, no HTTP body could carry it.
        return _HALF_PAIR.sub(lambda half: f"\\u{ord(half[0]):04x}", text)

    def member(self, key: str, value: str) -> str:
        return f"{self.dump(key)}{self.colon}{value}"


def with_keys(content: str, values: Mapping[str, Any]) -> tuple[str, Former | None]:
    """(`content` with `values` in the node's metadata, what leads back from there).

    A value of None takes its key out of the metadata. Exclusions that the node lacks are made,
    those that are no lists are left. What is no node (no JSON, no object, metadata that are no
    object) comes back as it is, with None.
    """
    node = _node_of(content)
    if node is None:
        return content, None
    style = _style_of(content, node)
    former: Former = {"keys": {}, "excluded": {}, "made": []}
    text = content
    if "metadata" not in node:
        text = _with_member(text, "metadata", "{}", style)
        former["made"].append("metadata")
    # What goes out goes first: its place is then one in the former text, whatever is put in.
    for key, value in sorted(values.items(), key=lambda item: item[1] is not None):
        text, former["keys"][key] = _with_key(text, key, value, style)
    for name in _EXCLUSIONS:
        listed = node.get(name, [])
        if not isinstance(listed, list):
            continue
        if name not in node:
            text = _with_member(text, name, "[]", style)
            former["made"].append(name)
        former["excluded"][name] = [key for key in values if key not in listed]
        for key in former["excluded"][name]:
            if values[key] is not None:
                text = _appended(text, _place_of(text, name), style.dump(key), style)
    return text, former


def restored(content: str, former: Former | None) -> str:
    """`content` with the keys of `former` as they were before `with_keys`.

    Byte for byte the former text, if nothing but these keys was changed since; otherwise all other
    changes stay.
    """
    node = _node_of(content)
    if node is None or former is None:
        return content
    style = _style_of(content, node)
    text = content
    for name, keys in reversed(former["excluded"].items()):
        if isinstance(node.get(name), list):
            for key in reversed(keys):
                text, _ = _without_all(text, _place_of(text, name), key)
            text = _without_empty(text, name, former)
    if "metadata" in node:
        for key, was in reversed(former["keys"].items()):
            text = _with_former(text, key, was, style)
        text = _without_empty(text, "metadata", former)
    return text


def _node_of(content: str) -> dict[str, Any] | None:
    try:
        node = json.loads(content)
    except (ValueError, RecursionError):
        return None
    if not isinstance(node, dict) or not isinstance(node.get("metadata", {}), dict):
        return None
    return node


def _style_of(content: str, node: dict[str, Any]) -> _Style:
    escapes = content.isascii() and "\\u" in content
    escaped = escapes and not json.dumps(node, ensure_ascii=False).isascii()
    parts = _parts(content, _place_of(content))
    colon = content[parts[0].name_end : parts[0].value] if parts else ": "
    comma = (
        content[parts[0].end : parts[1].start] if len(parts) > 1 else f",{colon[-1:].strip(':')}"
    )
    return _Style(escaped, colon, ", " if "\n" in comma else comma)


# ---------------------------------------------------------------------- one key


def _with_key(text: str, key: str, value: Any, style: _Style) -> tuple[str, Any]:
    """(text with the key, or without it where the value is None; what it was before)."""
    at = _place_of(text, "metadata")
    if value is None:
        text, cuts = _without_all(text, at, key)
        return text, {"cuts": cuts} if cuts else None
    parts = _parts(text, at)
    place = _last(parts, key)
    if place is None:
        return _appended(text, at, style.member(key, style.dump(value)), style), None
    raw = text[parts[place].value : parts[place].end]
    if json.loads(raw) != value:
        text = _replaced(text, parts[place], style.dump(value))
    return text, {"raw": raw}


def _with_former(text: str, key: str, was: Any, style: _Style) -> str:
    """The text with one key of the metadata as `_with_key` found it."""
    at = _place_of(text, "metadata")
    if was and "raw" in was:
        parts = _parts(text, at)
        place = _last(parts, key)
        if place is None:
            return _appended(text, at, style.member(key, was["raw"]), style)
        return _replaced(text, parts[place], was["raw"])
    text, _ = _without_all(text, at, key)
    for cut, place in reversed(was["cuts"] if was else []):
        text = _pasted(text, at, cut, place, style)
    return text


def _with_member(text: str, name: str, value: str, style: _Style) -> str:
    return _appended(text, _place_of(text), style.member(name, value), style)


def _without_empty(text: str, name: str, former: Former) -> str:
    """The text without a member that `with_keys` made, if nothing stands in it any more."""
    if name not in former["made"] or _parts(text, _place_of(text, name)):
        return text
    return _without_all(text, _place_of(text), name)[0]


# ---------------------------------------------------------------------- the text


def _place_of(text: str, name: str | None = None) -> int:
    """Where the node's brace stands, or the bracket of its member `name`, which is there."""
    at = _behind_space(text, 0)
    if name is None:
        return at
    return next(part.value for part in reversed(_parts(text, at)) if part.name == name)


@functools.lru_cache(maxsize=8)
def _parts(text: str, at: int) -> tuple[_Part, ...]:
    """What the object or list holds that opens at `at`, in valid JSON."""
    parts: list[_Part] = []
    here = _behind_space(text, at + 1)
    while text[here] not in "}]":
        start = _behind_space(text, here + 1) if parts else here  # behind the comma
        name, name_end = _DECODER.raw_decode(text, start)
        value, end = start, name_end
        if text[at] == "{":
            value = _behind_space(text, _behind_space(text, name_end) + 1)
            _, end = _DECODER.raw_decode(text, value)
        parts.append(_Part(name, start, name_end, value, end))
        here = _behind_space(text, end)
    return tuple(parts)


def _behind_space(text: str, at: int) -> int:
    match = _SPACE.match(text, at)
    return match.end() if match else at


def _last(parts: tuple[_Part, ...], name: str) -> int | None:
    """The place of the part that counts where several have the same name."""
    return next((n for n in reversed(range(len(parts))) if parts[n].name == name), None)


def _replaced(text: str, part: _Part, value: str) -> str:
    return text[: part.value] + value + text[part.end :]


def _appended(text: str, at: int, part: str, style: _Style) -> str:
    """The text with one more part at the end of what opens at `at`, set off as the others are."""
    parts = _parts(text, at)
    if not parts:
        return text[: at + 1] + part + text[at + 1 :]
    end = parts[-1].end
    if len(parts) > 1:
        between = text[parts[-2].end : parts[-1].start]
    else:
        lead = text[at + 1 : parts[-1].start]
        between = f",{lead}" if lead else style.comma
    return text[:end] + between + part + text[end:]


def _without_all(text: str, at: int, name: str) -> tuple[str, list[tuple[str, int]]]:
    """(text without the parts of this name in what opens at `at`, each cut and its place).

    Of duplicate keys the last one counts: if it alone went, another would show.
    """
    cuts = []
    while (place := _last(parts := _parts(text, at), name)) is not None:
        if place:
            start, end = parts[place - 1].end, parts[place].end
        elif len(parts) > 1:
            start, end = parts[0].start, parts[1].start
        else:
            start, end = at + 1, parts[0].end
        cuts.append((text[start:end], place))
        text = text[:start] + text[end:]
    return text, cuts


def _pasted(text: str, at: int, cut: str, place: int, style: _Style) -> str:
    """The text with a cut where `_without_all` took it, or at the end if that place is gone."""
    parts = _parts(text, at)
    if place and place <= len(parts):
        spot = parts[place - 1].end
    elif not place and bool(parts) == cut.rstrip().endswith(","):
        spot = parts[0].start if parts else at + 1
    else:
        return _appended(text, at, cut.strip(" \t\n\r,"), style)
    return text[:spot] + cut + text[spot:]
