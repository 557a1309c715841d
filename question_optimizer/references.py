"""References to what a question's reader cannot see: "this section", "Table 2", "Why is it so?".

Whoever asks has not read the chunk, so a question that points into it cannot have been theirs.
"""

from __future__ import annotations

import re

from question_optimizer.words import LOOKED_AT

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
