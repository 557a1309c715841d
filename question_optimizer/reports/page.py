"""The page around a report: style, keys, and the policy that lets nothing else run or load."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence

from question_optimizer.reports.markup import Html, join, tag

# The pairs of colours keep WCAG AA's 4.5 : 1 for text; the tests compute it.
STYLE = """
:root { color-scheme: light dark;
  --back: #fff; --text: #1b1f24; --muted: #57606a; --line: #d0d7de; --soft: #f4f6f8;
  --link: #0550ae; --good: #0f5b2a; --good-back: #e3f5e7; --bad: #9b1022; --bad-back: #fdebec;
  --warn: #6f4700; --warn-back: #fff3d4; --bar: #3567a8; --shade: #8c98a4; }
@media screen and (prefers-color-scheme: dark) { :root {
  --back: #10151b; --text: #e6edf3; --muted: #a3adb8; --line: #3a434e; --soft: #1a2129;
  --link: #8cc2ff; --good: #86e29b; --good-back: #12301c; --bad: #ffb0ab; --bad-back: #3c1519;
  --warn: #f3cb78; --warn-back: #35270b; --bar: #6fa4e6; --shade: #56616d; } }
* { box-sizing: border-box; }
html { scroll-padding-top: 1rem; }
@media (prefers-reduced-motion: no-preference) { html { scroll-behavior: smooth; } }
body { margin: 0 auto; max-width: 82rem; padding: 0 1.5rem 4rem; background: var(--back);
  color: var(--text); font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.5rem; line-height: 1.25; margin: 1.5rem 0 1rem; }
h2 { font-size: 1.25rem; margin: 0 0 .75rem; } h3 { font-size: 1.05rem; margin: 2rem 0 .5rem; }
h4, h5 { font-size: 1rem; margin: 0; } p { margin: .5rem 0; max-width: 46rem; }
a { color: var(--link); } small, .muted { color: var(--muted); } 
small { font-size: .875rem; font-weight: 400; }
code { font: .875em/1.4 ui-monospace, monospace; overflow-wrap: anywhere; }
section { margin-top: 3rem; } section section, article section { margin-top: 0; }
:focus-visible { outline: 3px solid var(--link); outline-offset: 2px; }
.said { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%);
  white-space: nowrap; }
.skip { position: absolute; left: -100rem; padding: .5rem 1rem; background: var(--back); }
.skip:focus { left: 1rem; top: .5rem; z-index: 2; }

nav { position: sticky; top: 0; z-index: 1; background: var(--back); }
nav ol { list-style: none; margin: 0; padding: 0; } nav a { text-decoration: none; }
nav a:hover { text-decoration: underline; }
nav details { margin-top: 1.25rem; font-size: .875rem; }
nav dl { display: grid; grid-template-columns: 2rem 1fr; } nav dt { font-weight: 600; }
@media (min-width: 64rem) {
  body { display: grid; grid-template-columns: 9rem minmax(0, 1fr); column-gap: 2rem; }
  nav { align-self: start; padding-top: 1.75rem; max-height: 100vh; overflow-y: auto; }
  nav li { margin-bottom: .35rem; } }
@media (max-width: 63.99rem) {
  html { scroll-padding-top: 3.5rem; } body { padding: 0 1rem 3rem; }
  nav { margin: 0 -1rem; padding: .5rem 1rem; border-bottom: 1px solid var(--line);
    max-width: 100vw; overflow-x: auto; }
  nav ol { display: flex; gap: 1.1rem; white-space: nowrap; }
  nav details:not([open]) { display: none; } }

.verdict { border: 2px solid; border-left-width: .6rem; border-radius: .4rem;
  padding: 1rem 1.25rem; margin: 0; }
.verdict h2 { display: flex; align-items: center; gap: .6rem; font-size: 1.75rem; margin: 0; }
.verdict svg { width: 2rem; height: 2rem; flex: none; fill: none; stroke: currentColor;
  stroke-width: 2.5; stroke-linecap: round; stroke-linejoin: round; }
.verdict .why { color: var(--text); font-size: 1.1rem; }
.verdict details, .verdict dl { color: var(--text); }
.go { color: var(--good); background: var(--good-back); }
.no-go { color: var(--bad); background: var(--bad-back); }
.inconclusive { color: var(--warn); background: var(--warn-back); }
.facts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 8.5rem), 1fr));
  gap: .75rem 1.5rem; margin: 1rem 0; }
.facts dt { font-size: .875rem; } .facts dd { font-weight: 600; }
dl { margin: .5rem 0; } dd { margin: 0; }
.verdict .facts dt { color: var(--text); }
.note { border-left: .3rem solid; padding: .5rem .9rem; margin: 1rem 0; }
.note.warn { color: var(--warn); background: var(--warn-back); }
.note.bad { color: var(--bad); background: var(--bad-back); }
.note.fine { color: var(--good); background: var(--good-back); }
summary { cursor: pointer; padding: .2rem 0; }
details > :not(summary) { margin-left: .9rem; }

