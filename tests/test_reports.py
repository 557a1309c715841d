"""The evaluation report: one file for people, made from the files of the run, with nothing live."""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
import random
import re
import statistics
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from question_optimizer import verdict
from question_optimizer.errors import UserError
from question_optimizer.reports import figure, write_evaluation_report
from question_optimizer.reports.items import MOST_ITEMS, word_changes
from question_optimizer.reports.page import SCRIPT, STYLE
from question_optimizer.set_health import Item, set_health

HOSTILE = (
    "<script>alert(1)</script><img src=https://evil.example/x onerror=alert(2)>"
    "</p></article></title></style><svg onload=alert(4)><a href='javascript:alert(3)'>"
    '\x1b[31mred\x1b[0m\u202e\x00\r &amp; "q" --> ]]>'
)
CRITERIA = ("answerable", "self_contained", "specific", "fits_persona", "well_formed")
INPUTS = {"gold_dataset.json": "ab" * 32, "optimized_pipeline.json": "cd" * 32}
SETTINGS = {"seed": 7, "models": ["judge: large", "student: <small>"]}

# ---------------------------------------------------------------------- a run that never was


def row(item: str, arm: str, score: float | None, **more: Any) -> dict[str, Any]:
    """A line of scores.jsonl."""
    return {
        "item": item,
        "arm": arm,
        "repeat": 0,
        "chunk_id": f"chunk-{item}",
        "document": f"{item}.html",
        "persona_description": f"persona {item}",
        "model": "small",
        "judge_model": "large",
        "score": score,
        "passed": None if score is None else score >= 0.75,
        "criteria": {} if score is None else dict.fromkeys(CRITERIA, 4),
        "feedback": f"feedback {item} {arm}",
        "gates": [],
        "question": f"question {item} {arm}",
        "query_type": "reasoning",
        "query_format": "formal question",
        "gold_question": f"gold {item}",
        "chunk_text": f"chunk {item}",
        "tokens": 100,
        "latency_seconds": 0.5,
        "cost": 0.0001,
        "error": "" if score is not None else "the answer could not be read",
        "valid": True,
        "pairwise": None,
        **more,
    }


def pair(item: str, first: float | None, last: float | None, **more: Any) -> list[dict[str, Any]]:
    return [row(item, "original", first, **more), row(item, "optimised", last, **more)]


