"""Deterministic checks of a question's text: objective defects only, never a measure of quality.

`gate_failures` runs them all on one generated question before any judge is paid to read it; `GATES`
tells what each looks for. They are made for few false alarms: what is in doubt passes, and the
judge may say the rest. An exception in a gate is a bug and is not swallowed.

Each looks at the first 2,000 characters of a question; what is longer is no question. English
phrases are known best; a question in another language passes unless it uses them. Thresholds are
starting values, to be calibrated on one's own gold set.

Left out on purpose: "shares no word with its chunk", which is no defect: see `overlap`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

from question_optimizer.duplicates import NEAR_DUPLICATE, folded, near_duplicate_among
from question_optimizer.hostile_text import printable, storable
from question_optimizer.languages import SAYS_NOTHING, other_language, script_of
from question_optimizer.overlap import MAX_COPIED_RUN, MAX_COPY_RATE, copies
from question_optimizer.references import refers_outside
from question_optimizer.words import (
    ACRONYM,
    CHUNK_LOOKED_AT,
    CITED,
    LOOKED_AT,
    ONE_WORD_EACH,
    SIGN,
    WORD,
    word_count,
    words_of,
)

MIN_WORDS, MAX_WORDS = 2, 60
# Prompts ask for two to six keywords; signs and two-part names ("a <> b") want some room.
KEYWORDS_MIN, KEYWORDS_MAX = 2, 10
QUESTION_MIN, QUESTION_MAX = 3, 60


class GateFailure(NamedTuple):
    """`gate` is a key of `GATES`; `reason` says what this question did, without quoting much."""

    gate: str
    reason: str


class _Asked(NamedTuple):
    """A question as gates see it: its beginning, stripped, and what it was asked for."""

    question: str
    text: str
    chunk: str
    keywords: bool | None  # None: the format is not known
    others: Sequence[str]


def gate_failures(
    question: str | None,
    *,
    chunk_text: str,
    query_format: str | None = None,
    others: Sequence[str] = (),
) -> list[GateFailure]:
    """All defects of one generated question, in the order of `GATES`; none is a clean one.

    `query_format` is "keywords" or "formal question" in any spelling that `QueryFormat` reads;
    without it, or with another word, what depends on the format is not looked at. `others` are
    questions already accepted, of which it must not be a near-duplicate; their cost is linear, so
    for a whole set take `duplicates`. An empty question has that one defect only.
    """
    text = (question or "")[:LOOKED_AT].strip()
    asked = _Asked(
        question or "", text, chunk_text[:CHUNK_LOOKED_AT], _format(query_format), others
    )
    if reason := _empty(asked):
        return [GateFailure("empty", reason)]
    found = ((gate, check(asked)) for gate, (_, check) in _GATES.items())
    return [GateFailure(gate, reason) for gate, reason in found if reason]


def _format(query_format: str | None) -> bool | None:
    named = (query_format or "").casefold()
    if ("keyword" in named) == ("question" in named):
        return None
    return "keyword" in named


# ---------------------------------------------------------------------- not one plain question

# A person may begin "Here's my query: …" or "I'm unable to …"; a model's answer begins as below.
_PREAMBLE = re.compile(
    r"[*_>#\s]{0,4}(?:here(?: are| is|'s|’s)\b(?!\s+(?:my|what|how)\b)|"
    r"(?:sure|certainly|of course|okay|absolutely)[,!.:]|great question\b|"
    r"(?:the |my |possible |search |final |generated )?(?:question|query|answer|reasoning|"
    r"rationale|persona|keywords|query_type|query_format)\s*\d*\s*[*_]{0,2}\s*:|question\s+\d+\b|"
    r"as an ai\b|i(?:'m| am|’m) (?:sorry|happy to|glad to)\b|"
    r"i (?:can't|can’t|cannot) (?:help (?:with|you)|assist|comply|fulfil)\b|"
    r"(?:frage|suchanfrage|pregunta|domanda|pergunta|vraag)\s*\d*\s*:|(?:gerne?|natürlich)[,!.]|"
    r"(?:hier (?:ist|sind)|voici|aquí (?:está|tiene)|ecco)\b[^?\n]{0,30}"
    r"(?:frage|question|pregunta|domand))",
    re.IGNORECASE,
)
_LABEL_WITHIN = re.compile(
    r"\n[ \t*_]*(?:explanation|reasoning|rationale|answer|note|query|question|keywords|persona|"
    r"query_type|query_format)\b[^\n:]{0,20}:",
    re.IGNORECASE,
)
_LIST_MARK = re.compile(r"(?:\(?\d{1,2}[.)]|[-*•–—]|\(?[a-hA-H][.)]|Q\d*[.:)])\s+\S|#{1,6}\s|```")
_QUOTES = {'"': '"', "'": "'", "“": "”", "„": "“", "«": "»", "`": "`"}
_JSON_KEY = re.compile(
    r"[\[{\s]*[{\[]\s*[\"'](?:question|query|questions|queries|text|answer|reasoning|query_type|"
    r"query_format)[\"']\s*:"
)
_INVISIBLE = re.compile("[\u200b-\u200f\u2060-\u2064\ufeff\u00ad]")
_NOTHING = frozenset(("none", "null", "n/a", "nan", "undefined", "unknown", "no question"))
_TAG = re.compile(
    r"</(?:[a-z][a-z0-9]{0,15})>|<(?:think|thinking|question|query|answer|output)>|<br\s?/?>|"
    r"<[a-z][a-z0-9]{0,15}\s+[a-z-]{1,20}=[^<>]{0,200}>|<\|[a-z_]{2,30}\|>|\[/?INST\]|"
    r"&(?:amp|lt|gt|quot|apos|nbsp|#\d{1,6}|#x[0-9a-f]{1,6});",
    re.IGNORECASE,
)
_FIELD_MARKER = re.compile(r"\[\s{0,9}\[\s{0,9}##|##\s{0,9}\]\s{0,9}\]")
_SMUGGLED = re.compile("[\ud800-\udfff\U000e0000-\U000e007f]")  # lone surrogates, invisible tags
# A mark that ends a question: at a word, and not a host parameter ("a = ?", "VALUES (?, ?)", "?1").
_ASKING = re.compile(
    r"(?<=[^\s?？؟(,=\[{<>])[?؟][?!؟]*(?=[\s\"'”’»*]|$)|[？][？！]*|"
    r"(?<=\s)[?؟](?=\s+[A-ZÀ-Þ][a-zà-ÿ])|(?<=\s)[?؟]$"
)


def looks_odd(question: str) -> str | None:
    """What shows that the text is not one question as a person puts it, or None.

    A preamble, what is left of a list, quotes or braces around, fewer than 2 or more than 60
    words. Where words are not parted by spaces, each character counts as one towards the fewest.
    """
    text = question[:LOOKED_AT].strip()
    oddities = (_preamble, _list_residue, _quoted, _json)
    found = next((oddity for check in oddities if (oddity := check(text))), None)
    return found or _outside(question, MIN_WORDS, MAX_WORDS)


def _preamble(text: str) -> str | None:
    if _PREAMBLE.match(text):
        return "begins like a model's preamble"
    return "holds a label of a model's answer" if _LABEL_WITHIN.search(text) else None


def _list_residue(text: str) -> str | None:
    if _LIST_MARK.match(text):
        return "begins with what is left of a list"
    return "holds numbered lines" if re.search(r"\n[ \t]*\d{1,2}[.)]\s+\S", text) else None


def _quoted(text: str) -> str | None:
    around = _QUOTES.get(text[:1]) == text[-1:] and len(text) > 1
    return "stands in quotes" if around and not {text[0], text[-1]} & {*text[1:-1]} else None


def _json(text: str) -> str | None:
    if _JSON_KEY.match(text):  # cut off, or a Python dict
        return "is JSON"
    if text[:1] not in ("{", "["):
        return None
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return None
    return "is JSON"


def _outside(question: str, fewest: int, most: int) -> str | None:
    text = question[:LOOKED_AT].strip()
    signs = sum(bool(SIGN.search(part)) for part in text.split() if not re.search(r"\w", part))
    if len(ONE_WORD_EACH.findall(text)) + signs < fewest:
        return f"has fewer than {fewest} words"
    if word_count(text) > most or len(question) > LOOKED_AT:
        return f"has more than {most} words"
    return None


def _empty(asked: _Asked) -> str | None:
    if not any(character.isalnum() for character in asked.text):
        return "holds no letter and no digit"
    return "names nothing" if folded(asked.text) in _NOTHING else None


def _markup(asked: _Asked) -> str | None:
    """Tags and entities pass where the chunk holds the same, or where they are cited."""
    text = asked.text.replace("\r", " ").replace("\f", " ")
    if _SMUGGLED.search(text) or printable(storable(text)) != text:
        return "holds control characters, terminal escapes or characters that no one sees"
    if _FIELD_MARKER.search(_INVISIBLE.sub("", text)):
        return "holds a field marker of the prompt"
    if "```" in text or text.startswith("~~~"):
        return "holds a code fence"
    if len(text) > 4 and text.startswith("**") and text.endswith("**") and text.count("**") == 2:
        return "stands in Markdown's marks of emphasis"
    chunk = asked.chunk.casefold()
    tags = (found.group() for found in _TAG.finditer(CITED.sub("_", text)))
    return next((f"holds {tag[:30]}" for tag in tags if tag.casefold() not in chunk), None)


def _length(asked: _Asked) -> str | None:
    fewest, most = {
        None: (MIN_WORDS, MAX_WORDS),
        True: (KEYWORDS_MIN, KEYWORDS_MAX),
        False: (QUESTION_MIN, QUESTION_MAX),
    }[asked.keywords]
    return _outside(asked.question, fewest, most)


def _several_questions(asked: _Asked) -> str | None:
    marks = _question_marks(asked.text)
    return f"asks {marks} questions" if marks > 1 else None


def _question_marks(text: str) -> int:
    return len(_ASKING.findall(CITED.sub("_", text)))


# ---------------------------------------------------------------------- the format asked for

_AUXILIARY = (
    r"(?:is|are|was|were|am|do|does|did|can|could|should|would|will|shall|may|might|must|has|have|"
    r"had)"
)
_INTERROGATIVE = r"(?:what|which|who|whom|whose|why|when|where|how)"
_DETERMINED = r"(?:the|it|there|this|these|i|you|we|they|my|your|our)"
# "how to enable wal", "list temporary tables", "explain query plan" are typed into search boxes.
_SENTENCE = re.compile(
    rf"(?:{_INTERROGATIVE}(?:['’]s|\s+{_AUXILIARY})\s|(?:does|did)\s+\w|"
    rf"{_AUXILIARY}(?:n['’]t)?\s+{_DETERMINED}\s+\w|"
    r"(?:tell|give|show)\s+me\b|please\s|(?:explain|describe)\s+(?:how|why|what|the|to)\b|"
    r"i\s+(?:want|need|would)\b|(?:was|wie|warum|wann|wo|wer)\s+(?:ist|sind|kann|wird|werden|muss|"
    r"darf)\s)",
    re.IGNORECASE,
)
_REQUEST = (
    rf"{_INTERROGATIVE}|{_AUXILIARY}(?:n['’]t)?|(?:what|how|where|who|when)['’]s|whether|"
    r"explain|describe|compare|contrast|summari[sz]e|sum|list|name|give|show|tell|discuss|outline|"
    r"identify|define|find|state|evaluate|assess|analy[sz]e|suggest|recommend|provide|help|walk|"
    r"suppose|imagine|consider|calculate|estimate|determine|illustrate|justify|enumerate|clarify|"
    r"distinguish|specify|write|propose|please|i\s+(?:want|need|wonder|would|am|must)|i['’][dm]|"
    r"was|wie|warum|wieso|weshalb|wann|wo\w{0,5}|wer|wen|wem|wessen|welche[rsnm]?|ist|sind|"
    r"k[aö]nn(?:en|te)?|d[aü]rf(?:en)?|m[uü]ss(?:en)?|soll(?:te|en)?|gibt|erkläre?n?|beschreibe?n?|"
    r"vergleiche?n?|nenne?n?|que|quel(?:le)?s?|qui|quoi|comment|pourquoi|quand|où|combien|est-ce|"
    r"peut-on|puis-je|explique[rz]?|qué|cuál(?:es)?|quién|cómo|por|cuándo|dónde|cuánt[oa]s?|puedo|"
    r"explica|che|cosa|qual[ei]?|chi|come|perché|quando|dove|quanto|spiega|o\s+que|quais|quem|como|"
    r"onde|wat|welke?|waarom|wanneer|waar|hoe|kan|mag|moet"
)
_ASKS = re.compile(rf"(?:^|[.,;:!–—(]\s*|\band\s+)[¿\"'“*]*(?:{_REQUEST})\b", re.IGNORECASE)
_ASKS_INSIDE = re.compile(r"\b(?:what|how|why)\b", re.IGNORECASE)


def _wrong_format(asked: _Asked) -> str | None:
    if asked.keywords is None:
        return None
    if asked.keywords:
        if _question_marks(asked.text) and not asked.text.endswith((" ?", " ؟")):
            return "is to be keywords and has a question mark"
        return "is to be keywords and is a sentence" if _SENTENCE.match(asked.text) else None
    asks = (
        _question_marks(asked.text)
        or re.search(r"[?？؟][\s\"'”’»)*.!]*$", asked.text)
        or _ASKS.search(asked.text)
        or _ASKS_INSIDE.search(asked.text)
        or not re.search(r"[A-Za-z]{3}", asked.text)  # of other scripts we know no interrogatives
        or script_of(asked.text) != "Latin"
    )
    return None if asks else "is to be a question and neither asks nor requests anything"


# ---------------------------------------------------------------------- its subject and its words

_TINY = re.compile(r"\b(?:\w|\d+)\b")


def _generic(asked: _Asked) -> str | None:
    """Only words of one known language can be called empty: any other word is a subject."""
    text = asked.text
    if SIGN.search(text) or (ACRONYM.search(text) and not text.isupper()):
        return None
    words = {word.casefold() for word in WORD.findall(text)}
    if words and words <= SAYS_NOTHING:
        return "names no subject at all"
    return None


def _copied(asked: _Asked) -> str | None:
    """A short citation in quotes (a message, a statement) is no copying, unless it is the most.

    Nor are the single letters and numbers of an expression, of which `a = 5 OR b = 6` has four.
    """
    cited = CITED.sub(" __ ", asked.text)
    kept = cited if 2 * len(words_of(cited)) >= len(words_of(asked.text)) else asked.text
    asked_words, chunk_words = (_TINY.sub(" ", text) for text in (kept, asked.chunk))
    return copies(asked_words, chunk_words, keywords=asked.keywords is True)


def _near_duplicate(asked: _Asked) -> str | None:
    like = near_duplicate_among(asked.text, asked.others)
    if like is None:
        return None
    shown = " ".join(like[0][:LOOKED_AT].split())[:80]
    return f"is {like[1]:.0%} alike to an accepted question: {shown}"


# ---------------------------------------------------------------------- all of them

_Check = Callable[[_Asked], str | None]


_GATES: dict[str, tuple[str, _Check]] = {
    "empty": ("nothing, or no letter and no digit, or a word for nothing (None, n/a)", _empty),
    "preamble": (
        "a model's preamble, label or refusal before it (Here is …, Question 1:, I'm sorry)",
        lambda asked: _preamble(asked.text),
    ),
    "list_residue": (
        "what is left of a list before it (1., -, b), ###)",
        lambda asked: _list_residue(asked.text),
    ),
    "quoted": ("quotes around the whole of it", lambda asked: _quoted(asked.text)),
    "json": ("JSON instead of the bare text", lambda asked: _json(asked.text)),
    "markup": (
        "field markers, HTML tags, code fences, terminal escapes, control characters, overrides "
        "of the reading direction",
        _markup,
    ),
    "length": (
        f"too few or too many words: {KEYWORDS_MIN} to {KEYWORDS_MAX} keywords, {QUESTION_MIN} to "
        f"{QUESTION_MAX} words of a question",
        _length,
    ),
    "format": (
        "keywords that are a sentence or have a question mark; a question that neither asks nor "
        "requests anything",
        _wrong_format,
    ),
    "several_questions": ("more than one question mark outside quotes", _several_questions),
    "refers_outside": (
        "a reference to what its reader cannot see (this section, Table 2, it)",
        lambda asked: (
            f'refers to what its reader cannot see: "{phrase[:80]}"'
            if (phrase := refers_outside(asked.text))
            else None
        ),
    ),
    "copies": (
        f"more than {MAX_COPIED_RUN} words in a row from the chunk, or more than "
        f"{MAX_COPY_RATE:.0%} of its runs of 4 words (keywords: the former only)",
        _copied,
    ),
    "generic": ("no subject: nothing but words like 'the main purpose of the system'", _generic),
    "language": (
        "another script or language than its chunk's",
        lambda asked: other_language(asked.text, asked.chunk),
    ),
    "near_duplicate": (
        f"a near-duplicate of an accepted question (character 5-grams, {NEAR_DUPLICATE:.0%})",
        _near_duplicate,
    ),
}
GATES: Mapping[str, str] = MappingProxyType({gate: words for gate, (words, _) in _GATES.items()})