/* Shades at the edges that more of the table lies behind: they stay with the box, what covers them
   moves with the table. */
.scroll { overflow-x: auto; margin: 1rem 0;
  background: linear-gradient(to right, var(--back) 60%, transparent) 0 0 / 2.5rem 100% local,
    linear-gradient(to left, var(--back) 60%, transparent) 100% 0 / 2.5rem 100% local,
    linear-gradient(to right, var(--shade), transparent) 0 0 / .75rem 100% scroll,
    linear-gradient(to left, var(--shade), transparent) 100% 0 / .75rem 100% scroll;
  background-repeat: no-repeat; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums;
  overflow-wrap: break-word; }
caption { text-align: left; font-weight: 600; padding-bottom: .35rem; }
th, td { padding: .3rem .6rem; text-align: right; vertical-align: top; white-space: nowrap;
  border-bottom: 1px solid var(--line); font-weight: 400; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
thead th { font-weight: 600; white-space: normal; vertical-align: bottom;
  max-width: 14rem; min-width: 5.5rem; }
tbody th { white-space: normal; min-width: 9rem; max-width: 22rem; }
th[scope=row] { position: sticky; left: 0; background: var(--back); }
@media (min-width: 48rem) { thead th { min-width: 4rem; } tbody th { min-width: 11rem; } }
@media (max-width: 48rem) { table { font-size: .875rem; }
  th, td { padding: .3rem .45rem; white-space: normal; } tbody th { min-width: 6.5rem; } }
.group th { font-weight: 600; padding-top: .9rem; }
.words td, .words th { text-align: left; white-space: normal; min-width: 6rem; max-width: 26rem; }
.words td:last-child { min-width: 15rem; }

.plot { display: block; overflow: visible; fill: var(--text); font-size: .875rem; }
#intervals .plot { max-width: 46rem; }
.plot .muted { fill: var(--muted); } .plot .name { font-weight: 600; }
.plot text { paint-order: stroke; stroke: var(--back); stroke-width: 4px;
  stroke-linejoin: round; }
.plot .tick { text-anchor: middle; fill: var(--muted); font-size: .8rem; }
.plot .end { text-anchor: end; }
.grid { stroke: var(--line); } .zero { stroke: var(--text); stroke-width: 1.5; }
.wanted { stroke: var(--good); stroke-width: 1.5; stroke-dasharray: 5 4; }
.interval { stroke: var(--bar); stroke-width: 3; stroke-linecap: round; }
.point { fill: var(--bar); stroke: var(--bar); stroke-width: 2.5; }
.open { fill: var(--back); } .bar { fill: var(--bar); }
.share { margin-left: .5rem; vertical-align: -.05em; } .share .track { fill: var(--line); }
.wide { max-width: 46rem; }
.many { display: grid; grid-template-columns: repeat(auto-fill, minmax(14rem, 1fr)); gap: 1.5rem; }
.many .plot { font-size: 11px; } .many .tick { font-size: 11px; stroke-width: 2px; }
figure { margin: 0; max-width: 22rem; } figcaption { font-weight: 600; }
figcaption small { font-weight: 400; }

.item { border-top: 2px solid var(--line); padding: 1rem 0 1.5rem; overflow: clip; }
.item h4 { display: flex; flex-wrap: wrap; gap: .2rem .9rem; align-items: baseline; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; font-size: .85rem; }
.item p, .item dd, .chunk { max-width: none; unicode-bidi: isolate; white-space: pre-line; }
.item dt { font-size: .875rem; color: var(--muted); margin-top: .5rem; }
.chunk { color: var(--muted); border-left: 3px solid var(--line); padding-left: .9rem;
  font-size: .9375rem; }
details[open] .excerpt { display: none; }
.arms { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 19rem), 1fr));
  gap: 1rem; margin-top: .75rem; }
.arm { background: var(--soft); border-radius: .4rem; padding: .75rem 1rem; min-width: 0; }
.arm h5 { display: flex; flex-wrap: wrap; gap: .15rem .6rem; align-items: baseline; }
.arm h5 span { font-weight: 400; } .question { font-size: 1.0625rem; }
.gain { color: var(--good); } .loss { color: var(--bad); }
ins { color: var(--good); background: var(--good-back); text-decoration: underline 2px; }
del { color: var(--bad); background: var(--bad-back); text-decoration: line-through; }
ins, del { padding: 0 .1em; border-radius: .15em; }
.sources code { font-size: .8125rem; }

