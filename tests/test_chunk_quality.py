"""Quality filters: real chunks that are rightly rejected, and near misses that must be kept."""

from __future__ import annotations

import random

import pytest

from question_optimizer.chunk_quality import CODES, ChunkFilter
from question_optimizer.records import Chunk

LINK = "textsearch-tables.html#TEXTSEARCH-TABLES"
NAVIGATION = (
    "[Prev](queries-union.html), 1 = [Up](queries.html). [Prev](queries-union.html), 2 = "
    "[Next](queries-limit.html). 7.4. Combining Queries ( `UNION` ), 1 = [Home](index.html). "
    "7.4. Combining Queries ( `UNION` ), 2 = 7.6. `LIMIT` and `OFFSET`"
)
PROSE = (
    "Tablespaces allow an administrator to use knowledge of the usage pattern of database objects "
    "to optimize performance. An index which is very heavily used can be placed on a very fast, "
    "highly available disk, such as an expensive solid state device."
)
GERMAN = (
    "Der Bremsdruck im Hauptluftleitungssystem darf während der Prüfung 3,5 bar nicht "
    "unterschreiten; Grenzwerte für Schwerlastzüge stehen im Anhang der Betriebsvorschrift, und "
    "jede Abweichung ist schriftlich festzuhalten, bevor der Zug abfährt."
)
FRENCH = (
    "Le conducteur vérifie que la pression de la conduite générale n'est pas inférieure à cinq "
    "bars, puis il effectue l'essai de frein prévu à l'article douze avant chaque départ."
)
CZECH = (
    "Strč prst skrz krk je česká věta bez samohlásek, kterou najdete v mnoha učebnicích, a její "
    "smysl je jednoduchý: ukazuje, že slabikotvorné hlásky nesou slabiku i bez samohlásky."
)
JAPANESE = (
    "制動装置の検査は、列車が出発する前に必ず実施しなければならない。圧力が規定値を下回る場合は、"
    "運転士は直ちに指令所へ報告し、指示があるまで列車を動かしてはならない。"
)
HEX_DUMP = """```
00000000  53 51 4c 69 74 65 20 66  6f 72 6d 61 74 20 33 00  |SQLite format 3.|
00000010  10 00 01 01 00 40 20 20  00 00 00 05 00 00 00 0c  |.....@  ........|
```
The first sixteen bytes of every database file hold the header string in ASCII."""
C_CODE = """```
int sqlite3_blocking_prepare_v2(sqlite3 *db, const char *zSql, int nSql, sqlite3_stmt **ppStmt) {
  int rc;
  while( SQLITE_LOCKED==(rc = sqlite3_prepare_v2(db, zSql, nSql, ppStmt, pz)) ) {
    rc = wait_for_unlock_notify(db);
    if( rc!=SQLITE_OK ) break;
  }
  return rc;
}
```"""
SQL = (
    "```\nWITH RECURSIVE t(n) AS (VALUES (1) UNION ALL SELECT n+1 FROM t WHERE n < 100)\n"
    "SELECT sum(n) FROM t;\n```"
)


def reason(text: str, *codes: str, headings: list[str] | None = None) -> str | None:
    chunk = Chunk(chunk_id=1, chunk_text=text, headings=headings or [])
    rejection = ChunkFilter(codes or CODES).unfit(chunk)
    return rejection and rejection.reason


