"""Keys in the text of a node: put in and taken out again without touching another byte."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from question_optimizer.generation.node_json import restored, with_keys

QUERY, QUERIES = "generated_query", "generated_queries"
EMBED, LLM = "excluded_embed_metadata_keys", "excluded_llm_metadata_keys"
TWO = {QUERY: "Wie groß?", QUERIES: [{"query": "Wie groß?", "persona_id": None}, {"query": "b"}]}

# ---------------------------------------------------------------------- any JSON text

texts = st.text(max_size=6) | st.sampled_from([QUERY, QUERIES, "\ud83d", '"\\', "\u2028"])
scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | texts
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.lists(st.tuples(texts, inner)),
    max_leaves=5,
)


class Members(list[tuple[str, Any]]):
    """An object as its members, duplicate keys included."""


metadata = st.lists(
    st.tuples(st.sampled_from([QUERY, QUERIES, "file_name", ""]) | texts, scalars), max_size=4
).map(Members)
excluded = st.lists(st.sampled_from([QUERY, QUERIES, "file_name", 5, None]), max_size=3)
nodes = st.lists(
    st.one_of(
        st.tuples(st.just("metadata"), metadata),
        st.tuples(st.sampled_from([EMBED, LLM]), excluded | st.none() | st.just("text")),
        st.tuples(texts, scalars),
    ),
    max_size=6,
).map(Members)
spaces = st.sampled_from(["", " ", "\n  ", "\t"])
wishes = st.fixed_dictionaries(
    {QUERY: texts},
    optional={QUERIES: st.none() | st.lists(st.fixed_dictionaries({"query": texts}))},
)


def written(value: Any, space: Callable[[], str], escaped: bool) -> str:
    """`value` as JSON with any white space that JSON allows."""
    if isinstance(value, Members):
        inner = [
            f"{space()}{written(k, space, escaped)}{space()}:{space()}{written(v, space, escaped)}"
            for k, v in value
        ]
        return "{" + f"{space()},".join(inner) + space() + "}"
    if isinstance(value, list):
        inner = [space() + written(item, space, escaped) for item in value]
        return "[" + f"{space()},".join(inner) + space() + "]"
    return json.dumps(value, ensure_ascii=escaped)


@st.composite
def contents(draw: st.DrawFn) -> str:
    """The text of a node: compact, spread, indented or as `json.dumps` writes it."""
    way = draw(st.sampled_from(["any", "default", "compact", "indented"]))
    node, escaped = draw(nodes), draw(st.booleans())
    if way == "any":
        return written(node, lambda: draw(spaces), escaped)
    plain = json.loads(written(node, lambda: "", True))
    separators = (",", ":") if way == "compact" else None
    indent = 2 if way == "indented" else None
    return json.dumps(plain, ensure_ascii=escaped, separators=separators, indent=indent)


def expected(content: str, wanted: dict[str, Any]) -> dict[str, Any]:
    """What the text has to say afterwards, by way of parsing and setting."""
    node = json.loads(content)
    found = node.setdefault("metadata", {})
    for key, value in wanted.items():
        if value is None:
            found.pop(key, None)
        else:
            found[key] = value
    for name in (EMBED, LLM):
        listed = node.setdefault(name, [])
        if isinstance(listed, list):
            listed += [key for key in wanted if wanted[key] is not None and key not in listed]
    return node


@settings(max_examples=150, deadline=None)
@given(contents(), wishes)
@example("{}", TWO)
@example(' { "metadata" : { } } ', TWO)
@example('{"metadata": {"generated_queries": 1}}', {QUERY: "q", QUERIES: None})
@example('{"metadata": {"generated_queries": 1, "a": 2}}', {QUERY: "q", QUERIES: None})
@example('{"metadata": {"generated_queries": 1, "generated_queries": 2}}', {QUERIES: None})
@example('{"metadata": {"gener\\u0061ted_query": "old"}}', {QUERY: "new"})
def test_the_text_says_what_it_should_and_goes_back_byte_for_byte(
    content: str, wanted: dict[str, Any]
) -> None:
    changed, former = with_keys(content, wanted)
    assert former is not None
    assert json.loads(changed) == expected(content, wanted)
    former = json.loads(json.dumps(former))
    assert restored(changed, former) == content
    assert restored(content, former) == content
    assert with_keys(changed, wanted)[0] == changed


@settings(max_examples=80, deadline=None)
@given(contents(), wishes, wishes)
@example('{"metadata": {"generated_queries": 1, "a": 2}}', {QUERY: "q", QUERIES: None}, TWO)
def test_what_leads_back_from_the_first_change_leads_back_from_a_second_one(
    content: str, first: dict[str, Any], second: dict[str, Any]
) -> None:
    first, second = {QUERIES: None, **first}, {QUERIES: None, **second}
    once, former = with_keys(content, first)
    twice, _ = with_keys(once, second)
    assert json.loads(restored(twice, former)) == json.loads(content)
    if QUERIES not in dict(json.loads(content).get("metadata", {})):
        assert restored(twice, former) == content


@settings(max_examples=80, deadline=None)
@given(contents(), wishes, st.dictionaries(st.sampled_from(["tag", "file_name"]), scalars))
def test_what_others_changed_meanwhile_stays(
    content: str, wanted: dict[str, Any], others: dict[str, Any]
) -> None:
    changed, former = with_keys(content, wanted)
    touched, since = json.loads(changed), json.loads(content)
    for node in (touched, since):
        node.setdefault("metadata", {}).update(others)
        node["text"] = "edited"
    result = json.loads(restored(json.dumps(touched), former))
    if not result.get("metadata", True):
        since["metadata"] = result["metadata"]
    result.setdefault("metadata", {})
    assert result == since


@settings(max_examples=80, deadline=None)
@given(contents(), wishes)
def test_only_what_is_put_in_differs(content: str, wanted: dict[str, Any]) -> None:
    """With keys that are new, the former text is the new one with pieces left out."""
    wanted = {f"new {key}": value for key, value in wanted.items()}
    changed, _ = with_keys(content, wanted)
    rest = iter(changed)
    assert all(char in rest for char in content)


# ---------------------------------------------------------------------- how it is written


@pytest.mark.parametrize(
    ("content", "changed"),
    [
        (  # as LlamaIndex writes it
            '{"id_": "n", "metadata": {"a": "ü"}, "excluded_embed_metadata_keys": ["a"], '
            '"excluded_llm_metadata_keys": [], "text": "t"}',
            '{"id_": "n", "metadata": {"a": "ü", "generated_query": "größer?"}, '
            '"excluded_embed_metadata_keys": ["a", "generated_query"], '
            '"excluded_llm_metadata_keys": ["generated_query"], "text": "t"}',
        ),
        (  # compact, and escaped
            r'{"metadata":{"a":"\u00fc"},"excluded_embed_metadata_keys":[],'
            '"excluded_llm_metadata_keys":["generated_query"],"n":1.0e5}',
            r'{"metadata":{"a":"\u00fc","generated_query":"gr\u00f6\u00dfer?"},'
            '"excluded_embed_metadata_keys":["generated_query"],'
            '"excluded_llm_metadata_keys":["generated_query"],"n":1.0e5}',
        ),
        (  # indented
            '{\n  "metadata": {\n    "a": 1\n  }\n}\n',
            '{\n  "metadata": {\n    "a": 1,\n    "generated_query": "größer?"\n  },\n  '
            '"excluded_embed_metadata_keys": ["generated_query"],\n  '
            '"excluded_llm_metadata_keys": ["generated_query"]\n}\n',
        ),
        (
            '{"excluded_llm_metadata_keys": null, "excluded_embed_metadata_keys": "a"}',
            '{"excluded_llm_metadata_keys": null, "excluded_embed_metadata_keys": "a", '
            '"metadata": {"generated_query": "größer?"}}',
        ),
    ],
    ids=["default", "compact and escaped", "indented", "without lists"],
)
def test_what_is_put_in_is_written_as_its_surroundings(content: str, changed: str) -> None:
    assert with_keys(content, {QUERY: "größer?"})[0] == changed


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{broken",
        "[1, 2]",
        '"text"',
        "null",
        '{"metadata": null}',
        '{"metadata": [1]}',
        '{"a": 1} trailing',
        '\ufeff{"a": 1}',
        "[" * 200_000,
    ],
)
def test_what_is_no_node_stays_as_it_is(content: str) -> None:
    assert with_keys(content, TWO) == (content, None)
    assert restored(content, None) == content
    former = with_keys("{}", TWO)[1]
    assert restored(content, former) == content


def test_a_value_that_stands_there_already_keeps_its_spelling() -> None:
    content = (
        r'{"metadata": {"generated_query": "gr\u00f6\u00dfer?", "a": "ö"}, '
        '"excluded_embed_metadata_keys": ["generated_query"], '
        '"excluded_llm_metadata_keys": ["generated_query"]}'
    )
    assert with_keys(content, {QUERY: "größer?", QUERIES: None})[0] == content


def test_half_a_character_is_written_so_that_the_text_stays_sendable() -> None:
    changed, former = with_keys('{"metadata": {"a": "ü"}}', {QUERY: "half \ud83d of a pair, ö"})
    assert changed.encode()
    assert "ö" in changed
    assert json.loads(changed)["metadata"][QUERY] == "half \ud83d of a pair, ö"
    assert restored(changed, former) == '{"metadata": {"a": "ü"}}'


def test_metadata_that_others_filled_meanwhile_is_not_taken_away() -> None:
    changed, former = with_keys('{"id_": "n"}', {QUERY: "q"})
    node = json.loads(changed)
    node["metadata"]["tag"] = "theirs"
    node[EMBED].append("tag")
    back = json.loads(restored(json.dumps(node), former))
    assert back == {"id_": "n", "metadata": {"tag": "theirs"}, EMBED: ["tag"]}


def test_a_key_that_was_taken_out_comes_back_at_the_end_where_its_place_is_gone() -> None:
    changed, former = with_keys(
        '{"metadata": {"a": 1, "b": 2, "generated_queries": [1,  2]}}', {QUERY: "q", QUERIES: None}
    )
    assert json.loads(changed)["metadata"] == {"a": 1, "b": 2, QUERY: "q"}
    back = restored(changed.replace('"a": 1, "b": 2, ', ""), former)
    assert back == '{"metadata": {"generated_queries": [1,  2]}}'
