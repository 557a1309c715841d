"""Reports for people, made from the files that phases wrote: self-contained, no script."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from question_optimizer import files
from question_optimizer.hostile_text import printable

_MADE_BY = "evaluate_pipeline.py"
_STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2.5rem; }
.note { border-left: .3rem solid #b60; padding: .3rem .8rem; }
table { border-collapse: collapse; } th, td { padding: .25rem .8rem; text-align: right; }
th:first-child, td:first-child { text-align: left; } tr { border-bottom: 1px solid #8884; }
.item { border-top: 1px solid #8884; padding: .8rem 0; break-inside: avoid; }
.chunk { opacity: .7; overflow-wrap: anywhere; } dt { font-weight: 600; margin-top: .4rem; }
dd { margin: 0; overflow-wrap: anywhere; } code { font-size: .85rem; overflow-wrap: anywhere; }
"""


def write_evaluation_report(
    folder: Path,
    *,
    arms: Sequence[str],
    settings: Mapping[str, Any],
    inputs: Mapping[str, str],
) -> None:
    """Write `report.html` from a run's summary.json and scores.jsonl; regressions come first.

    Chunk text and questions are escaped, and the page's own policy forbids scripts and requests.
    """
    summary = files.read_json(folder / "summary.json", made_by=_MADE_BY)
    rows = [row for _, row in files.read_jsonl(folder / "scores.jsonl", made_by=_MADE_BY)]
    rehearsal = (
        "<p class=note><strong>Rehearsal.</strong> A rule-based stand-in wrote and judged these "
        "questions; the figures say nothing about a real model.</p>"
        if summary["rehearsal"]
        else ""
    )
    body = "\n".join(
        [
            "<h1>Original and optimised, side by side</h1>",
            rehearsal,
            f"<p>{_text(summary['verdict'])}.</p>",
            f"<p>{summary['scored_in_both']} of {summary['items']} test items have a score in both "
            f"arms. The test set was opened {summary['test_set_opened']} time(s).</p>",
            _arm_table(summary["arms"], arms),
            "<h2>Every item, largest loss first</h2>",
            *_items(rows, arms),
            "<h2>Made from</h2><dl>",
            *(f"<dt>{_text(k)}</dt><dd><code>{_text(v)}</code></dd>" for k, v in inputs.items()),
            *(f"<dt>{_text(k)}</dt><dd><code>{_text(v)}</code></dd>" for k, v in settings.items()),
            "</dl>",
        ]
    )
    files.write_atomic(folder / "report.html", _page("Evaluation", body))


def figure(value: float | int | None) -> str:
    """A table's cell: three decimals for a mean, a dash where nothing was measured."""
    if value is None:
        return "–"
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def _arm_table(by_arm: Mapping[str, Mapping[str, Any]], arms: Sequence[str]) -> str:
    head = "".join(f"<th>{_text(arm)}</th>" for arm in arms)
    lines = []
    for key in by_arm[arms[0]]:
        cells = (by_arm[arm][key] for arm in arms)
        shown = "".join(
            f"<td>{f'{c:.3f}' if isinstance(c, float) else '–' if c is None else c}</td>"
            for c in cells
        )
        lines.append(f"<tr><td>{_text(key.replace('_', ' '))}</td>{shown}</tr>")
    return f"<table><tr><th></th>{head}</tr>{''.join(lines)}</table>"


def _items(rows: Sequence[Mapping[str, Any]], arms: Sequence[str]) -> list[str]:
    by_item: dict[str, dict[str, Mapping[str, Any]]] = {}
    for row in rows:
        by_item.setdefault(row["item"], {})[row["arm"]] = row

    def gain(pair: Mapping[str, Mapping[str, Any]]) -> float:
        first, last = (pair[arm]["score"] for arm in (arms[0], arms[-1]))
        return -2.0 if first is None or last is None else last - first

    return [_item(pair, arms) for pair in sorted(by_item.values(), key=gain)]


def _item(pair: Mapping[str, Mapping[str, Any]], arms: Sequence[str]) -> str:
    first = pair[arms[0]]
    parts = [
        f"<p class=chunk>{_text(first['chunk_text'])}</p>",
        f"<dl><dt>gold</dt><dd>{_text(first['gold_question'])}</dd>",
    ]
    for arm in arms:
        row = pair[arm]
        if row["score"] is None:
            parts.append(f"<dt>{_text(arm)}: failed</dt><dd>{_text(row['error'])}</dd>")
            continue
        parts.append(
            f"<dt>{_text(arm)}: {row['score']:.2f}</dt><dd>{_text(row['question'])}<br>"
            f"<small>{_text(row['feedback'])}</small></dd>"
        )
    return f"<article class=item>{''.join(parts)}</dl></article>"


def _page(title: str, body: str) -> str:
    return (
        "<!doctype html>\n<html lang=en><head><meta charset=utf-8>"
        "<meta name=viewport content='width=device-width, initial-scale=1'>"
        "<meta http-equiv=Content-Security-Policy "
        "content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        f"<title>{_text(title)}</title><style>{_STYLE}</style></head>\n<body>\n{body}\n</body></html>\n"
    )


def _text(value: object) -> str:
    return escape(printable(str(value)))
