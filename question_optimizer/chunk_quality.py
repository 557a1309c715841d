"""Which chunks no fit question can be asked about, and why: a reason code and what was measured.

Rules of thumb, so a wrong rejection is dearer than a miss: it biases the sample. Each threshold was
set on two real corpora by reading what it rejects (benchmarks/README.md has the precision of each
code), and a doubtful chunk is kept. All shares are of words unless said otherwise; links count by
their label, code in fences or backticks is never taken for bad prose.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Collection, Iterator
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

from question_optimizer.records import Chunk, PointId

if TYPE_CHECKING:
    import numpy

CODES = (
    "boilerplate",
    "table_of_contents",
    "references",
    "undecoded_formula",
    "table_residue",
    "garbled",
    "too_short",
    "near_duplicate",
)
MIN_WORDS = 20


class Rejection(NamedTuple):
    """Why a chunk is unfit: `measure` reached `threshold` (for `too_short`: stayed below it).

    A near-duplicate names the earlier chunk that it is `like`.
    """

    reason: str
    measure: float
    threshold: float
    like: PointId | None = None


class ChunkFilter:
    """The filters asked for. Keeps what `near_duplicate` needs: shingles of each fit chunk."""

    def __init__(self, codes: Collection[str] = CODES, *, min_words: int = MIN_WORDS):
        self._codes = [code for code in CODES if code in codes]
        self._min_words = min_words
        self._seen = _Seen()

    def unfit(self, chunk: Chunk) -> Rejection | None:
        """The first reason against `chunk`, in the order of CODES; None if it is fit.

        A fit chunk is remembered: later ones must differ from it. Nothing else depends on order.
        """
        view = _View(chunk)
        for code in self._codes:
            if code == "near_duplicate":
                return self._seen.similar(view.folded, chunk.chunk_id)
            found = _too_short(view, self._min_words) if code == "too_short" else _RULES[code](view)
            if found is not None:
                return Rejection(code, round(found[0], 4), found[1])
        return None


Found = tuple[float, float] | None

# ---------------------------------------------------------------------- the text, taken apart

_LINK = re.compile(r"!?\[((?:[^\[\]]|\[[^\[\]]*\])*)\]\(([^()\s]*(?:\([^()]*\)[^()\s]*)*)\)")
_LINK_AT_END = re.compile(r"\]\([^()\s]*\)\W*$")
_FENCE = re.compile(r"```.*?(?:```|\Z)", re.S)
_CODE = re.compile(r"```.*?(?:```|\Z)|`[^`]*`", re.S)
_MARK = re.compile(r"<!--.{0,200}?-->", re.S)  # bounded: hostile text may never close one
_WORD = re.compile(r"[^\W\d_][\w'’-]*")
_CJK = re.compile("[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff]")
_BULLET = re.compile(r"^\s*(?:[-*•·]\s+|\d{1,3}[.)]\s+(?=\[))+")


def _words(text: str) -> float:
    """How many words; two ideographs, kana or syllables count as one, as no space parts them."""
    ideographs = len(_CJK.findall(text))
    return len(_WORD.findall(_CJK.sub(" ", text))) + ideographs / 2


class _View:
    """A chunk's text in the forms that the rules look at."""

    def __init__(self, chunk: Chunk):
        self.text = chunk.chunk_text
        self.heading = chunk.headings[-1] if chunk.headings else ""

    @cached_property
    def plain(self) -> str:
        """Links as their labels, docling's marks and emphasis gone."""
        text = _LINK.sub(lambda link: link[1], _MARK.sub(" ", self.text))
        return re.sub(r"\*+", "", text)

    @cached_property
    def prose(self) -> str:
        """`plain` without fenced code."""
        return _FENCE.sub(" ", self.plain)

    @cached_property
    def lines(self) -> list[str]:
        """What is not blank, links and all."""
        return [line for line in self.text.splitlines() if line.strip()]

    @cached_property
    def folded(self) -> str:
        return " ".join(unicodedata.normalize("NFKC", self.plain).casefold().split())

    @cached_property
    def words(self) -> float:
        return _words(self.plain)

    @cached_property
    def statements(self) -> list[str]:
        """Sentences that say something by themselves: see `_is_statement`."""
        flat = " ".join(self.prose.split())
        if _LINK_AT_END.search(self.text):  # converters lose the full stop after a link
            flat += "."
        parts = re.split(r"(?<=[.!?。！？])(?:[\"'”’)]*\s+|(?<=[。！？]))", flat)
        return [part for part in parts if _is_statement(part)]


