"""Deterministic checks of a question's text: objective defects only, never a measure of quality.

Each looks at the first 2,000 characters of a question; what is longer is no question. English
phrases are known; a question in another language passes unless it uses them. Thresholds are
starting values, to be calibrated on one's own gold set.
"""

from __future__ import annotations

import json
import math
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Sequence

LOOKED_AT = 2000  # characters
MAX_COPY_RATE = 0.5  # of a question's word 4-grams
MAX_COPIED_RUN = 7  # words
NEAR_DUPLICATE = 0.8  # Jaccard index of character 5-grams
MIN_WORDS, MAX_WORDS = 2, 60

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
        if not (_named_before(text[: found.start()]) or _is_named(text[found.end() :])):
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


# ---------------------------------------------------------------------- odd as a question

_PREAMBLE = re.compile(
    r"(?:here (?:are|is|'s)\b|(?:sure|certainly|of course|okay|absolutely)[,!.:]|"
    r"(?:the |my |possible )?(?:question|query|answer)\s*\d*\s*:|question\s+\d+\b|as an ai\b)",
    re.IGNORECASE,
)
_LIST_MARK = re.compile(r"(?:\(?\d{1,2}[.)]|[-*•–—]|\(?[a-hA-H][.)]|Q\d*[.:)])\s+\S|#{1,6}\s|```")
_QUOTES = {'"': '"', "'": "'", "“": "”", "„": "“", "«": "»", "`": "`"}
_ONE_WORD_EACH = re.compile("[\u0e00-\u0e7f\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|\\w+")


def looks_odd(question: str) -> str | None:
    """What shows that the text is not one question as a person puts it, or None.

    A preamble, what is left of a list, quotes or braces around, fewer than 2 or more than 60
    words. Where words are not parted by spaces, each character counts as one towards the fewest.
    """
    text = question[:LOOKED_AT].strip()
    if _PREAMBLE.match(text):
        return "begins like a model's preamble"
    if _LIST_MARK.match(text):
        return "begins with what is left of a list"
    if (
        _QUOTES.get(text[:1]) == text[-1:]
        and len(text) > 1
        and not {text[0], text[-1]} & {*text[1:-1]}
    ):
        return "stands in quotes"
    if _is_json(text):
        return "is JSON"
    if len(_ONE_WORD_EACH.findall(text)) < MIN_WORDS:
        return f"has fewer than {MIN_WORDS} words"
    if len(text.split()) > MAX_WORDS or len(question) > LOOKED_AT:
        return f"has more than {MAX_WORDS} words"
    return None


def _is_json(text: str) -> bool:
    if text[:1] not in ("{", "["):
        return False
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


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
    sets = [_shingles(text) for text in texts]
    seen = Counter(gram for grams in sets for gram in grams)
    by_gram: dict[str, list[int]] = defaultdict(list)
    found = []
    for j, grams in enumerate(sets):
        rarest = sorted(grams, key=lambda gram: (seen[gram], gram))[: _prefix(grams, threshold)]
        for i in sorted({i for gram in rarest for i in by_gram[gram]}):
            if (index := _jaccard(sets[i], grams)) >= threshold:
                found.append((i, j, index))
        for gram in rarest:
            by_gram[gram].append(j)
    return sorted(found)


def _prefix(grams: frozenset[str], threshold: float) -> int:
    """How many of a set's grams must be looked at so that no set like it is missed."""
    return len(grams) - math.ceil(threshold * len(grams) - 1e-9) + 1


def _jaccard(a: frozenset[str], b: frozenset[str]) -> float:
    common = len(a & b)
    return common / (len(a) + len(b) - common)


def _shingles(text: str, n: int = 5) -> frozenset[str]:
    plain = folded(text)
    if not plain:
        return frozenset()
    return frozenset(plain[i : i + n] for i in range(max(1, len(plain) - n + 1)))
