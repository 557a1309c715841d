"""Deterministic checks of a question's text: objective defects only, never a measure of quality.

`gate_failures` runs them all on one generated question before any judge is paid to read it; `GATES`
tells what each looks for. They are made for few false alarms: what is in doubt passes, and the
judge may say the rest. An exception in a gate is a bug and is not swallowed.

Each looks at the first 2,000 characters of a question; what is longer is no question. English
phrases are known best; a question in another language passes unless it uses them. Thresholds are
starting values, to be calibrated on one's own gold set.

Left out on purpose: "shares no word with its chunk". The question a person asks in words of their
own (the one that trains a retriever most) may share none, so only `set_health` counts these.
"""

from __future__ import annotations

import json
import math
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

from question_optimizer.hostile_text import printable, storable

LOOKED_AT = 2000  # characters of a question
CHUNK_LOOKED_AT = 100_000  # characters of a chunk, by `gate_failures`
MAX_COPY_RATE = 0.5  # of a question's word 4-grams
MAX_COPIED_RUN = 7  # words
NEAR_DUPLICATE = 0.8  # Jaccard index of character 5-grams
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
    for a whole set take `near_duplicates`. An empty question has that one defect only.
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


# ---------------------------------------------------------------------- references to the unseen

# The lists start from those of docling-sdg's critique: a prefix (this, the above) before a noun for
# a piece of text. "This" before any other noun is let pass: "this error" mostly takes up a word of
# the question itself. A bare "the table", "the document" or "the section" is a thing of databases,
# browsers and railways too; it counts only where words of telling say that a text is meant.
_PIECE = (
    r"(?:(?:sub)?sections?|paragraphs?|passages?|text|documents?|excerpts?|extracts?|chapters?|"
    r"articles?|chunks?|snippets?|figures?|tables?|diagrams?|listings?|examples?|illustrations?)"
)
_TOLD = (
    r"(?:mentioned|described|discussed|listed|shown|given|stated|defined|explained|outlined|"
    r"provided|presented|depicted|illustrated|specified|introduced)"
)
_TELLS = (
    r"(?:says?|mentions?|describes?|discuss(?:es)?|states?|explains?|outlines?|recommends?|"
    r"suggests?|presents?|depicts?|illustrates?|emphasi[sz]es?|concludes?|argues?|tells?)"
)
_READ = r"(?:text|document|passage|excerpt|section|paragraph|chapter|article|author|authors|study)"
# What may follow a noun that stands alone; "the document model", "the section of track" do not.
_ENDS = r"(?=\s*(?:[?.!,;)]|$)|\s+(?:and|or|as|is|are|when|if|which|to|for|by|about)\b)"
_NUMBER = r"(?:\d{1,2}(?:\.\d+)*[a-z]?|[A-Z]\d?|[IVX]+)"