REJECTED = {
    "boilerplate": [
        NAVIGATION,
        "Prev Up Next Home",
        "*This page last modified on*\n[*2022-01-20 21:38:08*](https://example.org/pot)\n*UTC*",
        "This page intentionally left blank.",
        "© 2019 Example Railways AG\nAll rights reserved.\nPage 3 of 12",
        "Seite 7 von 90",
    ],
    "table_of_contents": [
        f"- [**12.2.1. Searching a Table**]({LINK}-SEARCH)\n- [**12.2.2. Indexes**]({LINK}-INDEX)",
        "1. [How do I create an AUTOINCREMENT field?](#q1)\n2. [What datatypes are there?](#q2)",
        "**Table of Contents**",
        "Introduction ........... 3\nBrakes . . . . . . . . . 14\nDoors ________ 27",
        "1 Introduction 3\n2 Brake systems 14\n2.1 Air brakes 15\n2.2 Hand brakes 22\n3 Doors 27",
    ],
    "references": [
        "[ALTER TRIGGER](sql-altertrigger.html) , [DROP TRIGGER](sql-droptrigger.html)",
        "[12] A. Broder. On the resemblance of documents. Proc. SEQUENCES, IEEE, 1997, pp. 21-29.\n"
        "[13] Arthur, D., Vassilvitskii, S.: k-means++. ACM-SIAM Symposium, 2007. doi:10.1145/1283",
    ],
    "undecoded_formula": [
        "The braking distance is then\n<!-- formula-not-decoded -->\nwhere v is the speed.",
        "<!-- formula-not-decoded -->\n\n<!-- formula-not-decoded -->",
    ],
    "table_residue": [
        "`microseconds` = `milliseconds`. `microseconds` = `second`. `microseconds` = `minute`. "
        "`microseconds` = `hour`. `microseconds` = `day`. `microseconds` = `week`",
        "12.5 | 14.0 | 3.7 | 88 | 91 | 102 | 7 | 9 | 11.2 | 14 | 15 | 16.1 | 18 | 20 | 22 | 25 bar",
    ],
    "garbled": [
        "T h e b r a k e p r e s s u r e m u s t n o t f a l l b e l o w f i v e b a r",
        "(cid:12)(cid:87) (cid:3)he (cid:54)(cid:99) val(cid:4)e (cid:5)(cid:6) (cid:7) closes",
        "DÃ¼sen fÃ¼r groÃŸe KÃ¼hler mÃ¼ssen jÃ¤hrlich geprÃ¼ft werden",
        "Th� br�ke p��ssure f�lls b�low f�ve b�r",
        "wrtvn kfglm brtz thnsk plmnr dcvbw grtzx kwpsd of the hlmnr prtvx zzkrt",
        "\uf0b7\uf0a7 \uf0e0\uf0d8 \uf0fc\uf0b7 \uf0a7\uf0e0 abcd \uf0d8\uf0fc \uf0b7\uf0a7 \uf0e0",
    ],
    "too_short": [
        "The typical use-cases for logical replication are:",
        "**Table 28.16.** **`pg_stat_wal_receiver`** **View**",
        "See [Section 59.5](fdw-row-locking.html) for more information.",
        "An example appears in the next section.",
        "This option overrides the collation that would otherwise be given to the variable.",
        "which expands to:",
        "```\n{0.1, 0.2, 0.4, 1.0}\n```",
    ],
}
KEPT = {
    "boilerplate": [
        "Copyright notices may be read with `SHOW license`; the server prints them once at start.",
        "Press [Next](#next) to go on and [Prev](#prev) to go back. The wizard keeps what is typed "
        "until it is closed, and it asks before anything is written to the configuration file, "
        + PROSE
        + " "
        + PROSE,
        PROSE + "\n*This page last modified on*\n[*2018-11-26 12:01:01*](https://x.org/pot)\n*UTC*",
    ],
    "table_of_contents": [
        "1. [Stop the server](#stop) before copying its files.\n2. [Copy](#copy) the folder whole.",
        "- Peak pressure of line 1 is 8\n- Peak pressure of line 2 is 10\n- Both were tested 2020",
        "To wait ... 5 seconds is enough in most cases.",
    ],
    "references": [
        "Use [`DROP TRIGGER`](sql-droptrigger.html) to remove a trigger from a table at any time.",
        "The [REINDEX](sql-reindex.html) command can be used safely, see [Section 3](x.html).",
        "In 1997 the journal changed its publisher to University Press, vol. 3. " + PROSE,
        PROSE + " [ANALYZE](sql-analyze.html)",
    ],
    "undecoded_formula": [
        PROSE + "\n<!-- formula-not-decoded -->",
        "A comment looks like <!-- this --> in XML and is skipped by every conforming parser.",
    ],
    "table_residue": [
        "`LC_COLLATE`, 1 = String sort order. `LC_CTYPE`, 1 = Character classification (What is a "
        "letter?). `LC_MESSAGES`, 1 = Language of messages. `LC_TIME`, 1 = Formatting of dates",
        "WAL_WRITE_LOCK, Offset.xShmLock = 0. WAL_WRITE_LOCK, Offset.File = 120. WAL_CKPT_LOCK, "
        "Offset.xShmLock = 1. WAL_CKPT_LOCK, Offset.File = 121",
        "x = 1. y = 2. Then the sum of the two is printed by the example program.",
        "In 2019, 2020 and 2021 the 3 depots tested 12, 14 and 19 valves at 5.0, 5.5 and 6.1 bar.",
    ],
    "garbled": [
        GERMAN,
        FRENCH,
        CZECH,
        JAPANESE,
        HEX_DUMP,
        C_CODE,
        SQL,
        PROSE,
        "HTTP TLS XFS NFS MDB SSL FTP DNS NTP SSH are the protocols whose ports are opened.",
        "Fläche = ½ · a · h ≈ 12 m² → siehe ΔT und µ ≤ 0,3 (±5 %) für √2 ∈ ℝ",
    ],
    "too_short": [
        "- `INCLUDE` indexes can never use deduplication.",
        "`restore_command` should return immediately if the file does not exist.",
        "restore_command should return immediately if the file does not exist.",
        "There is also `GetAttributeByNum` , which selects attributes by number instead of name.",
        "`int lo_write(PGconn *conn, int fd, const char *buf, size_t len);`",
        "The TRUNCATE journal mode is also supported:\n```\nPRAGMA journal_mode=TRUNCATE;\n```",
        "圧力が規定値を下回る場合は、運転士は直ちに指令所へ報告する。",
        "Der Bremsdruck darf 3,5 bar nicht unterschreiten.",
        PROSE,
    ],
}