def summary_of(rows: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    """A summary.json that fits `rows`; figures that are no means are made up."""
    order = list(dict.fromkeys(row["arm"] for row in rows)) or ["original", "optimised"]
    items = list(dict.fromkeys(row["item"] for row in rows))
    means = {(arm, item): mean_score(rows, arm, item) for arm in order for item in items}
    candidates = [arm for arm in order if arm not in ("original", "existing")]
    against = [(arm, "original", True) for arm in candidates]
    if "existing" in order:
        against.append((candidates[0], "existing", False))
    return {
        "verdict": "INCONCLUSIVE",
        "sentence": "INCONCLUSIVE: optimised may be better than original, the interval holds zero.",
        "recommended": None,
        "exit_code": 3,
        "baseline": "original",
        "candidates": candidates,
        "arm_order": order,
        "items": len(items),
        "repeats": len({row["repeat"] for row in rows}),
        "mode": "replay",
        "rehearsal": False,
        "rule": "GO if the interval's lower end is above zero after Holm and no guardrail broke.",
        "arms": {arm: arm_figures(rows, arm) for arm in order},
        "comparisons": [
            comparison(rows, means, items, arm, other, decides) for arm, other, decides in against
        ],
        "judge": {"checked": False, "why": "No judge check was found."},
        "set_health": {},
        "test_set_opened": 2,
        "openings": [
            {"at": "2026-11-03T09:12:00Z", "run": "evaluate-0123456789ab"},
            {"at": "2026-11-21T18:40:00Z", "run": "evaluate-ba9876543210"},
        ],
        "usage": {"calls": 400, "input_tokens": 91234, "output_tokens": 20111, "cost": 0.31,
                  "seconds": 812.5},
        **more,
    }  # fmt: skip


def mean_score(rows: list[dict[str, Any]], arm: str, item: str) -> float | None:
    scores = [
        r["score"] for r in rows if r["arm"] == arm and r["item"] == item and r["score"] is not None
    ]
    return sum(scores) / len(scores) if scores else None


def arm_figures(rows: list[dict[str, Any]], arm: str) -> dict[str, Any]:
    mine = [row for row in rows if row["arm"] == arm]
    scores = [row["score"] for row in mine if row["score"] is not None]
    judged = [row["criteria"] for row in mine if row["criteria"]]
    histogram = [0] * 10
    for score in scores:
        histogram[min(9, int(score * 10))] += 1
    gates: dict[str, int] = {}
    for gate in (gate["gate"] for row in mine for gate in row["gates"]):
        gates[gate] = gates.get(gate, 0) + 1
    models = dict.fromkeys(row["model"] for row in mine)
    return {
        "items": len({row["item"] for row in mine}),
        "scored": len(scores),
        "failed": len(mine) - len(scores),
        "score": mean(scores),
        "passed": mean([row["passed"] for row in mine if row["passed"] is not None]),
        **{name: mean([one[name] for one in judged if name in one]) for name in CRITERIA},
        "valid_rate": mean([row["valid"] for row in mine]),
        "gate_failure_rate": mean([bool(row["gates"]) for row in mine]),
        "gates": gates,
        "tokens_per_question": mean([row["tokens"] for row in mine]),
        "seconds_per_question": mean([row["latency_seconds"] for row in mine]),
        "median_seconds_per_question": statistics.median(
            [row["latency_seconds"] for row in mine] or [0.0]
        ),
        "cost_per_question": mean([row["cost"] for row in mine]),
        "by_model": {
            model: {
                "n": sum(row["model"] == model for row in mine),
                "score": mean([r["score"] for r in mine if r["model"] == model and r["score"]]),
            }
            for model in models
        },
        "histogram": histogram,
    }


def mean(values: list[Any]) -> float | None:
    return round(sum(values) / len(values), 6) if values else None


def paired(differences: list[float]) -> dict[str, Any]:
    """The figures of a comparison: a normal interval, and a p that is made up."""
    n = len(differences)
    wins, losses = sum(d > 0 for d in differences), sum(d < 0 for d in differences)
    counts = {"n": n, "wins": wins, "ties": n - wins - losses, "losses": losses}
    middle = mean(differences) or 0.0
    if n < 2:
        return {**counts, "difference": middle, "low": None, "high": None, "p": None}
    half = 1.96 * statistics.stdev(differences) / n**0.5
    low, high = round(middle - half, 6), round(middle + half, 6)
    return {**counts, "difference": middle, "low": low, "high": high, "p": 0.0312}


def comparison(
    rows: list[dict[str, Any]],
    means: dict[tuple[str, str], float | None],
    items: list[str],
    arm: str,
    other: str,
    decides: bool,
) -> dict[str, Any]:
    pairs = [(means[other, i], means[arm, i]) for i in items]
    known = [(a, b) for a, b in pairs if a is not None and b is not None]
    found = paired([b - a for a, b in known])
    outcomes = [
        row["pairwise"]["outcome"]
        for row in rows
        if row["arm"] == arm and row["pairwise"] and row["pairwise"]["against"] == other
    ]
    documents = {row["item"]: row["document"] for row in rows}
    by_document: dict[str, list[float]] = {}
    for item, (a, b) in zip(items, pairs, strict=True):
        if a is not None and b is not None:
            by_document.setdefault(documents[item], []).append(b - a)
    return {
        "arm": arm,
        "against": other,
        "decides": decides,
        **found,
        "level": 0.95,
        "standard_deviation": 0.21 if len(known) > 1 else None,
        "p_holm": found["p"],
        "mcnemar": {"only_against": 3, "only_arm": 9, "p": 0.145996, "p_holm": 0.145996},
        "pairwise": {
            "n": len(outcomes),
            "wins": outcomes.count("win"),
            "ties": outcomes.count("tie"),
            "losses": outcomes.count("loss"),
            "p": 0.0414,
            "asked": len(outcomes),
            "consistent": 0.84,
        }
        if outcomes
        else None,
        "guardrails": [
            {"name": "readable questions", "against": 1.0, "arm": 1.0, "limit": "≥ before − 0.02",
             "broken": False, "text": "as many questions can be read as before"},
            {"name": "tokens", "against": 812.0, "arm": 1730.5, "limit": "≤ 2 × before",
             "broken": decides, "text": "a question takes 2.1 times the tokens"},
        ],
        "gap": {"seen": 0.11, "unseen": 0.062, "gap": 0.048, "low": -0.03, "high": 0.12,
                "level": 0.98, "n_seen": 48} if decides else None,
        "by_document": [
            {"document": name, "n": len(parts), "difference": mean(parts)}
            for name, parts in by_document.items()
        ],
        "by_model": [
            {"model": model, "n": len(known), "difference": found["difference"]}
            for model in dict.fromkeys(row["model"] for row in rows if row["arm"] == arm)
        ],
        "smallest_detectable": 0.0931,
        "verdict": "INCONCLUSIVE",
        "why": f"{arm} against {other}: the interval holds zero.",
        "items_needed": 131,
        "gold_items_needed": 328,
    }  # fmt: skip


CHECKED = {
    "checked": True,
    "trusted": True,
    "why": "It prefers the better question in 84 % of the pairs, and no less than 77 %.",
    "judge": "built-in",
    "models": ["large"],
    "pairs": 146,
    "chunks": 61,
    "by_kind": {
        "rejected": {
            "pairs": 90,
            "pointwise": {"value": 0.7, "low": 0.6, "high": 0.79},
            "pairwise": {"value": 0.7778, "low": 0.68, "high": 0.86},
        },
        "planted": {
            "pairs": 56,
            "pointwise": {"value": 0.91, "low": 0.82, "high": 0.97},
            "pairwise": {"value": None, "low": None, "high": None},
        },
    },
    "pointwise": {"value": 0.78, "low": 0.71, "high": 0.85},
    "pairwise": {"value": 0.8425, "low": 0.77, "high": 0.9},
    "labels": {
        "n": 88,
        "raw": {"value": 0.8, "low": 0.7, "high": 0.87},
        "kappa": {"value": 0.561, "low": 0.37, "high": 0.72},
        "ac1": {"value": 0.633, "low": 0.45, "high": 0.78},
        "sensitivity": {"value": 0.86, "low": 0.74, "high": 0.93},
        "specificity": {"value": 0.69, "low": 0.52, "high": 0.82},
    },
    "order": {
        "asked": 146,
        "consistent": {"value": 0.87, "low": 0.8, "high": 0.92},
        "first_chosen": {"value": 0.53, "low": 0.49, "high": 0.57},
    },
    "unjudged": 2,
    "rehearsal": False,
}
HEALTH = {
    "gold": {"questions": 80, "near_duplicates": 0, "query_type": {"reasoning": 0.4}, "alarms": []},
    "original": {"questions": 80, "near_duplicates": 7,
                 "query_type": {"reasoning": 0.2, "fact retrieval": 0.8},
                 "openings": [{"opening": "what is the", "share": 0.41}],
                 "alarms": ["41 % of the questions begin with “what is the”"]},
    "optimised": {"questions": 80, "near_duplicates": 1, "entropy": None,
                  "distinct": {"value": 0.7, "low": 0.6, "high": 0.8},
                  "query_type": {"reasoning": 0.5, "fact retrieval": 0.5}, "alarms": []},
}  # fmt: skip
_PARAGRAPHS = (
    "In WAL mode a writer appends changed pages to the write-ahead log and readers go on with the "
    "database as it was when their transaction began. A checkpoint copies the pages back; it "
    "cannot pass the end mark of a reader that is still active, so the log grows as long as "
    "readers overlap without a gap.",
    "A foreign key is immediate unless it was declared DEFERRABLE INITIALLY DEFERRED. The "
    "defer_foreign_keys pragma defers all of them until the outermost transaction commits.\n\n"
    "Unlike in Oracle, a single constraint cannot be switched at run time.",
    "The query planner estimates the number of rows from sqlite_stat1, which ANALYZE fills. "
    "Without it, it assumes that an equality on an index leaves ten rows.",
)
_QUESTIONS = (
    ("What is the write-ahead log?",
     "Why does the write-ahead log keep growing when readers overlap without a gap?"),
    ("How do I defer a foreign key until the transaction commits?",
     "How do I defer all foreign keys until the outermost transaction commits?"),
    ("What does ANALYZE do according to the text?",
     "How many rows does the planner assume for an indexed equality without ANALYZE?"),
)  # fmt: skip


def realistic(
    items: int = 40, arms: tuple[str, ...] = ("original", "optimised"), repeats: int = 1
) -> list[dict[str, Any]]:
    """Rows as a run leaves them: gains and losses, a gate, a failure, pairwise reasons."""
    rng = random.Random(7)
    rows = []
    for number in range(items):
        theme = number % 3
        base = rng.choice((0.4, 0.55, 0.65, 0.75, 0.8))
        for place, arm in enumerate(arms):
            for repeat in range(repeats):
                score = round(min(1.0, max(0.0, base + place * 0.06 + rng.gauss(0, 0.12))), 2)
                better = score >= base
                more: dict[str, Any] = {
                    "repeat": repeat,
                    "document": f"{('wal', 'foreignkeys', 'optoverview')[theme]}.html",
                    "chunk_text": _PARAGRAPHS[theme] * (1 + 2 * (number % 2)),
                    "persona_description": "Application developer: embeds SQLite in a desktop "
                    "program and looks after upgrades, locking and crashes in the field.",
                    "gold_question": _QUESTIONS[theme][1],
                    "question": _QUESTIONS[theme][min(place, 1)],
                    "feedback": "Specific and answerable from the passage, though a developer "
                    "would more likely name the symptom than the mechanism.",
                    "tokens": 780 + 90 * place + rng.randrange(60),
                    "latency_seconds": round(1.4 + 0.3 * place + rng.random(), 3),
                    "model": "" if arm == "existing" else ("small-8b", "mid-70b")[number % 2],
                    "pairwise": {
                        "against": "original",
                        "outcome": "win" if better else rng.choice(("tie", "loss")),
                        "consistent": better,
                        "asked": True,
                        "reasons": ["B asks for the cause and can be answered by the passage.",
                                    "A names the mechanism; B is a definition."],
                        "error": "",
                    }
                    if place and arm != "existing"
                    else None,
                }  # fmt: skip
                one = row(f"{number:016x}", arm, score, **more)
                if number == 5 and place:
                    gate = {"gate": "refers outside", "reason": "“the text above”"}
                    one |= {"score": 0.0, "passed": False, "criteria": {}, "gates": [gate]}
                if number == 9 and place == 1:
                    one |= {"score": None, "passed": None, "criteria": {}, "question": None}
                    one |= {"feedback": "", "error": "the answer could not be read"}
                rows.append(one)
    return rows


# ---------------------------------------------------------------------- reading a page

VOID = {"meta", "br", "link", "img", "input", "hr", "base"}


class Page(HTMLParser):
    """A page's tags, attributes and text; complains of tags that do not close as they opened."""

    def __init__(self, source: str):
        super().__init__()
        self.source = source
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.headings: list[tuple[str, str]] = []
        self.items: list[str] = []
        self.cells: list[list[str]] = []  # by table row
        self.sections: dict[str, str] = {}  # text by id of the outer sections
        self.text = ""
        self._open: list[str] = []
        self._section = ""
        self.feed(source)
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self._open.append(tag)
        if tag == "section" and dict(attrs).get("id"):
            self._section = dict(attrs)["id"] or ""
            self.sections[self._section] = ""
        if tag in ("h1", "h2", "h3", "h4", "h5"):
            self.headings.append((tag, ""))
        if tag == "article":
            self.items.append("")
        if tag == "tr":
            self.cells.append([])
        if tag in ("td", "th") and self.cells:
            self.cells[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag, f"</{tag}> closes something else"

    def handle_data(self, data: str) -> None:
        if "style" in self._open or "script" in self._open:
            return
        self.text += data
        if self._section:
            self.sections[self._section] += data
        if self._open and self._open[-1] in ("h1", "h2", "h3", "h4", "h5"):
            self.headings[-1] = (self.headings[-1][0], self.headings[-1][1] + data)
        if "article" in self._open:
            self.items[-1] += data
        if "td" in self._open or "th" in self._open:
            self.cells[-1][-1] += data

    def line(self, name: str) -> list[str]:
        """The cells beside the first row heading that is `name`."""
        return next(row[1:] for row in self.cells if row and row[0] == name)

    def values(self, attribute: str) -> list[str | None]:
        return [value for name, value in self.attributes if name == attribute]


Report = Callable[..., Page]


@pytest.fixture
def report(tmp_path: Path) -> Report:
    """Writes the two files, then the report, and reads it. Keywords change the summary."""

    def make(rows: list[dict[str, Any]], **more: Any) -> Page:
        summary = json.dumps(summary_of(rows, **more))
        (tmp_path / "summary.json").write_text(summary, encoding="utf-8")
        lines = "".join(json.dumps(one) + "\n" for one in rows)
        (tmp_path / "scores.jsonl").write_text(lines, encoding="utf-8")
        write_evaluation_report(tmp_path, settings=SETTINGS, inputs=INPUTS)
        return Page((tmp_path / "report.html").read_text(encoding="utf-8"))

    return make


# ---------------------------------------------------------------------- the page as a whole


def test_every_section_is_there_in_order_and_in_the_contents(report: Report) -> None:
    page = report(realistic(6), judge=CHECKED, set_health=HEALTH)
    assert list(page.sections) == [
        "verdict", "intervals", "arms", "comparisons", "groups", "distributions", "judge",
        "health", "programs", "items", "sources",
    ]  # fmt: skip
    links = [value for value in page.values("href") if value]
    assert [f"#{place}" for place in page.sections] == [x for x in links if x[1:] in page.sections][
        : len(page.sections)
    ]
    ids = page.values("id")
    assert len(ids) == len(set(ids))
    assert {link.removeprefix("#") for link in links} <= set(ids)
    assert links[0] == "#main"  # the skip link comes before all others


def test_headings_go_down_one_level_at_a_time(report: Report) -> None:
    levels = [int(name[1]) for name, _ in report(realistic(6)).headings]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))