_END = re.compile(r"[.!?。！？][\"'”’)`]*$")
_POINTER = re.compile(
    r"\b(see|refer to|consult|listed in|shown in|described in|discussed in|for (more|further)"
    r"|(following|previous|next|above|below|preceding) (section|chapter|example|table)"
    r"|siehe|vgl|voir|cf)\b"
    r"|\b(table|figure|example|section|chapter|appendix) [A-Z]?\d",
    re.I,
)
_LEANING = re.compile(
    r"^\W*(this|that|these|those|it|its|they|their|he|she|such|so|thus|then|hence|therefore"
    r"|here|also|however|but|and|or|for example|for instance|in this|in that|in these"
    r"|in such|if this|the (following|above|previous|preceding|latter|former|same|second|third)"
    r"|dies\w*|das|es|sie|cela|ceci|cette|ces)\b",
    re.I,
)


def _is_statement(sentence: str) -> bool:
    """Whether a sentence of a short chunk can carry a question of its own.

    It is complete (capital or identifier to full stop), has 5 words or more, points nowhere else
    and does not lean on a sentence before it by its first words.
    """
    begun = sentence.lstrip("-*•>\"'“‘([ 0123456789.)")
    first = begun.split(" ", 1)[0]
    return (
        (begun[:1] == begun[:1].upper() or first.startswith("`") or "_" in first)
        and _words(sentence) >= 5
        and bool(_END.search(sentence.strip()))
        and not _POINTER.search(sentence)
        and not _LEANING.search(sentence)
    )


# ---------------------------------------------------------------------- the rules

_NAVIGATION = frozenset(
    "prev previous next up home top back contents index zurück weiter vor hoch start inhalt"
    " précédent suivant accueil anterior siguiente inicio".split()
)
_BOILER = re.compile(
    r"^[\W\d_]*(this page (was )?last (modified|updated|changed)( on)?|last (modified|updated) on"
    r"|(copyright|©|\(c\)) ?(©|\(c\))? ?(19|20)?\d{2}.{0,120}|.{0,60}all rights reserved.{0,20}"
    r"|(this )?page (is )?(was )?(has been )?intentionally (left )?blank"
    r"|page \d+( (of|/) \d+)?|seite \d+( (von|/) \d+)?"
    r"|(strictly |company )*confidential|skip to (main )?content|back to top"
    r"|(print|downloaded|generated) (on|at|by|from) .{0,60})[\W\d_]*$",
    re.I,
)
_DATE = re.compile(r"^[\s\d:.,/TZ-]*(utc|gmt|[ap]m)?\W*$", re.I)


def _boilerplate(view: _View) -> Found:
    """Navigation (two or more of prev, up, next, … linked, the first link one of them, among 80
    words at most), or copyright notices, dates of change and page headers as 80 % of the words."""
    linked = [label.strip(" *«»<>←→").casefold() for label, _ in _LINK.findall(view.text)]
    steps = len(_NAVIGATION.intersection(linked))
    if steps >= 2 and view.words <= 80 and linked[0] in _NAVIGATION:
        return steps, 2
    words = [word.casefold() for word in _WORD.findall(view.plain)]
    if 2 <= len(words) <= 12 and all(word in _NAVIGATION for word in words):
        return len(words), 2
    lines = view.prose.splitlines()
    if not any(_BOILER.match(line) for line in lines if line.strip()):
        return None
    return _at_least(
        _share_of_lines(view.plain.splitlines(), lambda s: _BOILER.match(s) or _DATE.match(s)), 0.8
    )


def _share_of_lines(lines: list[str], fits: Callable[[str], Any]) -> float:
    """Share of the characters that stand on lines which fit."""
    sizes = [(len(line.strip()), bool(line.strip()) and bool(fits(line))) for line in lines]
    whole = sum(size for size, _ in sizes)
    return sum(size for size, fit in sizes if fit) / whole if whole else 0.0


def _at_least(measure: float, threshold: float) -> Found:
    return (measure, threshold) if measure >= threshold else None


