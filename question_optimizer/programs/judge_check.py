"""Is the judge to be trusted? It is measured against what a person decided, before it decides.

Each gold item gives pairs: the question a person chose, over suggestions the person saw and left,
over those marked as bad, and over questions that are bad by construction. A judge that cannot tell
them apart better than chance, or that goes by which question is shown first, must not decide
between two prompts. The same pairs serve to optimise the judge (`pair_scorer`).
"""

from __future__ import annotations

import random
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, NamedTuple

import dspy

from question_optimizer.duplicates import NEAR_DUPLICATE, folded, near_duplicates
from question_optimizer.gates import gate_failures
from question_optimizer.hostile_text import promptable
from question_optimizer.pinning import on_item
from question_optimizer.programs.judge import (
    PASS_SCORE,
    Judgement,
    JudgeQuestion,
    LLMMetric,
    QuestionJudge,
    Unjudged,
)
from question_optimizer.programs.pairwise import Comparison, PairwiseJudge, Written
from question_optimizer.programs.runs import in_threads, item_id
from question_optimizer.records import GoldItem
from question_optimizer.statistics import Estimate, agreement, clustered_mean
from question_optimizer.verdict import MAX_MISSING

Kind = Literal["rejected", "bad", "planted"]
KINDS: tuple[Kind, ...] = ("rejected", "bad", "planted")
MOST_PAIRS = 100
# Fewer tell nothing: at 20 of 30 right the interval still reaches .5, and resampling a handful of
# chunks says little about others.
FEWEST_PAIRS, FEWEST_CHUNKS = 20, 10
LEAST_CONSISTENT = 0.8
_EDITED_FROM = 0.5  # Jaccard index from which a suggestion counts as what an edited gold came from


_Known = tuple[str, str, str]  # chunk, gold question, the question judged


# ---------------------------------------------------------------------- pairs


class JudgePair(NamedTuple):
    """Two questions for one chunk of which a person, or the way it was made, says one is better.

    `gated` tells which of them a gate refuses: such a pair never reaches the judge. `flaw` says in
    words what is wrong with the worse one.
    """

    item: GoldItem
    better: str
    worse: str
    kind: Kind
    gated: Literal["", "better", "worse"] = ""
    flaw: str = ""

    @property
    def chunk(self) -> str:
        return str(self.item.chunk_id)

    def known(self, question: str) -> _Known:
        """What one of its questions is known by, as a question about this item."""
        return self.chunk, self.item.gold_question, question


_PERSON_SAYS: dict[Kind, str] = {
    "rejected": "a person saw both and chose the other",
    "bad": "a person marked it as bad",
}


def pairs_of(items: Sequence[GoldItem], *, most: int = MOST_PAIRS, seed: int) -> list[JudgePair]:
    """The pairs that gold items of the train and dev sides give; ValueError for a test item.

    At most `most` that reach the judge, drawn evenly over kinds and chunks, and all that the gates
    decide. The same items and seed give the same pairs.
    """
    if any(item.split == "test" for item in items):
        raise ValueError("the judge is not checked on the test split")
    pairs = [pair for item in items for pair in _pairs_of_one(item, items, seed)]
    drawn = _evenly([pair for pair in pairs if not pair.gated], most, random.Random(seed))
    kept = {id(pair) for pair in drawn}
    return [pair for pair in pairs if pair.gated or id(pair) in kept]


def calls_needed(pairs: Sequence[JudgePair]) -> int:
    """Calls that `check_judge` makes when none fails: a call a question, two a comparison."""
    asked = [pair for pair in pairs if not pair.gated]
    return len(_questions(asked)) + 2 * len(asked)


def _pairs_of_one(item: GoldItem, items: Sequence[GoldItem], seed: int) -> Iterator[JudgePair]:
    gold_refused = bool(gate_failures(item.gold_question, chunk_text=item.chunk_text))
    for pair in (*_left_by_the_person(item), *_planted(item, items, seed)):
        if gold_refused:
            yield pair._replace(gated="better")
        elif pair.kind != "planted" and gate_failures(pair.worse, chunk_text=item.chunk_text):
            yield pair._replace(gated="worse")
        else:
            yield pair


