"""Which language and script a text is in, by its stop words and letters.

Enough to see that a question is in another language than its chunk, and for no more: names and
identifiers are of no language, and what is in doubt is called the same.
"""

from __future__ import annotations

import re

from question_optimizer.words import THAI, UNPARTED, WORD

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
SAYS_NOTHING = _STOPWORDS["English"] | _HOLLOW
_LATIN = re.compile("[A-Za-z\u00c0-\u024f]")
_SCRIPTS = {
    "Greek": re.compile("[\u0370-\u03ff\u1f00-\u1fff]"),
    "Cyrillic": re.compile("[\u0400-\u052f]"),
    "Hebrew": re.compile("[\u0590-\u05ff]"),
    "Arabic": re.compile("[\u0600-\u06ff\u0750-\u077f]"),
    "Devanagari": re.compile("[\u0900-\u097f]"),
    "Thai": re.compile(f"[{THAI}]"),
    "Chinese or Japanese": re.compile(f"[{UNPARTED}]"),
    "Korean": re.compile("[\uac00-\ud7af]"),
}
_LANGUAGE_READ = 20_000  # characters of a chunk are enough to tell its language


def other_language(text: str, chunk: str) -> str | None:
    """Another script than the chunk's, or clear evidence of another language by its stop words.

    Names and identifiers are of no language: keywords and short questions mostly pass.
    """
    chunk = chunk[:_LANGUAGE_READ]
    return _other_script(text, chunk) or _by_stopwords(text, chunk)


def _letters(text: str) -> dict[str, int]:
    found = {"Latin": len(_LATIN.findall(text))}
    if not text.isascii():
        found |= {name: len(pattern.findall(text)) for name, pattern in _SCRIPTS.items()}
    return found


def script_of(text: str) -> str:
    """The script of most of its letters, "Latin" if there is none."""
    letters = _letters(text)
    return max(letters, key=lambda name: letters[name])


def _other_script(text: str, chunk: str) -> str | None:
    asked, there = _letters(text), _letters(chunk)
    total = sum(there.values())
    if total < 20:
        return None
    script = script_of(text)
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


def _by_stopwords(text: str, chunk: str) -> str | None:
    if len(WORD.findall(text)) < 6:
        return None
    language, hits = _likeliest(text)
    theirs, often = _likeliest(chunk)
    asked, there = _stopwords_found(text), _stopwords_found(chunk)
    if hits - asked[theirs] >= 3 and often - there[language] >= max(5, often / 2):
        return f"is in {language} and its chunk in {theirs}"
    return None


def _stopwords_found(text: str) -> dict[str, int]:
    """How many different ones; single letters are left out, which are variables and columns too."""
    words = {word.casefold() for word in WORD.findall(text) if len(word) > 1}
    return {language: len(words & known) for language, known in _STOPWORDS.items()}


def _likeliest(text: str) -> tuple[str, int]:
    found = _stopwords_found(text)
    language = max(found, key=lambda name: found[name])
    return language, found[language]