_LONGEST_ENTRY = 500  # characters, with its links; also bounds what the patterns may backtrack
_NUMBER = r"(?:\d+|[A-Z]|[IVXLC]+)(?:\.\d+)*\.?"
_LEADERS = re.compile(r"(?:(?:\.\s?){4,}|…{2,}|_{5,}|(?:·\s?){4,})\s*[\divxlc]+\s*\|?\s*$")
_NUMBERED = re.compile(
    rf"^\W*(?:chapter |part |appendix |kapitel )?{_NUMBER}\s+\S.{{2,90}}\s\d{{1,4}}\s*$"
)
_CONTENTS = re.compile(
    r"^\W*(table of contents|contents|list of (figures|tables|examples)|inhaltsverzeichnis|inhalt"
    r"|table des mati[eè]res|sommaire|[íi]ndice|目次|目录)\W*$",
    re.I,
)


def _table_of_contents(view: _View) -> Found:
    """Entries (dot leaders and a page; a number, a title and a page; a list item that is all link,
    into this page or with a section number) hold 70 % of the characters, 50 % under a heading
    that says so; four entries at least where only numbers tell."""
    lines = view.lines
    short = [line for line in lines if len(line) <= _LONGEST_ENTRY]
    titled = [line for line in short if _CONTENTS.match(line)]
    certain = [line for line in short if _LEADERS.search(line) or _is_linked_entry(line)]
    numbered = [line for line in short if _NUMBERED.match(line)]
    if len(numbered) < 4:
        numbered = []
    entries = {*certain, *numbered, *titled}
    if not entries:
        return None
    known = titled or _CONTENTS.match(view.heading)
    return _at_least(_share_of_lines(lines, entries.__contains__), 0.5 if known else 0.7)


def _is_linked_entry(line: str) -> bool:
    """A list item that is nothing but links, to a place on this page or of a numbered section."""
    links = _LINK.findall(line)
    if not links or not _BULLET.match(line):
        return False
    rest = _LINK.sub(" ", _BULLET.sub("", line))
    label = links[0][0].strip(" *`")
    inside = all(target.startswith("#") for _, target in links)
    return _words(rest) == 0 and (inside or bool(re.match(rf"{_NUMBER}(\s|$)", label)))


_SEE_ALSO = re.compile(
    r"^\W*(?:[\d.]+\s*)?(see also|references?|bibliograph\w*|further reading|related (links|topics)"
    r"|literatur\w*|quellen\w*|siehe auch|voir aussi|bibliografía|参考文献)\W*$",
    re.I,
)
_YEAR = re.compile(r"\b(19|20)\d\d\b")
_CITED = re.compile(
    r"\b(pp?\.|vol\.|no\.|eds?\.|isbn|issn|doi|arxiv|press|proc(\.|eedings)|journal|publish\w*"
    r"|verlag|university|conference|transactions|springer|acm|ieee|rfc|iso/iec|https?:)",
    re.I,
)
_ENTRY = re.compile(
    r"^\s*(?:[-*•]\s*)?(?:\[[^\]\s]{1,20}\]|\(?\d{1,3}[.)]|[A-Z][\w'’-]+,\s+[A-Z]\.)"
)


def _references(view: _View) -> Found:
    """Literature (of the lines, 60 % are entries with a year and a mark of publication, two at
    least), or links and nothing else: 90 % of the words are labels, 50 % under "See also"."""
    cited = [line for line in view.lines if _is_citation(line)]
    titled = bool(_SEE_ALSO.match(view.heading) or (view.lines and _SEE_ALSO.match(view.lines[0])))
    if len(cited) >= (1 if titled else 2) and len(cited) / len(view.lines) >= 0.6:
        return len(cited) / len(view.lines), 0.6
    links = [label for label, target in _LINK.findall(view.text) if not target.startswith("#")]
    if not links or len(links) + titled < 2 or not view.words:
        return None
    labelled = _words(re.sub(r"\*+", "", " ".join(links))) / view.words
    return _at_least(labelled, 0.5 if titled else 0.9)


def _is_citation(line: str) -> bool:
    text = _LINK.sub(lambda link: link[1], line)
    marks = len({mark[0].casefold() for mark in _CITED.findall(text)})
    begun = bool(_ENTRY.match(text))
    return bool(_YEAR.search(text)) and len(text) < 500 and marks + begun >= 2