@pytest.mark.parametrize(("code", "text"), [(c, t) for c, texts in REJECTED.items() for t in texts])
def test_what_is_rejected_and_why(code: str, text: str) -> None:
    assert reason(text, code) == code
    assert reason(text) in CODES


@pytest.mark.parametrize(("code", "text"), [(c, t) for c, texts in KEPT.items() for t in texts])
def test_what_a_filter_keeps(code: str, text: str) -> None:
    assert reason(text, code) is None


@pytest.mark.parametrize("text", [GERMAN, FRENCH, CZECH, JAPANESE, HEX_DUMP, C_CODE, SQL, PROSE])
def test_good_chunks_pass_every_filter(text: str) -> None:
    assert reason(text) is None


@pytest.mark.parametrize("unit", ["<!--", ". ", "…", "[", "[](", "`", "a = b. ", "(cid:", "  "])
def test_hostile_text_is_looked_at_in_linear_time(unit: str) -> None:
    """A pattern that backtracks over 40,000 characters would take minutes."""
    assert reason((unit * 40_000)[:40_000] + "z") in (None, *CODES)


def test_a_heading_tells_contents_and_literature() -> None:
    listed = (
        "1 Introduction 3\n2 Brake systems 14\n3 Doors 27\n4 Wheels 35\nfor all classes of trains"
    )
    assert reason(listed, "table_of_contents") is None
    assert reason(listed, "table_of_contents", headings=["Contents"]) == "table_of_contents"
    one = "[REVOKE](sql-revoke.html)"
    assert reason(one, "references") is None
    assert reason(one, "references", headings=["4. See Also"]) == "references"


def test_a_rejection_tells_measure_and_threshold() -> None:
    chunk = Chunk(chunk_id=1, chunk_text="The available privileges are:")
    assert ChunkFilter(["too_short"]).unfit(chunk) == ("too_short", 4, 20, None)
    assert ChunkFilter(["too_short"], min_words=4).unfit(chunk) is None
    assert ChunkFilter([]).unfit(chunk) is None


# ---------------------------------------------------------------------- near duplicates


def told(texts: list[str]) -> list[int | str | None]:
    """For each text as chunk 0, 1, …: which earlier one it is a copy of."""
    quality = ChunkFilter(["near_duplicate"])
    found = [quality.unfit(Chunk(chunk_id=n, chunk_text=text)) for n, text in enumerate(texts)]
    return [rejection and rejection.like for rejection in found]


def test_copies_are_near_duplicates_whatever_their_markup() -> None:
    linked = PROSE.replace("Tablespaces", "[**Tablespaces**](manage-ag-tablespaces.html)", 1)
    assert told([PROSE, PROSE.upper(), linked, PROSE.replace(" ", "\n")]) == [None, 0, 0, 0]


def test_texts_that_differ_by_a_name_or_number_are_not() -> None:
    texts = [
        f"{PROSE} It was introduced in release {release} for the command {command}."
        for release, command in (("8.3", "lo_truncate"), ("9.3", "lo_truncate"), ("9.3", "lo_tell"))
    ]
    assert told(texts) == [None, None, None]


def test_a_rejected_copy_is_not_remembered() -> None:
    quality = ChunkFilter(["too_short", "near_duplicate"])
    for n in range(2):
        rejection = quality.unfit(Chunk(chunk_id=n, chunk_text="They are:"))
        assert rejection is not None and rejection.reason == "too_short"


@pytest.mark.parametrize("text", ["x", "行", "a b"])
def test_the_shortest_texts_are_compared_too(text: str) -> None:
    assert told([text, text, f"{text}{text}"]) == [None, 0, None]


def test_thousands_of_texts_are_compared_through_an_index() -> None:
    rng = random.Random(0)
    words = [f"w{rng.getrandbits(20):x}" for _ in range(400)]
    texts = [" ".join(rng.choices(words, k=60)) for _ in range(1500)]
    assert told([*texts, *texts[::100]]) == [None] * 1500 + list(range(0, 1500, 100))
