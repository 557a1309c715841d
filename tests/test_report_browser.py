"""The evaluation report in a real browser: nothing runs, nothing is sent, all fits and prints.

Chromium goes through a proxy of ours that answers nothing and remembers everything, so that a
request to wherever is seen. Control pages hold the same payloads unescaped and do fire.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from question_optimizer.reports import write_evaluation_report
from test_reports import CHECKED, HEALTH, INPUTS, SETTINGS, realistic, row, summary_of

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))),
    None,
)
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="no chromium or chrome binary on PATH; apt-get install chromium"
)
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-sync "
    "--disable-background-networking --disable-component-update --disable-default-apps "
    "--hide-scrollbars --disable-features=NetworkTimeServiceQuerying,OptimizationHints,AimEnabled"
).split()
# What Chromium asks of its maker even so. No report and no payload names these hosts.
BROWSERS_OWN = re.compile(r"(?:^|[./])(?:google|googleapis|gstatic|gvt1)\.com[:/]")
HOST = "http://canary.test"  # does not exist; the proxy hears of it all the same
MARK = "document.title='OWNED'"


def beacon(name: str) -> str:
    return f"{HOST}/{name}"


# By name: what a hostile document might hold. Each that fires unescaped calls at its own address.
PAYLOADS = {
    "script": f"<script>{MARK};fetch('{beacon('script')}')</script>",
    "remote-script": f"<script src='{beacon('remote-script')}'></script>",
    "image": f"<img src={beacon('image')}>",
    "onerror": f"<img src=x: onerror=\"fetch('{beacon('onerror')}');{MARK}\">",
    "onload": f"<svg onload=\"fetch('{beacon('onload')}')\"></svg>",
    "svg-image": f"<svg><image href='{beacon('svg-image')}' width=9 height=9 /></svg>",
    "toggle": f"<details open ontoggle=\"fetch('{beacon('toggle')}')\">x</details>",
    "style": f"</style><style>body{{background:url({beacon('style')})}}</style>",
    "style-attribute": f"<p style=\"background:url('{beacon('style-attribute')}')\">x</p>",
    "import": f"<style>@import '{beacon('import')}';</style>",
    "stylesheet": f"<link rel=stylesheet href={beacon('stylesheet')}>",
    "frame": f"<iframe src={beacon('frame')}></iframe>",
    "frame-text": f"<iframe srcdoc=\"<img src='{beacon('frame-text')}'>\"></iframe>",
    "object": f"<object data={beacon('object')}></object>",
    "poster": f"<video poster={beacon('poster')} src={beacon('video')}></video>",
    "form": f"<form id=f action={beacon('form')} target=_blank></form>"
    "<script>document.getElementById('f').submit()</script>",
}
# These need a click, an attribute or another parser; they have to stay text as well.
INERT = [
    f"</title><script>fetch('{beacon('title')}')</script>",
    f"[click](javascript:fetch('{beacon('markdown')}'))",
    f'" onmouseover="fetch(\'{beacon("attribute")}\')" autofocus onfocus="{MARK}" x="',
    f"' style='background:url({beacon('quote')})' x='",
    f"<meta http-equiv=refresh content='0;url={beacon('refresh')}'>",
    f"<base href={HOST}/>",
    f"--><!--><script>{MARK}</script>",
    f"]]></desc></svg><script>{MARK}</script>",
    f"<math><mtext></p><style><!--</style><img src=x: onerror={MARK}>",
    f"<noscript><p title='</noscript><img src={beacon('noscript')}>'>",
    "</article></section></main></body></html>",
]
ALL = "\n".join([*PAYLOADS.values(), *INERT])

# ---------------------------------------------------------------------- browser and proxy


class Proxy(ThreadingHTTPServer):
    """Serves the files of `folder` as http://report.test/…, refuses the rest, remembers all.

    `asked` leaves out what the browser asks on its own account.
    """

    daemon_threads = True

    def __init__(self, folder: Path):
        super().__init__(("127.0.0.1", 0), _Asked)
        self.folder = folder
        self.asked: list[str] = []

    @property
    def beacons(self) -> set[str]:
        """The names of the payloads that called."""
        return {url.removeprefix(f"{HOST}/") for url in self.asked if "canary.test" in url}


class _Asked(BaseHTTPRequestHandler):
    server: Proxy

    def log_message(self, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        self.remember()
        url = urlsplit(self.path)
        file = self.server.folder / url.path.lstrip("/")
        if url.hostname != "report.test" or not file.is_file():
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.end_headers()
        self.wfile.write(file.read_bytes())

    do_POST = do_HEAD = do_GET

    def do_CONNECT(self) -> None:
        self.remember()
        self.send_error(403)

    def remember(self) -> None:
        if not BROWSERS_OWN.search(self.path):
            self.server.asked.append(self.path)


@pytest.fixture
def proxy(tmp_path: Path) -> Iterator[Proxy]:
    server = Proxy(tmp_path)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


Browse = Callable[..., str]


@pytest.fixture
def browse(tmp_path: Path, proxy: Proxy) -> Browse:
    """Opens an address as a browser does, and returns the page as it then stands."""

    def run(address: str, *flags: str) -> str:
        done = subprocess.run(
            [
                str(CHROMIUM),
                *FLAGS,
                f"--user-data-dir={tmp_path / 'profile'}",
                f"--proxy-server=127.0.0.1:{proxy.server_address[1]}",
                "--proxy-bypass-list=<-loopback>",  # not even loopback goes past the proxy
                *(flags or ["--virtual-time-budget=4000", "--dump-dom"]),
                address,
            ],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def write_report(folder: Path, rows: list[dict[str, Any]], **more: Any) -> Path:
    summary = summary_of(rows, **{"judge": CHECKED, "set_health": HEALTH, **more})
    (folder / "summary.json").write_text(json.dumps(summary), encoding="utf-8")
    lines = "".join(json.dumps(one) + "\n" for one in rows)
    (folder / "scores.jsonl").write_text(lines, encoding="utf-8")
    write_evaluation_report(folder, settings=SETTINGS, inputs=INPUTS)
    return folder / "report.html"


def hostile_report(folder: Path) -> Path:
    """A report with every payload in every text that comes from documents, models or names."""
    texts = ("document", "persona_description", "model", "feedback", "question", "query_type",
             "gold_question", "chunk_text")  # fmt: skip
    said = dict.fromkeys(texts, ALL)
    pairwise = {"against": ALL, "outcome": "loss", "consistent": False, "asked": True,
                "reasons": [ALL, ALL], "error": ALL}  # fmt: skip
    rows = [
        row("a", "original", 0.5, **said),
        row("a", "optimised", 0.4, **{**said, "question": f"a {ALL}"}, pairwise=pairwise,
            gates=[{"gate": ALL, "reason": ALL}]),
        row("b", "original", None, **said, error=ALL),
        row("b", ALL, 0.4, **said),
    ]  # fmt: skip
    health = {ALL: {"kinds": {ALL: 1}, "alarms": [ALL]}}
    return write_report(
        folder, rows, verdict=ALL, sentence=ALL, rule=ALL, set_health=health, recommended=ALL
    )


# ---------------------------------------------------------------------- nothing runs, nothing loads


def test_the_payloads_fire_where_nothing_holds_them(
    tmp_path: Path, browse: Browse, proxy: Proxy
) -> None:
    """The control: without it the tests below could not fail."""
    page = "<!doctype html><title>harmless</title><body>" + "\n".join(PAYLOADS.values())
    (tmp_path / "control.html").write_text(page, encoding="utf-8")
    assert "<title>OWNED</title>" in browse((tmp_path / "control.html").as_uri())
    assert set(PAYLOADS) - {"form"} <= proxy.beacons  # a form's new window is not waited for


@pytest.mark.parametrize("through", ["file", "http"])
def test_a_hostile_report_runs_nothing_and_asks_for_nothing(
    tmp_path: Path, browse: Browse, proxy: Proxy, through: str
) -> None:
    page = hostile_report(tmp_path)
    shown = browse(page.as_uri() if through == "file" else "http://report.test/report.html")
    assert "<title>OWNED</title>" not in shown
    assert shown.count("<script>") == 1
    assert "&lt;script&gt;document.title='OWNED'" in shown
    own = ["http://report.test/report.html"] if through == "http" else []
    assert proxy.asked == own


def test_escaping_alone_would_do(tmp_path: Path, browse: Browse, proxy: Proxy) -> None:
    page = hostile_report(tmp_path)
    source, policies = re.subn(
        r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page.read_text(encoding="utf-8")
    )
    assert policies == 1
    page.write_text(source, encoding="utf-8")
    assert "<title>OWNED</title>" not in browse(page.as_uri())
    assert proxy.asked == []


def test_the_policy_alone_would_do(tmp_path: Path, browse: Browse, proxy: Proxy) -> None:
    page = write_report(tmp_path, realistic(3))
    source = page.read_text(encoding="utf-8")
    payloads = "\n".join(PAYLOADS.values())
    page.write_text(source.replace('<main id="main"', f"{payloads}<main", 1), encoding="utf-8")
    assert "<title>OWNED</title>" not in browse(page.as_uri())
    assert proxy.asked == []


# ---------------------------------------------------------------------- keys, width, paper

# A page beside the report that looks into it, since a document may look into its like.
WRAPPER = """<!doctype html><title>waiting</title><body>
<iframe src="report.html" style="border:0;height:800px;width:%(width)spx"></iframe>
<script>
document.querySelector("iframe").addEventListener("load", (loaded) => {
  const page = loaded.target.contentDocument, found = [];
  const press = (key) => page.activeElement.dispatchEvent(
    new loaded.target.contentWindow.KeyboardEvent("keydown", { key, bubbles: true }));
  %(look)s
  document.title = JSON.stringify(found);
});
</script>"""


@pytest.fixture
def look(tmp_path: Path, browse: Browse) -> Callable[..., Any]:
    """Runs a script beside the report, in a frame of some width; returns what it `found`."""

    def run(script: str, *, width: int = 1000) -> Any:
        source = WRAPPER % {"width": width, "look": script}
        (tmp_path / "wrapper.html").write_text(source, encoding="utf-8")
        shown = browse("http://report.test/wrapper.html")
        title = re.search("<title>(.*?)</title>", shown)
        assert title, shown
        return json.loads(title[1].replace("&quot;", '"').replace("&gt;", ">"))

    return run


def test_keys_lead_from_item_to_item(tmp_path: Path, look: Callable[..., Any]) -> None:
    write_report(
        tmp_path,
        [one for n, last in enumerate((0.2, 0.9, 0.3, 0.8))
         for one in (row(f"i{n}", "original", 0.5), row(f"i{n}", "optimised", last))],
    )  # fmt: skip
    found = look("""
      for (const key of ["j", "j", "j", "k", "r", "r", "k", "x"]) {
        press(key); found.push(page.activeElement.id);
      }
      const keys = page.getElementById("keys");
      found.push(keys.hidden, keys.open);
      press("?");
      found.push(keys.open, page.activeElement.textContent);
    """)
    # Items 1 and 2 regressed; after the last of them comes the first again.
    assert found[:8] == [f"item-{n}" for n in (1, 2, 3, 2, 1, 2, 1, 1)]
    assert found[8:] == [False, False, True, "Keys"]


@pytest.mark.parametrize("width", [320, 360, 768, 1280])
def test_the_page_does_not_scroll_sideways(
    tmp_path: Path, look: Callable[..., Any], width: int
) -> None:
    arms = ("original", "optimised", "second", "existing")
    rows = realistic(6, arms, 3)
    for one in rows:
        one["question"] += " " + "x" * 300
        one["document"] = "d" * 200
        one["model"] = "m" * 200
    write_report(tmp_path, rows, test_set_opened=5)
    found = look(
        """
      const root = page.documentElement;
      found.push(root.clientWidth, root.scrollWidth, page.body.scrollWidth);
      const inside = (element) => element.closest(".scroll, nav, .said, .skip");
      for (const element of page.querySelectorAll("main *"))
        if (!inside(element) && element.getBoundingClientRect().right > root.clientWidth + 1)
          found.push(element.outerHTML.slice(0, 80));
      const letters = [...page.querySelectorAll("#intervals text")].map(
        (text) => parseFloat(loaded.target.contentWindow.getComputedStyle(text).fontSize));
      found.push(Math.min(...letters));
    """,
        width=width,
    )
    assert found[:3] == [width, width, width]
    assert found[3:-1] == []  # nothing is cut off either
    assert found[-1] >= 12  # pixels: the plot's letters are not scaled down


def printed(tmp_path: Path, browse: Browse, page: Path) -> str:
    """The text of the page on paper, printed without its script."""
    if shutil.which("pdftotext") is None:
        pytest.skip("no pdftotext; apt-get install poppler-utils")
    file = tmp_path / "report.pdf"
    source, scripts = re.subn("(?s)<script>.*</script>", "", page.read_text(encoding="utf-8"))
    assert scripts == 1
    page.write_text(source, encoding="utf-8")
    browse(page.as_uri(), f"--print-to-pdf={file}", "--no-pdf-header-footer")
    assert file.read_bytes().startswith(b"%PDF")
    done = subprocess.run(
        ["pdftotext", "-layout", str(file), "-"], capture_output=True, text=True, check=True
    )
    return " ".join(done.stdout.split())


def test_paper_shows_the_verdict_the_rule_and_what_is_folded_on_screen(
    tmp_path: Path, browse: Browse
) -> None:
    rows = realistic(8, repeats=2)
    for place, one in enumerate(rows):
        one["chunk_text"] = "long chunk " * 60 + f"lastwordof{one['item']}"
        one["feedback"] = f"remark{place}of {one['item']}"
    said = printed(tmp_path, browse, write_report(tmp_path, rows))
    assert "INCONCLUSIVE" in said
    assert "GO if the interval's lower end is above zero" in said
    assert "2026-11-03T09:12:00Z" in said
    assert "Skip to the report" not in said
    assert all(f"Item {n} " in said for n in range(1, 9))
    for one in rows:
        assert f"lastwordof{one['item']}" in said
        if one["score"] is not None:
            assert one["feedback"] in said
    assert "A names the mechanism; B is a definition." in said


def test_paper_is_a4_and_cuts_no_column(tmp_path: Path, browse: Browse) -> None:
    arms = ("original", "optimised", "second", "third", "existing")
    said = printed(tmp_path, browse, write_report(tmp_path, realistic(4, arms)))
    media = re.search(
        rb"/MediaBox\s*\[0 0 ([\d.]+) ([\d.]+)\]", (tmp_path / "report.pdf").read_bytes()
    )
    assert media
    assert [round(float(side)) for side in media.groups()] == [595, 842]
    rows = realistic(4, arms)
    expected = summary_of(rows)["arms"]
    line = " ".join(f"{expected[arm]['score']:.3f}" for arm in arms)
    assert line in said
    gain = expected["third"]["score"] - expected["original"]["score"]
    assert f"{line} " in said
    assert f"{gain:+.3f}".replace("-", "−") in said.split(line)[1][:40]