_DEICTIC = [
    rf"\b(?:this|these)\s+{_PIECE}\b(?!-)",
    rf"\bthe\s+(?:above|aforementioned|above-mentioned|foregoing)(?:\s+{_PIECE}\b|{_ENDS})(?!-)",
    rf"\bthe\s+above\s+(?!average\b|ground\b|zero\b)[a-z]{{3,}}\b(?!-){_ENDS}",
    rf"\b{_PIECE}\s+(?:above|below){_ENDS}",
    rf"\b{_TOLD}\s+(?:above|below|earlier|here)(?=\s*(?:[?.!,;)]|$)|\s+(?:and|or|is|are|was|were|"
    r"when|if)\b)",
    r"\bthe\s+(?:previous|preceding)\s+(?:section|chapter|paragraph|passage|example|figure|text)\b",
    r"\b(?:of|is)\s+the\s+following(?=\s*(?:[?.!,;)]|$)|\s+(?:is|are|was|were|does|do|can|would|"
    r"statements?|best|options?)\b)",
    r"\bthe\s+following\s+(?:sub)?(?:section|paragraph|passage|text|excerpt|chapter|example|figure|"
    r"table|diagram|snippet|listing|code|statement|query|list|options)s?\b(?!-)",
    r"\bthe\s+(?:given|provided|supplied)\s+(?:text|passage|context|document|section|paragraph|"
    r"excerpt|chapter|article|snippet|example|information|chunk)s?\b(?!-)",
    rf"\b(?:the\s+)?(?:text|passage|context|information|excerpt|example)\s+provided{_ENDS}",
]
_TOLD_BY = [
    rf"\b(?:according\s+to|as\s+per|based\s+on)\s+the\s+(?:{_READ}|context|figure|table|diagram)\b"
    rf"(?!-){_ENDS}",
    rf"\b(?:do|does|did)\s+the\s+{_READ}\s+{_TELLS}\b",
    rf"\bthe\s+{_READ}\s+{_TELLS}\b(?!\s+of\b)",
    rf"\b{_TOLD}\s+in\s+the\s+(?:{_READ}|figure|table|diagram|listing|snippet|example)\b"
    rf"(?!-){_ENDS}",
    r"\b(?:purpose|topic|theme|subject|point|idea|focus|message|summary|content|contents)\s+of"
    r"\s+the\s+(?:text|document|passage|excerpt|section|paragraph|chapter|article)\b"
    r"(?=\s*(?:[?.!,;)]|$))",
    rf"\bin\s+the\s+(?:example|excerpt|snippet|figure|diagram|illustration)\b(?!-){_ENDS}",
]
_NUMBERED = (
    rf"\b(?:(?:Figure|Fig\.|Table|Section|Chapter|Listing|Appendix|Equation)\s+{_NUMBER}|"
    r"(?:in|see|under|per|from)\s+(?:figure|fig\.|section|chapter|listing|appendix)\s+"
    r"\d{1,2}(?:\.\d+)*)(?![\w-])"
)
_LEADING_PRONOUN = (
    r"^(?:and\s+|but\s+|so\s+)?(?:(?:how|why|when|where|what|which)\s+)?"
    r"(?:is|are|was|were|does|do|did|can|could|will|would|should|has|have|must|may)\s+"
)
_PRONOUN_VERB = (
    r"(?:work|mean|happen|affect|differ|help|improve|relate|compare|apply|ensure|allow|prevent|"
    r"impact|influence|matter|occur|cause|do|important|necessary|useful|safe|done|used|"
    r"handle|support|need|require|contain|store|return|behave|depend|interact|contribute|serve)\b"
)
_SEEN = re.compile("|".join((*_DEICTIC, *_TOLD_BY)), re.IGNORECASE)
_ENDS_IN_NOUN = re.compile(rf"\b(?:{_PIECE}|{_READ}|context|information)$", re.IGNORECASE)
_BY_NUMBER = re.compile(_NUMBERED)
_STANDARD = re.compile(r"\b[A-Z]{2,6}[ /-]?\d{3,6}\b")  # EN 50128, ISO 9001: of it is the table
_LEADING = re.compile(
    rf"(?i:{_LEADING_PRONOUN})(?P<pronoun>[Ii]t|[Tt]hey|[Tt]his|[Tt]hese|[Tt]hose|[Tt]hat)\s+"
    rf"(?i:{_PRONOUN_VERB})"
)
# "Is it safe to …", "What does it mean that …": "it" stands for what follows. A colon or dash may
# name the thing after all.
_NAMED_LATER = re.compile(r"\b(?:to|that|if|when|whether|for|while)\b|[:–—(]|\s-\s", re.IGNORECASE)
_CONTENT_FOLLOWS = re.compile(r":\s*\S|`|[\"“][^\"”]{3,}[\"”]")
_GENERIC = frozenset(
    "this that these those it text document passage excerpt section chapter article manual book "
    "paper report guide page standard specification study file".split()
)


def refers_outside(question: str) -> str | None:
    """The phrase by which the question refers to something its reader cannot see, or None.

    A phrase that names the thing passes ("section 4 of EN 50128"), and so does one whose noun, or
    whose content after a colon, stands in the question itself. Made for few false alarms: what is
    in doubt passes.
    """
    text = " ".join(question[:LOOKED_AT].split())
    for found in _SEEN.finditer(text):
        named = _ENDS_IN_NOUN.search(found.group()) and _is_named(text[found.end() :])
        if not (named or _has_antecedent(text, found)):
            return found.group()
    for found in _BY_NUMBER.finditer(text):
        if not (
            _STANDARD.search(text)
            or _named_before(text[: found.start()])
            or _is_named(text[found.end() :])
        ):
            return found.group()
    found_pronoun = _LEADING.match(text)
    if found_pronoun and not _NAMED_LATER.search(text[found_pronoun.end("pronoun") :]):
        return found_pronoun.group()
    return None