@media print {
  @page { size: A4; margin: 14mm; }
  :root { color-scheme: light; font-size: 9pt; }
  body { display: block; max-width: none; padding: 0; }
  nav, .skip { display: none; }
  a { color: inherit; text-decoration: none; }
  section { margin-top: 1.75rem; } .group, h2, h3, h4, h5, summary, caption { break-after: avoid; }
  details::details-content { content-visibility: visible; block-size: auto; }
  details > summary { list-style: none; } .excerpt { display: none; }
  .scroll { overflow: visible; background: none; } table { width: 100%; font-size: .9rem; }
  th, td, thead th, tbody th, .words td, .words th, .words td:last-child {
    white-space: normal; padding: .15rem .3rem;
    min-width: 0; max-width: none; position: static; }
  thead { display: table-header-group; } tr, .scroll, figure, .note, .verdict, .plot {
    break-inside: avoid; }
  .item h4, .verdict h2 { break-after: avoid; }
  .item, .arm { overflow: visible; } .arms { display: block; }
  .arm { border-left: 3px solid var(--line); background: none; padding: 0 0 0 .7rem;
    margin: .6rem 0; } .arm ul { padding-left: 1.5rem; }
  .item { padding: .6rem 0; }
  .item p, .item ul { margin: .25rem 0; }
  * { print-color-adjust: exact; } }
"""

# All that runs on the page. It reads and writes no text, so that data cannot reach it.
SCRIPT = """
"use strict";
const items = [...document.querySelectorAll("article.item")];
const regressed = items.filter((item) => item.classList.contains("regressed"));
const keys = document.getElementById("keys");
keys.hidden = false;
function top_of(item) { return item.getBoundingClientRect().top; }
function following(list) {
  const at = document.activeElement.closest("article.item");
  const after = (item) => at
    ? at.compareDocumentPosition(item) & Node.DOCUMENT_POSITION_FOLLOWING : top_of(item) > 0;
  return list.find((item) => item !== at && after(item));
}
function preceding(list) {
  const at = document.activeElement.closest("article.item");
  const before = (item) => at
    ? at.compareDocumentPosition(item) & Node.DOCUMENT_POSITION_PRECEDING : top_of(item) < 0;
  return list.findLast((item) => item !== at && before(item));
}
function go(item) {
  if (!item) return;
  item.focus({ preventScroll: true });
  item.scrollIntoView({ block: "start" });
}
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === "j") go(following(items));
  else if (event.key === "k") go(preceding(items));
  else if (event.key === "r") go(following(regressed) || regressed[0]);
  else if (event.key === "?") {
    keys.open = !keys.open;
    keys.querySelector("summary").focus();
  } else return;
  event.preventDefault();
});
let opened = [];
addEventListener("beforeprint", () => {
  opened = [...document.querySelectorAll("details:not([open])")];
  for (const one of opened) one.open = true;
});
addEventListener("afterprint", () => { for (const one of opened) one.open = false; });
"""


KEYS = (("j", "next item"), ("k", "previous item"), ("r", "next regression"), ("?", "this"))


def page(
    title: str,
    contents: Sequence[tuple[str, str]],
    heading: str,
    body: Html,
    *,
    keys: Sequence[tuple[str, str]] = KEYS,
) -> str:
    """A whole HTML page. `contents` are (id, words) of its sections, in order; `keys` those of the
    script's keys that have a use on it.

    Its policy names this module's style and script by digest: markup that slipped into the body
    could neither run, nor load, nor be styled, nor send a form.
    """
    policy = (
        f"default-src 'none'; style-src 'sha256-{_sha256(STYLE)}'; "
        f"script-src 'sha256-{_sha256(SCRIPT)}'; base-uri 'none'; form-action 'none'"
    )
    head = join(
        [
            Html('<meta charset="utf-8">'),  # first, and the policy before all that it governs
            Html(f'<meta http-equiv="Content-Security-Policy" content="{policy}">'),
            Html('<meta name="viewport" content="width=device-width, initial-scale=1">'),
            Html('<meta name="referrer" content="no-referrer">'),
            Html('<meta name="robots" content="noindex">'),
            tag("title", title),
            Html(f"<style>{STYLE}</style>"),
        ],
        "\n",
    )
    main = tag("main", tag("h1", heading), body, id="main", tabindex=-1)
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n{head}\n</head>\n<body>\n'
        f"{tag('a', 'Skip to the report', href='#main', class_='skip')}\n"
        f"{_navigation(contents, keys)}\n{main}\n<script>{SCRIPT}</script>\n</body>\n</html>\n"
    )


def _navigation(contents: Sequence[tuple[str, str]], keys: Sequence[tuple[str, str]]) -> Html:
    """The table of contents, and the keys, which show only where the script runs."""
    links = (tag("li", tag("a", words, href=f"#{place}")) for place, words in contents)
    shown = tag("dl", *(Html(f"<dt>{key}</dt><dd>{what}</dd>") for key, what in keys))
    help_ = tag("details", tag("summary", "Keys"), shown, id="keys", hidden=True)
    return tag("nav", tag("ol", *links), help_, aria_label="Contents")


def _sha256(source: str) -> str:
    """The digest that a policy knows an inline style or script by."""
    return base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()