_FORMULA = re.compile(r"<!--\s*formula-not-decoded\s*-->|\[formula not decoded\]", re.I)


def _undecoded_formula(view: _View) -> Found:
    """docling's mark for a formula that it could not read, one for every 25 words or fewer: what
    the text says is in the formula. The measure is marks per 25 words."""
    marks = len(_FORMULA.findall(view.text))
    return _at_least(25 * marks / max(1.0, _words(_FORMULA.sub(" ", view.plain))), 1.0)


_TRIPLE = re.compile(
    r"(?:^|(?<=\. )|(?<=\n))(?P<row>[^=\n]{1,160}?) = (?P<value>.*?)(?=\. [^=]{1,160} = |\.?\s*$)",
    re.S,
)


def _table_residue(view: _View) -> Found:
    """A table whose cells have lost what names them: bare figures (80 % of 15 tokens or more have
    no letter), or docling's "row, column = value" triples, four at least and 70 % of the text, of
    which 60 % have no column (one cell set equal to its neighbour) or a number for one, and a
    value of at most two words. Triples that name row and column state facts, and stay."""
    tokens = [token for token in view.prose.split() if any(map(str.isalnum, token))]
    figures = sum(not any(map(str.isalpha, token)) for token in tokens) / max(1, len(tokens))
    if len(tokens) >= 15 and figures >= 0.8:
        return figures, 0.8
    triples = list(_TRIPLE.finditer(view.prose))
    if len(triples) < 4 or view.statements:
        return None
    covered = sum(len(triple[0]) for triple in triples) / max(1, len(view.prose.strip()))
    nameless = sum(_is_nameless(triple["row"], triple["value"]) for triple in triples)
    return _at_least(nameless / len(triples), 0.6) if covered >= 0.7 else None


def _is_nameless(row: str, value: str) -> bool:
    column = row.rpartition(", ")[2] if ", " in row else ""
    return (not column or column.strip().isdigit()) and _words(value) <= 2


_BROKEN = re.compile("\ufffd|\\(cid:\\d+\\)|Ã[\x80-\xbf¡-¿]|â€[\u0080-\u2122]|Â[\xa0-\xbf]|ï¿½")
_SPACED = re.compile(r"(?:(?<![^\W_])[^\W\d_][ \u2009\u00a0]){7,}[^\W\d_](?![^\W_])")
_LATIN = re.compile(r"[A-Za-z\u00c0-\u024f]+")
_VOWEL = re.compile(r"[aeiouyAEIOUY]")