def _has_antecedent(text: str, found: re.Match[str]) -> bool:
    """Whether the thing is in the question: its noun earlier, or its content after it."""
    before = text[: found.start()].casefold()
    nouns = re.findall(rf"\b(?:{_PIECE}|{_READ})\b", found.group().casefold())
    return any(re.search(rf"\b{noun.rstrip('s')}s?\b", before) for noun in nouns) or bool(
        _CONTENT_FOLLOWS.search(text[found.end() :])
    )


def _is_named(after: str) -> bool:
    """Whether "of EN 50128", "on locking", "in the SQLite manual" follows at once."""
    named = re.match(
        r"\s*,?\s+(?:of|on|in|from|about|titled|entitled|called|named)\s+(?:the\s+|an?\s+)?([\w'-]+)",
        after,
    )
    return named is not None and named[1].casefold() not in _GENERIC


def _named_before(before: str) -> bool:
    """Whether a name stands right before the reference: "EN 50128 section 4", "GDPR, Chapter 3"."""
    found = re.search(r"([\w./'-]+),?\s*$", before)
    if found is None:
        return False
    word = found[1]
    begins_the_question = found.start() == 0
    return (
        any(c.isdigit() for c in word)
        or any(c.isupper() for c in word[1:])
        or (word[0].isupper() and not begins_the_question)
    )


# ---------------------------------------------------------------------- copied from the chunk


def copies(question: str, text: str, *, keywords: bool = False) -> str | None:
    """In what the question copies the text more than it may, or None.

    `keywords` tells that the question is in keyword format, which may consist of the text's terms
    and is held to the longest run only.
    """
    run = longest_run(question, text)
    if run > MAX_COPIED_RUN:
        return f"{run} words in a row are those of the chunk"
    rate = 0.0 if keywords else copy_rate(question, text)
    if rate > MAX_COPY_RATE:
        return f"{rate:.0%} of its runs of 4 words are in the chunk"
    return None


def copy_rate(question: str, text: str, n: int = 4) -> float:
    """The share of the question's distinct word n-grams that occur in the text; 0 if it has none.

    Source: c_n of the copy cap that InPars' filter meant to be; the cap of .5 is ours.
    """
    asked, there = _words(question[:LOOKED_AT]), f" {' '.join(_words(text))} "
    grams = {" ".join(asked[i : i + n]) for i in range(len(asked) - n + 1)}
    return sum(f" {gram} " in there for gram in grams) / len(grams) if grams else 0.0


def longest_run(question: str, text: str) -> int:
    """How many words in a row of the question stand in the same order in the text, at most."""
    asked, there = _words(question[:LOOKED_AT]), f" {' '.join(_words(text))} "
    longest = 0
    for start in range(len(asked)):
        while (
            start + longest < len(asked)
            and f" {' '.join(asked[start : start + longest + 1])} " in there
        ):
            longest += 1
    return longest


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.casefold())


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
_UNPARTED = "\u3040-\u30ff\u3400-\u9fff"  # scripts that do not part words by spaces
_THAI = "\u0e00-\u0e7f"
_EACH = f"{_THAI}{_UNPARTED}\uac00-\ud7af"
# A word, or a character of a script that does not part words.
ONE_WORD_EACH = re.compile(f"[{_EACH}]|[^\\W{_EACH}]+")
_INVISIBLE = re.compile("[\u200b-\u200f\u2060-\u2064\ufeff\u00ad]")
# What stands in quotes or backticks: code, a message, a word that is spoken of.
_CITED = re.compile(
    r"`[^`]{1,200}`|\"[^\"]{1,200}\"|“[^”]{1,200}”|«[^»]{1,200}»|„[^“”]{1,200}[“”]|"
    r"(?<!\w)'[^']{1,200}'(?!\w)"
)
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
    signs = sum(bool(_SIGN.search(part)) for part in text.split() if not re.search(r"\w", part))
    if len(ONE_WORD_EACH.findall(text)) + signs < fewest:
        return f"has fewer than {fewest} words"
    if word_count(text) > most or len(question) > LOOKED_AT:
        return f"has more than {most} words"
    return None