def _left_by_the_person(item: GoldItem) -> Iterator[JudgePair]:
    """The gold question over each suggestion that was shown and is not what it was made from."""
    bad = {folded(text) for text in item.bad_suggestions}
    shown = item.suggestions if item.suggestions_shown else item.bad_suggestions
    same = _EDITED_FROM if item.origin == "edited" else NEAR_DUPLICATE
    for text in {folded(text): text for text in shown}.values():
        marked = folded(text) in bad
        alike = near_duplicates([item.gold_question, text], NEAR_DUPLICATE if marked else same)
        if not alike and folded(text):
            kind: Kind = "bad" if marked else "rejected"
            yield JudgePair(item, item.gold_question, text, kind, flaw=_PERSON_SAYS[kind])


def _evenly(pairs: Sequence[JudgePair], most: int, rng: random.Random) -> list[JudgePair]:
    """At most `most`, in turn from each kind, and within a kind from each chunk."""
    by_kind: dict[Kind, list[JudgePair]] = defaultdict(list)
    for pair in pairs:
        by_kind[pair.kind].append(pair)
    queues = []
    for kind in sorted(by_kind):
        rng.shuffle(by_kind[kind])
        seen: Counter[str] = Counter()
        turns: list[tuple[int, int, JudgePair]] = []
        for pair in by_kind[kind]:
            turns.append((seen[pair.chunk], len(turns), pair))
            seen[pair.chunk] += 1
        queues.append([pair for *_, pair in sorted(turns, key=lambda turn: turn[:2])][::-1])
    drawn: list[JudgePair] = []
    while len(drawn) < most and any(queues):
        for queue in queues:
            if queue and len(drawn) < most:
                drawn.append(queue.pop())
    return drawn


# ---------------------------------------------------------------------- bad by construction

_MOST_IN_COMMON = 1 / 3  # of a foreign question's words may occur in the chunk
_LINKING = frozenset(
    "a an and are as at by can do does for from how i if in into is it my of on or that the their "
    "to was what when where which while who why with without would you your".split()
)
_NO_SUBJECT = _LINKING | frozenset(
    "about after again being before could every other should since still their there these they "
    "those through under until using".split()
)
_TELLS_OF_ORIGINS = re.compile(r"\b(?:1[5-9]|20)\d\d\b|\bcoin")


def _planted(item: GoldItem, items: Sequence[GoldItem], seed: int) -> Iterator[JudgePair]:
    """The gold question over bad ones that no gate refuses, so that the judge must find them out.

    English, but for the questions taken from other documents.
    """
    rng = random.Random(f"{seed} {item.chunk_id} {item.gold_question}")
    word = _common_word(item.chunk_text)
    coined = word and not _TELLS_OF_ORIGINS.search(item.chunk_text)
    made = {
        "it is about something else, and the chunk does not answer it": _foreign(item, items, rng),
        "it is so general that it would fit any chunk with that word": word
        and f"What should be considered when working with {word}?",
        "the chunk says nothing about it": coined
        and f'Who coined the term "{word}", and in which year?',
        "it breaks off in the middle": _broken_off(item.gold_question),
    }
    for flaw, worse in made.items():
        if worse and not gate_failures(worse, chunk_text=item.chunk_text):
            yield JudgePair(item, item.gold_question, worse, "planted", flaw=flaw)


def _foreign(item: GoldItem, items: Sequence[GoldItem], rng: random.Random) -> str:
    """The gold question of another document that has little in common with the chunk, or ''."""
    there = _long_words(item.chunk_text)
    others = [other for other in items if _document(other) != _document(item)]
    for other in rng.sample(others, len(others)):
        asked = _long_words(other.gold_question)
        if asked and len(asked & there) <= _MOST_IN_COMMON * len(asked):
            return other.gold_question
    return ""


def _document(item: GoldItem) -> str:
    return item.document_id or item.split_group or str(item.chunk_id)


def _long_words(text: str) -> set[str]:
    return {word for word in re.findall(r"\w{4,}", text.casefold()) if word not in _LINKING}


def _common_word(text: str) -> str:
    """The chunk's most frequent word of five letters or more, the first of several; or ''."""
    words = re.findall(r"\b[^\W\d_]{5,}\b", text.casefold())
    [(word, _)] = Counter(w for w in words if w not in _NO_SUBJECT).most_common(1) or [("", 0)]
    return word