def test_the_page_is_self_contained_and_its_policy_names_its_style_and_script(
    report: Report,
) -> None:
    page = report(realistic(6), judge=CHECKED, set_health=HEALTH)
    assert not re.search(r"https?:|@import|url\(", page.source)
    assert not {"link", "img", "iframe", "object", "base", "form", "embed"} & set(page.tags)
    assert page.tags.count("script") == 1
    assert not [name for name, _ in page.attributes if name.startswith("on") or name == "src"]
    assert not [name for name, _ in page.attributes if name == "style"]  # the policy forbids them
    assert all(href and href.startswith("#") for href in page.values("href"))
    digests = {
        name: base64.b64encode(hashlib.sha256(part.encode()).digest()).decode()
        for name, part in (("style", STYLE), ("script", SCRIPT))
    }
    policy = (
        f"default-src 'none'; style-src 'sha256-{digests['style']}'; "
        f"script-src 'sha256-{digests['script']}'; base-uri 'none'; form-action 'none'"
    )
    assert ("content", policy) in page.attributes
    assert page.source.index("Content-Security-Policy") < page.source.index("<style>")
    for tag, part in (("style", STYLE), ("script", SCRIPT)):
        assert f"<{tag}>{part}</{tag}>" in page.source
    assert ("charset", "utf-8") in page.attributes
    assert ("lang", "en") in page.attributes