def word_count(text: str) -> int:
    """How many words the first 2,000 characters hold, judged by spaces.

    Two Chinese or Japanese characters, or four Thai ones, count as a word.
    """
    text = text[:LOOKED_AT]
    if text.isascii():
        return len(text.split())
    unparted = len(re.findall(f"[{_UNPARTED}]", text)) / 2 + len(re.findall(f"[{_THAI}]", text)) / 4
    return len(re.sub(f"[{_UNPARTED}{_THAI}]+", " ", text).split()) + math.ceil(unparted)


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
    tags = (found.group() for found in _TAG.finditer(_CITED.sub("_", text)))
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
    return len(_ASKING.findall(_CITED.sub("_", text)))


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
        or _script_of(asked.text) != "Latin"
    )
    return None if asks else "is to be a question and neither asks nor requests anything"


# ---------------------------------------------------------------------- says nothing

_STOPWORDS: dict[str, frozenset[str]] = {
    "English": frozenset(
        "a about after again against all also am an and any are as at be because been before being "
        "below between both but by can cannot could did do does doing done down during each either "
        "every few for from further get had has have having he her here him his how however i if "
        "in into is it its itself just like made make many may me might more most much must my no "
        "nor not of off on once one only or other our out over own same shall she should since so "
        "some such than that the their them then there these they this those through thus to too "
        "two under until up upon use used uses using very was we well were what when where whether "
        "which while who whom whose why will with within without would you your s t don doesn isn "
        "can't let us".split()
    ),
    "German": frozenset(
        "aber alle als am an auch auf aus bei beim bis da damit dann das dass dem den der des die "
        "dies diese diesem diesen dieser dieses durch ein eine einem einen einer eines er es für "
        "gibt hat haben ich ihr im in ist ja kann können man mehr mein mit muss nach nicht noch "
        "nur ob oder ohne sein sich sie sind so soll um und vom von vor war warum was welche "
        "welcher welches wenn wer werden wie wieso wird wo zu zum zur zwischen über".split()
    ),
    "French": frozenset(
        "à au aux avec ce ces cette comment dans de des du elle en entre est et être faut il ils "
        "je l la le les leur mais ne nous on ou où par pas peut plus pour pourquoi quand que quel "
        "quelle quelles quels qui sa sans se ses si son sont sur un une vous d qu n".split()
    ),
    "Spanish": frozenset(
        "a al cómo como con cuál cuáles cuando de del donde dónde el ella en entre es esta este "
        "está hay la las lo los me mi más no o para pero por puede que qué se si sin sobre son su "
        "sus un una y ya".split()
    ),
    "Italian": frozenset(
        "a al alla che chi ci come con cosa da dal dalla dei del della delle di dove e è gli i il "
        "in la le lo ma nel nella non o per perché più può quale quali quando quanto se senza si "
        "sono su sul tra un una uno viene".split()
    ),
    "Dutch": frozenset(
        "aan als bij dan dat de deze die dit door een en er geen heeft het hoe hun ik in is je "
        "kan kunnen maar met moet naar niet nog of om onder ook op over te tot tussen uit van "
        "voor waarom wanneer waar wat welke wie wordt worden zich zijn zonder".split()
    ),
    "Portuguese": frozenset(
        "a ao aos as com como da das de do dos e é ela ele em entre eu é está foi há mais mas na "
        "nas não no nos o onde os ou para pela pelo por porque pode qual quais quando que quem se "
        "sem ser seu sua são um uma".split()
    ),
}
# Words by which a question names no subject: "the main purpose of the system".
_HOLLOW = frozenset(
    "advantage advantages approach aspect aspects background basic benefit benefits certain "
    "characteristics chapter chunk common compare component components concept concepts "
    "consequence consequences consideration considerations contain contains content contents "
    "context define definition describe described description detail details difference "
    "differences different disadvantage disadvantages discuss discussed discusses document "
    "drawback drawbacks element elements essential example examples excerpt explain explained "
    "explanation factor factors feature features following general give goal goals happen happens "
    "help helps idea ideas impact implication implications importance important information issue "
    "issues key know limitation limitations list main major mean meaning means mentioned method "
    "methods need objective objectives overall overview passage point points possible primary "
    "problem problems procedure process provide provided purpose question reason reasons "
    "recommended relevant required requirement requirements result results role say says section "
    "significance specific step steps stuff subject summarise summarize summary system systems "
    "tell text theme thing things topic topics understand use usage various want way ways work "
    "works".split()
)
_WORD = re.compile(r"[^\W\d_]+")
_SIGN = re.compile(r"(?<!\w)[^\W\d_]*[\d_]\w*|[^\w\s.,;:!?？؟'\"()\-–—…/&’‘“”„«»*]+")
_ACRONYM = re.compile(r"[A-Z]\w*[A-Z]|[a-z][A-Z]")