def _broken_off(question: str) -> str:
    """The question's beginning, up to a word that cannot end one; '' where there is none."""
    words = question.split()
    for end in range(2 * len(words) // 3, 3, -1):
        if words[end - 1].casefold() in _LINKING:
            return " ".join(words[:end]) + "?"
    return ""


# ---------------------------------------------------------------------- the check


class _Answers(NamedTuple):
    """What the judge said of the asked pairs."""

    pairs: list[JudgePair]
    scores: dict[_Known, Judgement | Unjudged]
    comparisons: list[Comparison]

    def score(self, pair: JudgePair, question: str) -> float | None:
        judged = self.scores[pair.known(question)]
        return None if isinstance(judged, Unjudged) else judged.value

    def pointwise(self, pair: JudgePair) -> float | None:
        """1 where the better one scored more, ½ where both the same, else 0."""
        better, worse = self.score(pair, pair.better), self.score(pair, pair.worse)
        if better is None or worse is None:
            return None
        return 0.5 + 0.5 * (better > worse) - 0.5 * (better < worse)


_WORTH = {"win": 1.0, "tie": 0.5, "loss": 0.0, None: None}


class _Measured(NamedTuple):
    """Each pair that was judged both ways: its kind, its chunk, and how the judge did."""

    kind: Kind
    chunk: str
    pointwise: float
    pairwise: float


def check_judge(
    pairs: Sequence[JudgePair],
    judge: QuestionJudge,
    pairwise: PairwiseJudge,
    lm: dspy.LM,
    *,
    pass_score: float = PASS_SCORE,
    seed: int,
    threads: int,
    judged: Callable[[], None] = lambda: None,
    models: Sequence[str] = (),
    rehearsal: bool = False,
) -> dict[str, Any]:
    """The judge check's summary: accuracy on the pairs, agreement, order, and a verdict on it.

    Accuracy is the share of pairs in which the judge prefers the better one, ties counting half,
    with a 95 % interval over chunks. The pointwise judge gets no reference question here: it is
    the one that is judged. Pairs that a gate decides are counted and left out. A pair that could
    not be judged both ways is left out of every accuracy. `judged` is called `calls_needed` times.
    """
    metric = LLMMetric(judge, lm, pass_score=pass_score)
    asked = [pair for pair in pairs if not pair.gated]
    answers = _ask(asked, metric, pairwise, threads, judged)
    measured = [
        _Measured(pair.kind, pair.chunk, by_score, worth)
        for pair, compared in zip(asked, answers.comparisons, strict=True)
        if (by_score := answers.pointwise(pair)) is not None
        and (worth := _WORTH[compared.outcome]) is not None
    ]
    errors = [*metric.failures, *(found.error for found in answers.comparisons if found.error)]
    order = _order(answers, seed)
    trusted, why = _verdict(measured, len(asked), order, errors, seed)
    return {
        "checked": True,
        "trusted": trusted,
        "in_part": trusted and bool(_caution(_accuracy(_persons_own(measured), seed))),
        "why": why,
        "judge": "built-in" if _is_built_in(judge) else "optimised",
        "models": list(models),
        "chunks": len({pair.chunk for pair in asked}),
        "gated": sum(pair.gated == "worse" for pair in pairs),
        "gold_gated": len({pair.known(pair.better) for pair in pairs if pair.gated == "better"}),
        "by_kind": {
            kind: _accuracy([one for one in measured if one.kind == kind], seed).as_dict()
            for kind in KINDS
            if any(pair.kind == kind for pair in asked)
        },
        "person": _accuracy(_persons_own(measured), seed).as_dict(),
        **_accuracy(measured, seed).as_dict(),
        "pairs": len(asked),
        "labels": _labels(answers, metric, seed),
        "order": order.as_dict(),
        "unjudged": len(asked) - len(measured),
        "rehearsal": rehearsal,
    }


def _questions(pairs: Sequence[JudgePair]) -> dict[_Known, JudgePair]:
    """Each question to score once, with a pair of its item."""
    return {pair.known(question): pair for pair in pairs for question in (pair.better, pair.worse)}


def _ask(
    pairs: list[JudgePair],
    metric: LLMMetric,
    pairwise: PairwiseJudge,
    threads: int,
    judged: Callable[[], None],
) -> _Answers:
    def score(question: tuple[_Known, JudgePair]) -> Judgement | Unjudged:
        (*_, text), pair = question
        given = _given(pair.item)
        with on_item(item_id(given)):
            found = metric.judge(
                dspy.Example(**given, gold_question=""), dspy.Prediction(query=text)
            )
        judged()
        return found

    def compare(pair: JudgePair) -> Comparison:
        given = _given(pair.item)
        with on_item(item_id(given)):
            found = pairwise.compare(
                metric.lm, dspy.Example(**given), Written(pair.better), Written(pair.worse)
            )
        for _ in range(2):
            judged()
        return found

    questions = _questions(pairs)
    scores = in_threads(score, list(questions.items()), threads=max(1, threads))
    comparisons = in_threads(compare, pairs, threads=max(1, threads))
    return _Answers(pairs, dict(zip(questions, scores, strict=True)), comparisons)


def _given(item: GoldItem) -> dict[str, str]:
    """The inputs of the pipeline, by which an item's judge is chosen in evaluation too."""
    return {
        "chunk_text": promptable(item.chunk_text),
        "persona_description": promptable(item.persona_description),
    }


def _is_built_in(judge: QuestionJudge) -> bool:
    same = judge.judge.signature.instructions == JudgeQuestion.instructions
    return same and not judge.judge.demos


# ---------------------------------------------------------------------- its figures


class _Accuracy(NamedTuple):
    pairs: int
    chunks: int
    pointwise: Estimate
    pairwise: Estimate

    def as_dict(self) -> dict[str, Any]:
        estimates = {"pointwise": self.pointwise._asdict(), "pairwise": self.pairwise._asdict()}
        return {"pairs": self.pairs, **estimates}


class _Order(NamedTuple):
    asked: int
    consistent: Estimate
    first_chosen: Estimate

    def as_dict(self) -> dict[str, Any]:
        estimates = (self.consistent._asdict(), self.first_chosen._asdict())
        return {"asked": self.asked, "consistent": estimates[0], "first_chosen": estimates[1]}


def _accuracy(measured: Sequence[_Measured], seed: int) -> _Accuracy:
    return _Accuracy(
        len(measured),
        len({one.chunk for one in measured}),
        _mean([(one.chunk, one.pointwise) for one in measured], seed),
        _mean([(one.chunk, one.pairwise) for one in measured], seed),
    )


def _persons_own(measured: Sequence[_Measured]) -> list[_Measured]:
    return [one for one in measured if one.kind != "planted"]


def _mean(values: Sequence[tuple[str, float]], seed: int) -> Estimate:
    """Of (chunk, value) pairs."""
    return clustered_mean([value for _, value in values], [chunk for chunk, _ in values], seed)


def _order(answers: _Answers, seed: int) -> _Order:
    """Whether it matters which question is shown first.

    `first_chosen` is ½ for a judge that does not care, over the answers that are no tie.
    """
    compared = [
        (pair.chunk, found)
        for pair, found in zip(answers.pairs, answers.comparisons, strict=True)
        if found.asked and found.consistent is not None
    ]
    held = [(chunk, float(bool(found.consistent))) for chunk, found in compared]
    chosen = [
        (chunk, float(answer == "A"))
        for chunk, found in compared
        for answer in found.answers
        if answer != "tie"
    ]
    return _Order(len(compared), _mean(held, seed), _mean(chosen, seed))


def _labels(answers: _Answers, metric: LLMMetric, seed: int) -> dict[str, Any]:
    """The judge's pass or fail against good (chosen by the person) or bad (marked, or planted).

    What a person merely left is neither.
    """
    rated: dict[_Known, tuple[str, str, str]] = {}
    for pair in answers.pairs:
        sides = [(pair.better, "good")] + [(pair.worse, "bad")] * (pair.kind != "rejected")
        for question, label in sides:
            judged = answers.scores[pair.known(question)]
            if not isinstance(judged, Unjudged):
                said = "good" if metric.passes(judged) else "bad"
                rated[pair.known(question)] = (pair.chunk, label, said)
    both = agreement([(label, said) for _, label, said in rated.values()], seed=seed)

    def right(label: str) -> dict[str, float | None]:
        mine = [row for row in rated.values() if row[1] == label]
        return _mean([(chunk, float(said == label)) for chunk, _, said in mine], seed)._asdict()

    return {
        "n": both.n,
        "raw": both.raw._asdict(),
        "kappa": both.kappa._asdict(),
        "ac1": both.ac1._asdict(),
        "sensitivity": right("good"),
        "specificity": right("bad"),
    }


def _verdict(
    measured: Sequence[_Measured], asked: int, order: _Order, errors: Sequence[str], seed: int
) -> tuple[bool, str]:
    """(whether the judge is to be trusted, why, in one sentence)."""
    accuracy = _accuracy(measured, seed)
    problems = [
        _unjudged(asked - accuracy.pairs, asked, errors),
        _too_few(accuracy) or _no_better_than_chance(accuracy, f"on {accuracy.pairs} pairs"),
        _goes_by_order(order),
        _against_the_person(_accuracy(_persons_own(measured), seed)),
    ]
    if any(problems):
        return False, "; ".join(filter(None, problems))
    told = (
        f"prefers the better question in {_in_words(accuracy.pointwise)} of {accuracy.pairs} pairs "
        f"by score and in {_in_words(accuracy.pairwise)} side by side, and "
        f"{order.consistent.value:.0%} of its answers hold in both orders"
    )
    doubt = _caution(_accuracy(_persons_own(measured), seed))
    return True, f"{doubt}; it {told}" if doubt else told


def _unjudged(missing: int, asked: int, errors: Sequence[str]) -> str:
    if missing <= MAX_MISSING * asked:
        return ""
    [(reason, _)] = Counter(errors).most_common(1)
    return f"{missing} of {asked} pairs could not be judged ({reason})"


def _too_few(accuracy: _Accuracy) -> str:
    if accuracy.pairs >= FEWEST_PAIRS and accuracy.chunks >= FEWEST_CHUNKS:
        return ""
    return (
        f"{accuracy.pairs} pairs of {accuracy.chunks} chunks are too few to tell; at least "
        f"{FEWEST_PAIRS} of {FEWEST_CHUNKS} are needed"
    )


def _no_better_than_chance(accuracy: _Accuracy, where: str) -> str:
    ways = (("by score", accuracy.pointwise), ("side by side", accuracy.pairwise))
    poor = [
        f"{_in_words(estimate)} {way}"
        for way, estimate in ways
        if estimate.low is None or estimate.low <= 0.5
    ]
    return f"accuracy {' and '.join(poor)} {where} is not better than chance" if poor else ""


def _against_the_person(person: _Accuracy) -> str:
    """Planted questions must not carry a judge that would rather choose what people left."""
    told = person.pairs >= FEWEST_PAIRS and person.chunks >= FEWEST_CHUNKS
    scored = person.pointwise.value
    if not told or scored is None or scored >= 0.5:
        return ""
    return f"on the {person.pairs} pairs of a person's own its accuracy is {scored:.2f}, below 0.5"


def _goes_by_order(order: _Order) -> str:
    held, first = order.consistent.value, order.first_chosen.value
    if held is None or held >= LEAST_CONSISTENT:
        return ""
    leaning = "" if first is None else f", with the question shown first chosen in {first:.0%}"
    return (
        f"its answer holds in both orders for only {held:.0%} of {order.asked} pairs (at least "
        f"{LEAST_CONSISTENT:.0%} wanted){leaning}"
    )


def _caution(person: _Accuracy) -> str:
    """What to know of a trusted judge: whether planted questions alone carry it."""
    if not person.pairs:
        return "no pair is a person's own, so this rests on planted bad questions"
    where = f"on the {person.pairs} pairs that are a person's own, where 0.5 is guessing,"
    return _no_better_than_chance(person, where)


def _in_words(estimate: Estimate) -> str:
    if estimate.value is None or estimate.low is None or estimate.high is None:
        return "unknown"
    return f"{estimate.value:.2f} ({estimate.low:.2f} to {estimate.high:.2f})"