def test_tables_tell_what_they_are_and_what_heads_a_row_or_column(report: Report) -> None:
    page = report(realistic(6), judge=CHECKED, set_health=HEALTH)
    tables = page.tags.count("table")
    assert tables >= 9
    assert page.tags.count("caption") == tables
    assert page.values("scope").count(None) == 0
    assert page.tags.count("th") == len(page.values("scope"))
    assert set(page.values("scope")) == {"row", "col", "rowgroup"}


def test_plots_are_images_with_a_title_and_their_figures_in_words(report: Report) -> None:
    page = report(pair("a", 0.5, 0.75) + pair("b", 0.25, 0.35))
    assert page.values("role").count("img") == 3  # the intervals, and a histogram an arm
    named = [value for value in page.values("aria-labelledby") if value]
    assert {part for value in named for part in value.split()} <= set(page.values("id"))
    assert "optimised against original: +0.175 (95 %: +0.028 to +0.322)" in page.text
    assert "0.2 to 0.3: 1, 0.5 to 0.6: 1" in page.text


def test_the_same_files_give_the_same_bytes(report: Report, tmp_path: Path) -> None:
    rows = realistic(9, ("original", "optimised", "existing"), 2)
    first = report(rows, judge=CHECKED, set_health=HEALTH).source
    (tmp_path / "report.html").unlink()
    assert report(rows, judge=CHECKED, set_health=HEALTH).source == first


def test_a_run_without_its_files_names_the_phase(tmp_path: Path) -> None:
    with pytest.raises(UserError) as refusal:
        write_evaluation_report(tmp_path, settings={}, inputs={})
    assert str(refusal.value) == (
        f"{tmp_path / 'summary.json'}: does not exist; run evaluate_pipeline.py first"
    )
    assert not (tmp_path / "report.html").exists()


@pytest.mark.parametrize(
    ("value", "said"), [(None, "–"), (0.5, "0.500"), (3, "3"), (-0.25, "-0.250")]
)
def test_a_figure_of_the_terminal_has_three_decimals(value: float | None, said: str) -> None:
    assert figure(value) == said


