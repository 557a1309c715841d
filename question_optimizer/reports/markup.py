"""Elements that escape what is put into them: data cannot become markup by being forgotten."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from question_optimizer.hostile_text import printable


class Html(str):
    """Finished markup. Every other value is data and is escaped where it is put in."""

    __slots__ = ()


Child = object  # Html, None (nothing), or data
Row = Sequence[Child]


def text(value: object) -> Html:
    """`value` as text that a browser shows and does not obey: escaped, without controls.

    Controls, terminal escapes and direction overrides are gone; see `hostile_text.printable`.
    """
    return value if isinstance(value, Html) else Html(escape(printable(str(value))))


def join(children: Iterable[Child], between: str = "") -> Html:
    """The children one after the other; None is left out."""
    return Html(escape(between).join(text(child) for child in children if child is not None))


def tag(name: str, *children: Child, **attributes: object) -> Html:
    """`<name …>children</name>`. Attributes are the report's own words and numbers, never data.

    `class_` is written `class`, other underscores as hyphens. True is an attribute without a
    value; False and None leave it out.
    """
    written = "".join(
        f" {key.rstrip('_').replace('_', '-')}" + ("" if value is True else f'="{text(value)}"')
        for key, value in attributes.items()
        if value is not None and value is not False
    )
    return Html(f"<{name}{written}>{join(children)}</{name}>")


def hidden(*children: Child) -> Html:
    """Said to a screen reader, not shown."""
    return tag("span", *children, class_="said")


def details(summary: Child, *children: Child, **attributes: object) -> Html:
    """What opens on a click, and is open on paper."""
    return tag("details", tag("summary", summary), *children, **attributes)


def note(kind: str, lead: str, *children: Child) -> Html:
    """A box that begins with what it is in words, so that its colour says nothing alone."""
    return tag("p", tag("strong", lead), " ", *children, class_=f"note {kind}")


def table(caption: str, head: Row, rows: Iterable[Row], *, words: bool = False) -> Html:
    """A table with row headings that scrolls within itself where the page is narrow.

    A row of one cell begins a group; a group without rows is left out. `caption` is the report's
    own word. `words` tells that cells hold sentences and not figures.
    """
    bodies: list[list[Html]] = [[]]
    for row in rows:
        if len(row) == 1:
            heading = tag("th", row[0], scope="rowgroup", colspan=len(head))
            bodies.append([tag("tr", heading, class_="group")])
            continue
        cells = [tag("th", row[0], scope="row"), *(tag("td", cell) for cell in row[1:])]
        bodies[-1].append(tag("tr", *cells))
    columns = [tag("th", cell, scope="col") if cell else tag("td") for cell in head]
    whole = tag(
        "table",
        tag("caption", caption),
        tag("thead", tag("tr", *columns)),
        *(tag("tbody", *body) for body in bodies if any("<td" in row for row in body)),
        class_="words" if words else None,
    )
    return tag("div", whole, class_="scroll", role="region", tabindex=0, aria_label=caption)