def _generic(asked: _Asked) -> str | None:
    """Only words of one known language can be called empty: any other word is a subject."""
    text = asked.text
    if _SIGN.search(text) or (_ACRONYM.search(text) and not text.isupper()):
        return None
    words = {word.casefold() for word in _WORD.findall(text)}
    if words and words <= _STOPWORDS["English"] | _HOLLOW:
        return "names no subject at all"
    return None


def shares_nothing(question: str, chunk_text: str) -> bool:
    """Whether no word of the question that tells anything, and no sign, stands in the chunk.

    Words are compared by their first four letters. No gate: see the module's docstring.
    """
    text, chunk = question[:LOOKED_AT], chunk_text[:CHUNK_LOOKED_AT].casefold()
    empty = _STOPWORDS["English"] | _HOLLOW
    words = [w for w in re.findall(r"\w+", text.casefold()) if len(w) > 2 and w not in empty]
    signs = [sign.casefold() for sign in _SIGN.findall(text)]
    return bool(words) and not any(part in chunk for part in [*(w[:4] for w in words), *signs])


# ---------------------------------------------------------------------- another language

_LATIN = re.compile("[A-Za-z\u00c0-\u024f]")
_SCRIPTS = {
    "Greek": re.compile("[\u0370-\u03ff\u1f00-\u1fff]"),
    "Cyrillic": re.compile("[\u0400-\u052f]"),
    "Hebrew": re.compile("[\u0590-\u05ff]"),
    "Arabic": re.compile("[\u0600-\u06ff\u0750-\u077f]"),
    "Devanagari": re.compile("[\u0900-\u097f]"),
    "Thai": re.compile(f"[{_THAI}]"),
    "Chinese or Japanese": re.compile(f"[{_UNPARTED}]"),
    "Korean": re.compile("[\uac00-\ud7af]"),
}
_LANGUAGE_READ = 20_000  # characters of a chunk are enough to tell its language


def _language(asked: _Asked) -> str | None:
    """Another script than the chunk's, or clear evidence of another language by its stop words.

    Names and identifiers are of no language: keywords and short questions mostly pass.
    """
    chunk = asked.chunk[:_LANGUAGE_READ]
    return _other_script(asked.text, chunk) or _other_language(asked.text, chunk)


def _letters(text: str) -> dict[str, int]:
    found = {"Latin": len(_LATIN.findall(text))}
    if not text.isascii():
        found |= {name: len(pattern.findall(text)) for name, pattern in _SCRIPTS.items()}
    return found


def _script_of(text: str) -> str:
    letters = _letters(text)
    return max(letters, key=lambda name: letters[name])


def _other_script(text: str, chunk: str) -> str | None:
    asked, there = _letters(text), _letters(chunk)
    total = sum(there.values())
    if total < 20:
        return None
    script = _script_of(text)
    if script != "Latin":
        missing = there.get(script, 0) < total / 100
        foreign = asked[script] >= 5 and asked[script] >= sum(asked.values()) / 2 and missing
        return f"is in {script} script and its chunk is not" if foreign else None
    main = max(there, key=lambda name: (name != "Latin", there[name]))
    if there[main] < max(20, 0.3 * total) or main == "Latin" or asked.get(main, 0):
        return None
    language, hits = _likeliest(text)
    read = hits >= 3 and _stopwords_found(chunk)[language] < 3
    return f"is in {language} and its chunk in {main} script" if read else None