def _garbled(view: _View) -> Found:
    """Broken text outside code: 25 % of the tokens hold replacement characters, (cid:…) or UTF-8
    read as Latin-1; or half the letters stand alone, spaced out; or 40 % of the tokens are words
    of four letters or more without a vowel, not all capitals; or a fifth of the characters are
    pictures, private or unassigned."""
    text = _CODE.sub(" ", view.plain)
    tokens = text.split()
    letters = sum(char.isalpha() for char in text)
    if len(tokens) < 4 and letters < 20:
        return None
    broken = sum(bool(_BROKEN.search(token)) for token in tokens) / max(1, len(tokens))
    spaced = sum(len(run[0]) // 2 + 1 for run in _SPACED.finditer(text)) / max(1, letters)
    odd = sum(_is_odd(char) for char in text) / max(1, len(text))
    for measure, threshold in ((broken, 0.25), (spaced, 0.5), (_mute(tokens), 0.4), (odd, 0.2)):
        if measure >= threshold:
            return measure, threshold
    return None


def _mute(tokens: list[str]) -> float:
    """Share of the tokens that are long Latin words without a vowel; 0 below eight tokens."""
    if len(tokens) < 8:
        return 0.0
    bare = (token.strip(".,;:!?()[]\"'“”’") for token in tokens)
    return sum(_is_mute(token) for token in bare) / len(tokens)


def _is_mute(word: str) -> bool:
    if len(word) < 4 or word.isupper() or not _LATIN.fullmatch(word):
        return False
    return not _VOWEL.search(unicodedata.normalize("NFD", word))


def _is_odd(char: str) -> bool:
    return (
        unicodedata.category(char) in ("So", "Sk", "Co", "Cn", "Cc")
        and char not in "\n\t\r`^°©®™"
        and not "\u2500" <= char <= "\u25ff"
    )


def _too_short(view: _View, min_words: int) -> Found:
    """Fewer than `min_words` words and no statement among them (see `_is_statement`).

    Code says more in fewer words: where it is most of the text, a fifth of `min_words` does, and
    an example together with the sentence that leads to it is fit.
    """
    if _FENCE.search(view.text) and _words(view.prose) >= 5:
        return None
    code = sum(len(part) for part in _CODE.findall(view.text)) / len(view.text)
    symbols = sum(char in "()[]{}<>=;|$_/\\'\"→#@&" for char in view.plain) / max(
        1, len(view.plain)
    )
    enough = 0.2 * min_words if code > 0.5 or symbols > 0.12 else float(min_words)
    return (view.words, enough) if view.words < enough and not view.statements else None


_RULES: dict[str, Callable[[_View], Found]] = {
    "boilerplate": _boilerplate,
    "table_of_contents": _table_of_contents,
    "references": _references,
    "undecoded_formula": _undecoded_formula,
    "table_residue": _table_residue,
    "garbled": _garbled,
}

# ---------------------------------------------------------------------- near duplicates

_SHINGLE = 5
_ALIKE = 0.9  # at 0.8 half of those rejected, read one by one, could be told apart
_BANDS, _ROWS = 32, 4


class _Seen:
    """The fit chunks so far, as sets of character 5-grams, indexed by MinHash (Broder 1997).

    Two are alike from a Jaccard coefficient of 0.9 on, if they use the same words: manuals say the
    same of two commands by changing a name, and each can be asked about. 32 bands of 4 hashes miss
    a pair of 0.9 with a chance of 2e-15 ((1 - 0.9^4)^32; Leskovec et al., Mining of Massive
    Datasets, 3.4); what they find is compared exactly. Less than 5 characters: one shingle.
    """

    def __init__(self) -> None:
        self._texts: list[tuple[PointId, numpy.ndarray, frozenset[str]]] = []
        self._bands: dict[tuple[int, bytes], list[int]] = {}

    def similar(self, folded: str, chunk_id: PointId) -> Rejection | None:
        """The first one alike; None, and the text remembered, if none is."""
        shingles, words = _shingles_of(folded), frozenset(re.findall(r"\w+", folded))
        keys = list(_band_keys(shingles))
        for i in dict.fromkeys(i for key in keys for i in self._bands.get(key, ())):
            other, others, other_words = self._texts[i]
            alike = _jaccard(shingles, others)
            if alike >= _ALIKE and words == other_words:
                return Rejection("near_duplicate", round(alike, 4), _ALIKE, other)
        for key in keys:
            self._bands.setdefault(key, []).append(len(self._texts))
        self._texts.append((chunk_id, shingles, words))
        return None


def _shingles_of(folded: str) -> numpy.ndarray:
    """Sorted 64-bit hashes of the text's 5-grams, each once; the same in every process."""
    import numpy

    codes = numpy.frombuffer(folded.encode("utf-32-le"), numpy.uint32).astype(numpy.uint64)
    wide = max(1, len(codes) - _SHINGLE + 1)
    hashed = numpy.zeros(wide, numpy.uint64)
    for place in range(min(_SHINGLE, len(codes))):
        hashed = hashed * numpy.uint64(0x9E3779B97F4A7C15) + codes[place : place + wide]
        hashed ^= hashed >> numpy.uint64(29)
    return numpy.unique(hashed)


def _band_keys(shingles: numpy.ndarray) -> Iterator[tuple[int, bytes]]:
    import numpy

    rng = numpy.random.Generator(numpy.random.PCG64(5))
    factors = rng.integers(1, 2**63, _BANDS * _ROWS, dtype=numpy.uint64) * numpy.uint64(2) + 1
    smallest = (shingles[:, None] * factors >> numpy.uint64(32)).min(axis=0)
    for band in range(_BANDS):
        yield band, smallest[band * _ROWS : (band + 1) * _ROWS].tobytes()


def _jaccard(one: numpy.ndarray, other: numpy.ndarray) -> float:
    import numpy

    common = len(numpy.intersect1d(one, other, assume_unique=True))
    return common / (len(one) + len(other) - common)