def luminance(colour: str) -> float:
    """Relative luminance as WCAG 2.2 defines it."""
    whole = colour.lstrip("#")
    whole = "".join(2 * digit for digit in whole) if len(whole) == 3 else whole
    parts = [int(whole[i : i + 2], 16) / 255 for i in (0, 2, 4)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_text_has_the_contrast_that_wcag_aa_asks_for(scheme: int) -> None:
    blocks = re.findall(r":root \{(.*?)\}", STYLE, re.DOTALL)
    colours = dict(re.findall(r"--([a-z-]+): (#[0-9a-f]+)", blocks[scheme]))
    assert len(colours) == 14
    pairs = [
        *((text, back) for text in ("text", "muted", "link") for back in ("back", "soft")),
        *((text, back) for text in ("good", "bad", "warn") for back in ("back", "soft")),
        *((kind, f"{kind}-back") for kind in ("good", "bad", "warn")),
        *(("text", f"{kind}-back") for kind in ("good", "bad", "warn")),
        *(("link", f"{kind}-back") for kind in ("good", "bad", "warn")),
        ("text", "shade"),
    ]
    for text, back in pairs:
        light, dark = sorted((luminance(colours[text]), luminance(colours[back])), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 4.5, (text, back)


# ---------------------------------------------------------------------- the verdict


@pytest.mark.parametrize("verdict", ["GO", "NO-GO", "INCONCLUSIVE"])
def test_the_verdict_is_a_word_with_a_shape_of_its_own(report: Report, verdict: str) -> None:
    page = report(realistic(6), verdict=verdict, sentence="Because & so.", recommended=None)
    assert ("h2", verdict) in page.headings
    assert "Because & so." in page.sections["verdict"]
    assert f'class="verdict {verdict.lower()}"' in page.source
    assert "GO if the interval's lower end is above zero" in page.sections["verdict"]
    assert f"{verdict}: question prompts evaluated" in page.text
    shapes = re.findall(r'<svg viewBox="0 0 32 32" aria-hidden="true">(.*?)</svg>', page.source)
    assert len(shapes) == 1


def test_a_verdict_that_nobody_knows_is_shown_and_looks_undecided(report: Report) -> None:
    page = report(realistic(6), verdict="<MAYBE>")
    assert ("h2", "<MAYBE>") in page.headings
    assert 'class="verdict inconclusive"' in page.source


def test_mode_repeats_and_recommendation_are_told(report: Report) -> None:
    said = report(realistic(6, repeats=3), recommended="optimised").sections["verdict"]
    assert "Recommendedoptimised" in said
    assert "Test items6" in said
    assert "Repeats3" in said
    assert "replay: recorded answers are used again" in said


def test_a_rehearsal_says_so_and_a_real_run_does_not(report: Report) -> None:
    said = "Rehearsal. A rule-based stand-in wrote and judged these questions"
    assert said in report(pair("a", 0.5, 0.75), rehearsal=True).sections["verdict"]
    assert "ehearsal" not in report(pair("a", 0.5, 0.75)).text


@pytest.mark.parametrize(
    ("judge", "warning", "section"),
    [
        (None, "Unchecked judge. Nobody has compared", "Not checked. Nobody has compared"),
        ({"checked": False, "why": "No check."}, "Unchecked judge. No check.", "Not checked. No"),
        ({**CHECKED, "trusted": False, "why": "Too low."}, "The judge failed its check. Too low.",
         "Not trusted. Too low."),
    ],
)  # fmt: skip
def test_a_judge_that_may_not_be_trusted_is_told_beside_the_verdict(
    report: Report, judge: Any, warning: str, section: str
) -> None:
    page = report(pair("a", 0.5, 0.75), judge=judge)
    assert warning in page.sections["verdict"]
    assert section in page.sections["judge"]


@pytest.mark.parametrize(("times", "warned"), [(1, False), (3, False), (4, True)])
def test_openings_are_counted_and_dated_and_too_many_are_warned_of(
    report: Report, times: int, warned: bool
) -> None:
    openings = [{"at": f"2026-11-0{n + 1}T10:00:00Z", "run": f"run-{n}"} for n in range(times)]
    page = report(pair("a", 0.5, 0.75), test_set_opened=times, openings=openings)
    said = page.sections["verdict"]
    assert f"The test set was opened {times} time{'' if times == 1 else 's'}" in said
    assert all(f"{one['at']} {one['run']}" in said for one in openings)
    assert ("New gold items would tell for sure" in said) == warned


# ---------------------------------------------------------------------- the figures


def test_arms_stand_beside_one_another_with_their_differences(report: Report) -> None:
    page = report(pair("a", 0.5, 0.75) + pair("b", 0.75, 0.9))
    assert page.line("mean score, 0 to 1") == ["0.625", "0.825", "+0.200"]
    assert page.line("passed") == ["50.0 %", "100.0 %", "+50.0 points"]
    assert page.line("self contained, 1 to 5") == ["4.00", "4.00", "+0.00"]
    assert page.line("without a score") == ["0", "0", ""]
    assert page.line("readable questions") == ["100.0 %", "100.0 %", "+0.0 points"]
    assert page.line("tokens") == ["100.0", "100.0", "+0.0"]
    assert page.line("seconds") == ["0.50", "0.50", "+0.00"]
    assert page.line("cost") == ["0.0001", "0.0001", ""]
    assert page.line("small") == ["0.625 (n 2)", "0.825 (n 2)", "+0.200 (n 2)"]


def test_comparisons_are_given_as_in_the_summary(report: Report) -> None:
    rows = realistic(12, ("original", "optimised", "second", "existing"))
    summary = summary_of(rows)
    page = report(rows)
    first = summary["comparisons"][0]
    assert [one["arm"] for one in summary["comparisons"]] == ["optimised", "second", "optimised"]
    assert page.line("verdict") == ["INCONCLUSIVE", "INCONCLUSIVE", "does not decide"]
    assert page.line("difference")[0] == f"{first['difference']:+.3f}".replace("-", "−")
    assert page.line("interval")[0] == (
        f"{first['low']:+.3f} to {first['high']:+.3f} (95 %)".replace("-", "−")
    )
    assert page.line("p, sign-flip test")[0] == f"{first['p']:.4f}"
    assert page.line("p after Holm's correction")[0] == f"{first['p_holm']:.4f}"
    assert page.line("better / equal / worse")[0] == (
        f"{first['wins']} / {first['ties']} / {first['losses']}"
    )
    assert page.line("newly passed") == ["9", "9", "9"]
    assert page.line("no longer passed") == ["3", "3", "3"]
    assert page.line("p, McNemar's exact test")[0] == "0.1460"
    pairwise = first["pairwise"]
    assert page.line("preferred / on a par / not") == [
        f"{pairwise['wins']} / {pairwise['ties']} / {pairwise['losses']}",
        page.line("preferred / on a par / not")[1],
        "– / – / –",
    ]
    assert page.line("p, exact sign test")[0] == "0.0414"
    assert page.line("same answer in both orders") == ["84.0 %", "84.0 %", "–"]
    assert page.line("gap") == ["+0.048 (−0.030 to +0.120, 98 %)"] * 2 + ["–"]
    assert page.line("smallest detectable difference")[0] == "0.093"
    assert page.line("test items needed")[0] == "131"
    assert page.line("gold items needed for them")[0] == "328"
    assert (
        "INCONCLUSIVE: second against original: the interval holds zero."
        in page.sections["comparisons"]
    )


def test_an_interval_tells_its_level(report: Report) -> None:
    rows = pair("a", 0.5, 0.75) + pair("b", 0.5, 0.75)
    one = summary_of(rows)["comparisons"][0] | {"level": 0.975}
    page = report(rows, comparisons=[one])
    assert page.line("interval") == ["+0.250 to +0.250 (97.5 %)"]
    assert "(97.5 %: +0.250 to +0.250)" in page.sections["intervals"]


def test_broken_guardrails_come_first(report: Report) -> None:
    page = report(pair("a", 0.5, 0.75))
    rails = [
        row for row in page.cells if len(row) == 6 and row[1] in ("✗\u00a0broken", "✓\u00a0kept")
    ]
    assert [rail[:4] for rail in rails] == [
        ["tokens", "✗\u00a0broken", "812", "1730"],
        ["readable questions", "✓\u00a0kept", "1", "1"],
    ]
    assert "a question takes 2.1 times the tokens" in page.text


def test_documents_are_sorted_by_loss_and_many_are_folded(report: Report) -> None:
    rows = pair("gains", 0.25, 1.0) + pair("loses", 1.0, 0.0) + pair("stays", 0.5, 0.5)
    page = report(rows)
    named = [row[0] for row in page.cells if row and row[0].endswith(".html")]
    assert named == ["loses.html", "stays.html", "gains.html"]
    assert page.line("loses.html") == ["−1.000 (n 1)"]
    many = report([one for n in range(20) for one in pair(f"i{n}", 0.5, 0.6)])
    assert "<summary>20 documents</summary>" in many.source


def test_the_judges_check_is_given_with_its_intervals(report: Report) -> None:
    page = report(pair("a", 0.5, 0.75), judge=CHECKED)
    assert "Trusted. It prefers the better question in 84 %" in page.sections["judge"]
    assert "146 pairs from 61 chunks; 2 without an answer" in page.sections["judge"]
    assert page.line("a person's pick over what was passed over") == [
        "90", "70.0 % (60.0 % to 79.0 %)", "77.8 % (68.0 % to 86.0 %)"
    ]  # fmt: skip
    assert page.line("a question over its copy with a planted defect")[2] == "–"
    assert page.line("all") == ["146", "78.0 % (71.0 % to 85.0 %)", "84.2 % (77.0 % to 90.0 %)"]
    assert page.line("Cohen's kappa") == ["0.561 (0.370 to 0.720)"]
    assert page.line("Gwet's AC1") == ["0.633 (0.450 to 0.780)"]
    assert page.line("sensitivity: good ones passed") == ["86.0 % (74.0 % to 93.0 %)"]
    assert page.line("specificity: bad ones failed") == ["69.0 % (52.0 % to 82.0 %)"]
    assert page.line("same choice in both orders") == ["87.0 % (80.0 % to 92.0 %)"]
    assert page.line("first position chosen") == ["53.0 % (49.0 % to 57.0 %)"]


def test_health_shows_alarms_and_whatever_figures_there_are(report: Report) -> None:
    health = {**HEALTH, "second": {"new": {"deep": {"deeper": 0.25}}, "flag": True, "alarms": [
        {"kind": "copying", "share": 0.5}]}, "broken": None}  # fmt: skip
    page = report(pair("a", 0.5, 0.75), set_health=health)
    said = page.sections["health"]
    assert "1 alarm: original" in said
    assert "41 % of the questions begin with “what is the”" in said
    assert "kind: copying; share: 0.500" in said
    assert page.line("near-duplicates") == ["0", "7", "1", "–", "–"]
    assert page.line("reasoning") == ["0.400", "0.200", "0.500", "–", "–"]
    assert page.line("deep · deeper") == ["–", "–", "–", "0.250", "–"]
    assert page.line("flag") == ["–", "–", "–", "yes", "–"]
    assert page.line("distinct") == ["–", "–", "0.700 (0.600 to 0.800)", "–", "–"]
    assert "commonest beginning: what is the; share: 0.410" in said


def test_a_long_mix_is_cut_and_says_so(report: Report) -> None:
    health = {"gold": {"mix": {f"kind {n}": n for n in range(40)}}}
    said = report(pair("a", 0.5, 0.75), set_health=health).sections["health"]
    assert "kind 11" in said
    assert "kind 12" not in said
    assert "and 28 more lines" in said


def test_sources_are_named_by_digest(report: Report) -> None:
    page = report(pair("a", 0.5, 0.75))
    assert page.line("gold_dataset.json") == ["ab" * 32]
    assert page.line("seed") == ["7"]
    assert page.line("models") == ['["judge: large", "student: <small>"]']
    assert page.line("input tokens") == ["91,234"]
    assert page.line("calls") == ["400"]


# ---------------------------------------------------------------------- the items


def test_regressions_come_first_and_every_bucket_has_its_count(report: Report) -> None:
    rows = pair("same", 0.5, 0.5) + pair("small gain", 0.5, 0.55) + pair("gain", 0.25, 1.0)
    rows += pair("small loss", 0.75, 0.5) + pair("big loss", 1.0, 0.0) + pair("none", 0.5, None)
    page = report(rows)
    order = [re.search(r"gold ([a-z ]+?)original", item)[1] for item in page.items]
    assert order == ["big loss", "small loss", "gain", "small gain", "same", "none"]
    assert [words for name, words in page.headings if name == "h3"] == [
        "Regressed: 2 items, largest loss first",
        "Improved: 2 items, largest gain first",
        "Unchanged: 1 item, the same score in both",
        "Could not be scored: 1 item, one of the two has no score, or another model had a hand "
        "in it",
    ]
    assert page.source.count('class="item regressed"') == 2
    assert [value for value in page.values("id") if value and value.startswith("item-")] == [
        f"item-{n}" for n in range(1, 7)
    ]
    assert page.values("tabindex").count("-1") == 1 + 6  # main and the items


def test_the_buckets_count_as_the_comparison_does(report: Report) -> None:
    rows = realistic(30, repeats=3)
    first = summary_of(rows)["comparisons"][0]
    page = report(rows)
    counts = re.findall(r"(?:Regressed|Improved|Unchanged): (\d+) items?", page.sections["items"])
    assert counts == [str(first[key]) for key in ("losses", "wins", "ties")]


def test_an_item_shows_all_that_was_written_and_said_of_it(report: Report) -> None:
    pairwise = {"against": "original", "outcome": "win", "consistent": True, "asked": True,
                "reasons": ["It is nearer.", "The other is vague."], "error": ""}  # fmt: skip
    rows = [row("a", "original", 0.5), row("a", "optimised", 0.75, pairwise=pairwise)]
    (item,) = report(rows).items
    for shown in (
        "+0.2500.50 → 0.75a.html", "chunk a", "persona a", "gold a", "question a original",
        "question a optimised", "original0.50✗ not passed", "optimised0.75✓ passed",
        "feedback a optimised", "reasoning · formal question · small", "fits persona 4",
        "Side by side: ✓ preferred to original", "It is nearer.", "The other is vague.",
    ):  # fmt: skip
        assert shown in item, shown


@pytest.mark.parametrize(
    ("pairwise", "said"),
    [
        ({"outcome": "tie", "consistent": False}, "= on a par with original (the two orders"),
        ({"outcome": "loss"}, "✗ not preferred to original"),
        ({"outcome": "tie", "asked": False}, "= on a par with original (decided without"),
        ({"outcome": None, "error": "timed out"}, "not compared with original (timed out)"),
    ],
)
def test_the_outcome_side_by_side_is_told_in_words(
    report: Report, pairwise: dict[str, Any], said: str
) -> None:
    whole = {"against": "original", "consistent": None, "asked": True, "reasons": ["", ""],
             "error": "", **pairwise}  # fmt: skip
    rows = [row("a", "original", 0.5), row("a", "optimised", 0.75, pairwise=whole)]
    assert f"Side by side: {said}" in report(rows).items[0]


def test_a_gate_and_a_failure_are_shown_with_their_reasons_and_not_as_none(report: Report) -> None:
    gate = {"gate": "refers outside", "reason": "“the text above”"}
    rows = [
        row("a", "original", 0.0, criteria={}, gates=[gate], feedback=""),
        row("a", "optimised", None, question=None, query_type=None, feedback="", valid=False),
    ]
    page = report(rows)
    (item,) = page.items
    assert "✗ Gate refers outside: “the text above”" in item
    assert "optimisedno score" in item
    assert "No question." in item
    assert "No score: the answer could not be read" in item
    assert "None" not in page.text
    assert page.line("by gate") == ["refers outside 1", "none", ""]


def test_repeats_of_an_item_are_one_entry(report: Report) -> None:
    rows = [row("a", "original", 0.5, repeat=n) for n in range(3)]
    for repeat, score in enumerate((0.8, 0.75, 0.8)):
        question = "Which pages?" if repeat == 1 else "question"
        rows.append(row("a", "optimised", score, repeat=repeat, question=question,
                        feedback=f"said {repeat}"))  # fmt: skip
    page = report(rows)
    (item,) = page.items
    assert "optimised0.78mean of 3: 0.80 0.75 0.80✓ passed" in item
    assert "original0.50mean of 3: 0.50 0.50 0.50" in item
    assert page.source.count('class="question"') == 3  # one of original, two of optimised
    assert "runs 1, 3" in item
    assert "1 other question in the repeats" in item
    assert "1 other remark in the repeats" in item
    assert all(item.count(f"said {n}") == 1 for n in range(3))


def test_only_repeats_scored_in_both_are_compared(report: Report) -> None:
    rows = [row("a", arm, 0.5, repeat=0) for arm in ("original", "optimised")]
    rows += [row("a", "original", 0.7, repeat=1), row("a", "optimised", None, repeat=1)]
    (item,) = report(rows).items
    assert "original0.60mean of 2: 0.50 0.70" in item
    assert "optimised0.50mean of 1: 0.50 –" in item
    assert "+0.0000.50 → 0.50" in item
    rows[0] |= {"score": None}
    assert "not scored in both" in report(rows).items[0]


def test_a_long_chunk_is_folded_and_a_short_one_is_not(report: Report) -> None:
    short, long = report(pair("a", 0.5, 0.6)), report(pair("a", 0.5, 0.6, chunk_text="word " * 90))
    assert "Chunk, " not in short.items[0]
    assert "Chunk, 450 characters: word word" in long.items[0]
    assert "word " * 90 in long.items[0]


@pytest.mark.parametrize(
    ("old", "new", "changes"),
    [
        ("What is a lock?", "What is a lock?", [("=", "What is a lock?")]),
        ("What is a lock?", "What is a shared lock?",
         [("=", "What is a"), ("+", "shared"), ("=", "lock?")]),
        ("Which lock is held here?", "Which lock was ever held here?",
         [("=", "Which lock"), ("-", "is"), ("+", "was ever"), ("=", "held here?")]),
        ("a x b y c", "d x e y f", [("-", "a x b y c"), ("+", "d x e y f")]),
        ("", "all new", [("+", "all new")]),
        ("w " * 401, "short", None),
    ],
)  # fmt: skip
def test_questions_are_compared_in_phrases(old: str, new: str, changes: Any) -> None:
    assert word_changes(old, new) == changes


def test_a_changed_question_is_shown_as_a_correction(report: Report) -> None:
    rows = [
        row("a", "original", 0.5, question="How do I defer a foreign key?"),
        row("a", "optimised", 0.6, question="How do I defer all foreign keys at once?"),
    ]
    source = report(rows).source
    assert "How do I defer <del>a foreign key?</del> <ins>all foreign keys at once?</ins>" in source
    rows[1]["question"] = rows[0]["question"]
    assert "The same question as original." in report(rows).items[0]
    rows[1]["question"] = "deferred constraints"
    assert "Nothing of original&#x27;s wording is left." in report(rows).source


def test_a_large_run_stays_a_few_megabytes_and_names_the_rows(report: Report) -> None:
    rows = [
        one for n in range(520) for one in pair(f"i{n}", 0.5, 0.25, chunk_text="some words " * 150)
    ]
    page = report(rows)
    assert len(page.items) == MOST_ITEMS
    assert "20 items more would make this page too large; all are in scores.jsonl." in page.text
    assert len(page.source) < 5_000_000


def test_huge_texts_are_cut_and_said_to_be(report: Report) -> None:
    rows = [one for n in range(30) for one in pair(f"i{n}", 0.5, 0.25, chunk_text="x" * 300_000)]
    page = report(rows)
    assert "[…] (292,000 characters more)" in page.items[0]
    assert len(page.source) < 1_000_000
    long = [one for n in range(30) for one in pair(f"i{n}", 0.5, 0.25, question="&" * 300_000)]
    assert len(report(long).source) < 5_000_000


# ---------------------------------------------------------------------- the unusual


def test_a_run_without_items_is_still_a_report(report: Report) -> None:
    page = report([], comparisons=[], judge=None)
    assert page.items == []
    assert "No two arms were compared." in page.text
    assert "Nothing was scored." in page.text
    assert "Regressed: 0 items" in page.text
    assert "None" not in page.text


def test_one_item_without_an_interval(report: Report) -> None:
    page = report(pair("a", 0.5, 0.75))
    assert page.line("interval") == ["–"]
    assert page.line("p, sign-flip test") == ["–"]
    assert "+0.250, too few items for an interval" in page.text
    assert "None" not in page.text


def test_nothing_scored_at_all(report: Report) -> None:
    page = report(pair("a", None, None))
    assert "no item has a score in both" in page.text
    assert page.line("without a score") == ["1", "1", ""]
    assert "Could not be scored: 1 item" in page.text
    assert "None" not in page.text


def test_figures_that_are_missing_are_dashes(report: Report) -> None:
    summary = summary_of(pair("a", 0.5, 0.75))
    bare = {"arm": "optimised", "against": "original"}
    page = report(
        pair("a", 0.5, 0.75),
        arms={arm: {} for arm in summary["arms"]},
        comparisons=[bare],
        set_health=None,
        usage=None,
        rule=None,
        openings=None,
        test_set_opened=None,
    )
    assert "No rule was recorded." in page.text
    assert "Not looked at." in page.text
    assert "None" not in page.text


def test_many_arms_with_an_existing_one_that_is_no_candidate(report: Report) -> None:
    names = ("original", "optimised", "second", "third", "fourth", "existing")
    page = report(realistic(8, names))
    assert len(page.line("mean score, 0 to 1")) == len(names) + 4
    assert "existing − original" not in page.text
    assert "optimised − existing" in page.text
    assert page.items[0].count("Side by side") == 4


def test_what_the_verdict_and_the_set_health_write_can_be_read(report: Report) -> None:
    """The real ones, not the stand-ins above: the names they use are the names looked for."""
    arms = ("original", "optimised", "second", "existing")
    rows = realistic(40, arms, 2)
    found = verdict.summarise(rows, baseline="original", candidates=["optimised", "second"],
                              gold_items=100, test_items=40, seed=7, repeats=2,
                              seen={"optimised": [(0.4, 0.6), (0.5, 0.6)] * 10})  # fmt: skip
    gold = [Item(r["gold_question"], r["chunk_text"], "reasoning") for r in rows[::8]]
    health = {"gold": set_health(gold, gold=None)}
    for arm in arms:
        mine = [Item(r["question"], r["chunk_text"], r["query_type"], r["query_format"])
                for r in rows if r["arm"] == arm and r["repeat"] == 0]  # fmt: skip
        health[arm] = set_health(mine, gold=gold)
    page = report(rows, **found, set_health=health)
    first, second, _ = found["comparisons"]
    assert page.line("verdict")[:2] == [first["verdict"], second["verdict"]]
    assert page.line("interval")[0].endswith(f"to {first['high']:+.3f} (97.5 %)".replace("-", "−"))
    assert page.line("better / equal / worse")[0] == (
        f"{first['wins']} / {first['ties']} / {first['losses']}"
    )
    counts = re.findall(r"(?:Regressed|Improved|Unchanged): (\d+) items?", page.sections["items"])
    assert counts == [str(first[key]) for key in ("losses", "wins", "ties")]
    assert page.line("mean score, 0 to 1")[0] == f"{found['arms']['original']['score']:.3f}"
    assert "train-test gap" in page.sections["comparisons"]
    assert found["rule"] in page.sections["verdict"]
    assert (
        found["sentence"]
        == f"{found['verdict']}: "
        + page.sections["verdict"].split(found["verdict"], 1)[1].split("Recommended")[0]
    )
    repeated = health["original"]["near_duplicates"]["share"]
    assert page.line("questions in a pair")[1] == f"{100 * repeated:.1f} %"
    assert page.line("shares · reasoning")[0] == "100.0 %"
    alarms = [one["text"] for one in health["original"]["alarms"]]
    assert alarms
    assert all(alarm in page.sections["health"] for alarm in alarms)
    assert "code:" not in page.sections["health"]
    assert "None" not in page.text


# ---------------------------------------------------------------------- hostile data


def hostile_run() -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Rows and changes of the summary with hostile text wherever there is text."""
    texts = ("document", "persona_description", "model", "judge_model", "feedback", "question",
             "query_type", "query_format", "gold_question", "chunk_text", "chunk_id")  # fmt: skip
    said = dict.fromkeys(texts, HOSTILE)
    gate = {"gate": HOSTILE, "reason": HOSTILE}
    pairwise = {"against": HOSTILE, "outcome": "win", "consistent": False, "asked": True,
                "reasons": [HOSTILE, HOSTILE], "error": HOSTILE}  # fmt: skip
    rows = [
        row("a", "original", 0.5, **said, gates=[gate]),
        row("a", HOSTILE, 0.4, **said, pairwise=pairwise, criteria={HOSTILE: 3}),
        row("b", "original", None, **said, error=HOSTILE),
        row("b", HOSTILE, 0.4, **{**said, "chunk_text": HOSTILE * 5, "question": f"a {HOSTILE}"}),
    ]
    one = summary_of(rows)["comparisons"][0]
    rail = {"name": HOSTILE, "against": HOSTILE, "arm": 1, "limit": HOSTILE, "broken": True,
            "text": HOSTILE}  # fmt: skip
    changes = {
        "sentence": HOSTILE,
        "verdict": HOSTILE,
        "rule": HOSTILE,
        "mode": HOSTILE,
        "recommended": HOSTILE,
        "comparisons": [one | {"why": HOSTILE, "guardrails": [rail], "verdict": HOSTILE}],
        "openings": [{"at": HOSTILE, "run": HOSTILE}],
        "judge": {**CHECKED, "why": HOSTILE, "models": [HOSTILE], "judge": HOSTILE,
                  "by_kind": {HOSTILE: {"pairs": 1}}},
        "set_health": {HOSTILE: {HOSTILE: HOSTILE, "x": {HOSTILE: [HOSTILE, {HOSTILE: HOSTILE}]},
                                 "alarms": [HOSTILE]}},
        "usage": {HOSTILE: HOSTILE},
    }  # fmt: skip
    return rows, changes


def test_hostile_texts_are_shown_as_text_wherever_they_stand(report: Report) -> None:
    rows, changes = hostile_run()
    page = report(rows, **changes)
    harmless = report(realistic(6, repeats=2), judge=CHECKED, set_health=HEALTH)
    assert page.tags.count("article") == 2
    assert page.tags.count("script") == 1
    assert set(page.tags) <= set(harmless.tags)  # not a tag that the report does not write itself
    assert {name for name, _ in page.attributes} <= {name for name, _ in harmless.attributes}
    assert not any("alert" in (value or "") for _, value in page.attributes)
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", page.source)
    assert page.source.count("&lt;script&gt;alert(1)&lt;/script&gt;") > 40
    assert "<script>alert" not in page.source
    assert 'red &amp; "q"' in page.text


def test_hostile_text_in_settings_and_inputs_is_text(tmp_path: Path, report: Report) -> None:
    report(pair("a", 0.5, 0.75))
    write_evaluation_report(tmp_path, settings={HOSTILE: [HOSTILE]}, inputs={HOSTILE: HOSTILE})
    page = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert page.tags.count("script") == 1
    assert "<script>alert" not in page.source


def test_lone_surrogates_do_not_stop_the_report(report: Report) -> None:
    page = report(pair("a", 0.5, 0.75, chunk_text="half \ud83d pair"))
    assert "half \ufffd pair" in page.items[0]