def _other_language(text: str, chunk: str) -> str | None:
    if len(_WORD.findall(text)) < 6:
        return None
    language, hits = _likeliest(text)
    theirs, often = _likeliest(chunk)
    asked, there = _stopwords_found(text), _stopwords_found(chunk)
    if hits - asked[theirs] >= 3 and often - there[language] >= max(5, often / 2):
        return f"is in {language} and its chunk in {theirs}"
    return None


def _stopwords_found(text: str) -> dict[str, int]:
    """How many different ones; single letters are left out, which are variables and columns too."""
    words = {word.casefold() for word in _WORD.findall(text) if len(word) > 1}
    return {language: len(words & known) for language, known in _STOPWORDS.items()}


def _likeliest(text: str) -> tuple[str, int]:
    found = _stopwords_found(text)
    language = max(found, key=lambda name: found[name])
    return language, found[language]


# ---------------------------------------------------------------------- the same again


def folded(text: str) -> str:
    """What is the same in two spellings of a question: case, spaces, quotes around, "?" at the end.

    Signs within stay, since `->` and `->>` may be all that two questions differ in.
    """
    plain = " ".join(unicodedata.normalize("NFKC", text[:LOOKED_AT]).casefold().split())
    return plain.strip("\"'“”„«»`").rstrip("?.! ")


def near_duplicates(
    texts: Sequence[str], threshold: float = NEAR_DUPLICATE
) -> list[tuple[int, int, float]]:
    """(i, j, Jaccard index) with i < j of all pairs whose character 5-grams are alike enough.

    Exact, and not all pairs are compared: two sets can reach the threshold only if they share one
    of the rarest few grams of each (prefix filter; Chaudhuri et al. 2006, Bayardo et al. 2007).
    Texts without a letter are like none.
    """
    sets = [shingles(text) for text in texts]
    seen = Counter(gram for grams in sets for gram in grams)
    by_gram: dict[str, list[int]] = defaultdict(list)
    found = []
    for j, grams in enumerate(sets):
        rarest = sorted(grams, key=lambda gram: (seen[gram], gram))[
            : prefix_length(grams, threshold)
        ]
        for i in sorted({i for gram in rarest for i in by_gram[gram]}):
            if (index := jaccard(sets[i], grams)) >= threshold:
                found.append((i, j, index))
        for gram in rarest:
            by_gram[gram].append(j)
    return sorted(found)


def prefix_length(grams: frozenset[str], threshold: float) -> int:
    """How many of a set's grams must be looked at so that no set like it is missed."""
    return len(grams) - math.ceil(threshold * len(grams) - 1e-9) + 1


def jaccard(a: frozenset[str], b: frozenset[str]) -> float:
    """|a ∩ b| / |a ∪ b|; one of them must hold something."""
    common = len(a & b)
    return common / (len(a) + len(b) - common)


def shingles(text: str, n: int = 5) -> frozenset[str]:
    """The character n-grams of the `folded` text; what is shorter is one gram, nothing is none."""
    plain = folded(text)
    if not plain:
        return frozenset()
    return frozenset(plain[i : i + n] for i in range(max(1, len(plain) - n + 1)))


def repeats(
    texts: Sequence[str], threshold: float = NEAR_DUPLICATE
) -> list[tuple[int, int, float]]:
    """(i, j, Jaccard index) with i < j: text j is alike enough to the earlier text i.

    Each j occurs once, and i never as a j: a text that repeats another is not compared with again.
    So a set that has collapsed costs no more than a varied one, as in `near_duplicates` it does.
    Two filters, of prefixes and of positions in them (PPJoin; Xiao et al. 2008), lose no pair.
    """
    sets = [shingles(text) for text in texts]
    seen = Counter(gram for grams in sets for gram in grams)
    index: _Index = defaultdict(lambda: defaultdict(list))
    found = []
    for j, grams in enumerate(sets):
        rarest = sorted(grams, key=lambda gram: (seen[gram], gram))[
            : prefix_length(grams, threshold)
        ]
        like = _first_alike(
            grams, _candidates(rarest, len(grams), index, threshold), sets, threshold
        )
        if like is not None:
            found.append((like[0], j, like[1]))
            continue
        for place, gram in enumerate(rarest):
            index[gram][len(grams), place].append(j)
    return found


_Index = defaultdict[str, defaultdict[tuple[int, int], list[int]]]  # gram: {(size, place): texts}


def _candidates(rarest: Sequence[str], size: int, index: _Index, threshold: float) -> Iterator[int]:
    """Texts whose first gram in common stands so early that enough others can follow."""
    for place, gram in enumerate(rarest):
        if gram not in index:
            continue
        for (other_size, other_place), texts in index[gram].items():
            most = min(size - place, other_size - other_place)
            if most >= threshold / (1 + threshold) * (size + other_size) - 1e-9:
                yield from texts


def _first_alike(
    grams: frozenset[str],
    candidates: Iterator[int],
    sets: Sequence[frozenset[str]],
    threshold: float,
) -> tuple[int, float] | None:
    compared: set[int] = set()
    for i in candidates:
        if i not in compared and (index := jaccard(sets[i], grams)) >= threshold:
            return i, index
        compared.add(i)
    return None


def alike(a: str, b: str) -> float:
    """The Jaccard index of two texts' character 5-grams, 0 if one of them has none."""
    of_a, of_b = shingles(a), shingles(b)
    return jaccard(of_a, of_b) if of_a and of_b else 0.0


def _near_duplicate(asked: _Asked) -> str | None:
    """`->` and `->>`, UPDATE and DELETE, 16 and 32: two questions, however alike their letters."""
    grams = shingles(asked.text)
    length = len(folded(asked.text))
    for other in asked.others:
        there = len(folded(other))
        if not grams or not 0.5 * length - 8 <= there <= 2 * length + 8:
            continue
        index = jaccard(grams, shingles(other)) if there else 0.0
        if index >= NEAR_DUPLICATE and not differ_in_a_name(asked.text, other):
            shown = " ".join(other[:LOOKED_AT].split())[:80]
            return f"is {index:.0%} alike to an accepted question: {shown}"
    return None


def differ_in_a_name(a: str, b: str) -> bool:
    """Whether one has a sign, a number, an identifier or a "not" that the other has not."""
    one, two = ({t.strip(".,;:!?\"'()“”") for t in text[:LOOKED_AT].split()} for text in (a, b))
    folded_one, folded_two = ({token.casefold() for token in tokens} for tokens in (one, two))
    only = [t for t in one if t.casefold() not in folded_two]
    only += [t for t in two if t.casefold() not in folded_one]
    return any(
        _SIGN.search(token) or _ACRONYM.search(token) or token.casefold() in _DENIALS
        for token in only
    )


_DENIALS = frozenset("not no never without cannot nicht ohne kein keine pas sans non sin".split())

# ---------------------------------------------------------------------- all of them

_Check = Callable[[_Asked], str | None]
_TINY = re.compile(r"\b(?:\w|\d+)\b")


def _copied(asked: _Asked) -> str | None:
    """A short citation in quotes (a message, a statement) is no copying, unless it is the most.

    Nor are the single letters and numbers of an expression, of which `a = 5 OR b = 6` has four.
    """
    cited = _CITED.sub(" __ ", asked.text)
    kept = cited if 2 * len(_words(cited)) >= len(_words(asked.text)) else asked.text
    asked_words, chunk_words = (_TINY.sub(" ", text) for text in (kept, asked.chunk))
    return copies(asked_words, chunk_words, keywords=asked.keywords is True)


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
    "language": ("another script or language than its chunk's", _language),
    "near_duplicate": (
        f"a near-duplicate of an accepted question (character 5-grams, {NEAR_DUPLICATE:.0%})",
        _near_duplicate,
    ),
}
GATES: Mapping[str, str] = MappingProxyType({gate: words for gate, (words, _) in _GATES.items()})
