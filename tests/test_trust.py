"""The judge is measured against the person's picks, and what came out is told with a verdict."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from conftest import LLMServer, tree_digest
from dspy_pipeline import fingerprint, pipeline_state
from question_optimizer import files
from question_optimizer.errors import UserError
from question_optimizer.programs.judge import QuestionJudge
from question_optimizer.programs.trust import (
    BUILT_IN,
    check_settings,
    items_for_check,
    judge_at_work,
    kept_check,
)
from question_optimizer.records import GoldItem
from test_evaluation import (
    DEV,
    TRAIN,
    Messages,
    Model,
    Project,
    Serve,
    account,
    asked,
    fields,
    gold_item,
    gold_set,
    project_in,
    sent,
    serving,
    step_of,
    topic_of,
)


@pytest.fixture
def project(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Project:
    return project_in(tmp_path, monkeypatch, capsys)


@pytest.fixture
def serve(project: Project, llm_server: Callable[..., LLMServer]) -> Serve:
    return serving(project, llm_server)


class Expert(Model):
    """Knows the gold question of each item, and scores it above all others."""

    def level(self, question: str, topic: int) -> int:
        asks = "overpressure" in question and f"topic{topic:02}" in question
        return 5 if asks else super().level(question, topic)


class Silent(Expert):
    """An expert that cannot be read about some items."""

    def __init__(self, *topics: int):
        self.topics = topics

    def __call__(self, messages: Messages) -> str:
        return "no idea" if topic_of(messages) in self.topics else super().__call__(messages)


class First(Expert):
    def compare(self, messages: Messages) -> str:
        return fields(reason="the first", better="A")


CHECK = "judge_check.json"


def write_judge(path: Path, words: str = "Be strict.") -> None:
    """A finished optimised judge."""
    judge = QuestionJudge()
    signature = judge.judge.signature
    judge.judge.signature = signature.with_instructions(f"{signature.instructions} {words}")
    files.write_atomic(path, pipeline_state(judge))
    files.write_meta(
        path, phase="optimize_pipeline", settings={}, inputs={}, signature=fingerprint(judge)
    )


# ---------------------------------------------------------------------- the command


def test_a_judge_that_finds_the_persons_picks_is_trusted(project: Project, serve: Serve) -> None:
    server = serve(Expert())
    done = project.evaluate("--check-judge")
    assert (done.code, done.err) == (0, "")
    found = json.loads((project.data / CHECK).read_text(encoding="utf-8"))
    assert (found["checked"], found["trusted"], found["unjudged"]) == (True, True, 0)
    assert (found["judge"], found["models"], found["rehearsal"]) == ("built-in", ["m"], False)
    assert set(found["by_kind"]) == {"rejected", "bad", "planted"}
    assert found["pairs"] == sum(kind["pairs"] for kind in found["by_kind"].values())
    assert found["chunks"] == DEV + TRAIN
    assert found["pointwise"]["value"] == found["pairwise"]["value"] == 1.0
    assert (
        done.out.splitlines()[-1]
        == f"{found['pairs']} pairs of 13 chunks -> {Path('data') / CHECK}"
    )
    assert f"trusted: {found['why']}" in " ".join(done.out.split())
    assert "NOT TRUSTED" not in done.out
    meta = files.read_meta(project.data / CHECK, made_by="")
    assert meta["phase"] == "check_judge"
    assert meta["settings"]["models"] == ["m"] and meta["settings"]["judge"] == BUILT_IN
    assert meta["inputs"] == {"gold_dataset.json": files.sha256(project.data / "gold_dataset.json")}
    assert (
        set(asked(server)) == {"score", "compare"}
        and asked(server)["compare"] == 2 * found["pairs"]
    )


def test_the_check_never_shows_a_test_item(project: Project, serve: Serve) -> None:
    server = serve(Expert())
    project.evaluate("--check-judge")
    texts = "\n".join([*sent(server, "score"), *sent(server, "compare")])
    for item in project.gold:
        assert (item["gold_question"] in texts) == (item["split"] != "test")
    assert "gold" not in texts and "suggest" not in texts


@pytest.mark.parametrize(
    ("model", "why"),
    [
        (Model(), "is not better than chance"),
        (First(), "its answer holds in both orders for only 0%"),
    ],
)
def test_a_judge_that_cannot_tell_is_not_trusted(
    model: Model, why: str, project: Project, serve: Serve
) -> None:
    serve(model)
    done = project.evaluate("--check-judge")
    found = json.loads((project.data / CHECK).read_text(encoding="utf-8"))
    assert (done.code, found["trusted"]) == (3, False)
    assert why in found["why"] and "NOT TRUSTED: " in done.out
    assert project.evaluate("--check-judge") == done  # nor does it pass when asked again


def test_a_check_is_not_paid_twice(project: Project, serve: Serve) -> None:
    server = serve(Expert())
    done = project.evaluate("--check-judge")
    known, calls = tree_digest(project.data), asked(server)
    assert project.evaluate("--check-judge") == done
    assert tree_digest(project.data) == known
    assert project.evaluate("--check-judge", "--fresh") == done
    for name in (CHECK, f"{CHECK}.meta.json"):
        assert tree_digest(project.data)[name] == known[name]
    assert asked(server) == calls


def test_json_is_what_the_file_says(project: Project, serve: Serve) -> None:
    serve(Expert())
    done = project.evaluate("--check-judge", "--json")
    assert (done.code, done.err) == (0, "")
    assert json.loads(done.out) == json.loads((project.data / CHECK).read_text(encoding="utf-8"))


@pytest.mark.parametrize("flags", [[], ["--judge-pairs", "30"]])
def test_a_dry_run_foretells_the_calls_of_a_check(
    flags: list[str], project: Project, serve: Serve
) -> None:
    server = serve(Expert())
    before = tree_digest(project.data)
    told = project.evaluate("--check-judge", "--dry-run", *flags)
    assert (told.code, told.err, server.requests) == (0, "", [])
    assert tree_digest(project.data) == before
    found = re.match(r"dry run: (\d+) calls \((\d+) judge\), about [\d,]+ tokens, cost ", told.out)
    assert found is not None
    project.evaluate("--check-judge", *flags)
    assert set(map(int, found.groups())) == {len(server.requests)}
    if flags:
        assert asked(server)["compare"] == 60


def another_seed(project: Project, server: LLMServer) -> list[str]:
    return ["--seed", "1"]


def another_model(project: Project, server: LLMServer) -> list[str]:
    project.write_accounts(account(server, model="m2"))
    return []


def another_gold_set(project: Project, server: LLMServer) -> list[str]:
    project.write_gold([*project.gold, gold_item(90, "dev")])
    return []


def another_judge(project: Project, server: LLMServer) -> list[str]:
    write_judge(project.root / "mine.json")
    return ["--judge", "mine.json"]


def an_optimised_judge(project: Project, server: LLMServer) -> list[str]:
    write_judge(project.data / "optimized_judge.json")
    return []


def a_damaged_check(project: Project, server: LLMServer) -> list[str]:
    (project.data / CHECK).write_text("{", encoding="utf-8")
    return []


@pytest.mark.parametrize(
    "change",
    [
        *(another_seed, another_model, another_gold_set, another_judge),
        *(an_optimised_judge, a_damaged_check),
    ],
)
def test_another_judge_is_checked_anew(
    change: Callable[[Project, LLMServer], list[str]], project: Project, serve: Serve
) -> None:
    server = serve(Expert())
    assert project.evaluate("--check-judge").code == 0
    before = files.read_meta(project.data / CHECK, made_by="")
    calls = asked(server)
    flags = change(project, server)
    done = project.evaluate("--check-judge", *flags)
    after = files.read_meta(project.data / CHECK, made_by="")
    assert done.code == 0
    known = change is a_damaged_check
    assert (after == before) == known
    if change in (another_model, another_gold_set, another_judge):
        assert asked(server) - calls
    if known:
        assert asked(server) == calls
    if change is an_optimised_judge:
        found = json.loads((project.data / CHECK).read_text(encoding="utf-8"))
        assert (found["judge"], found["chunks"]) == ("optimised", DEV)  # the dev side alone


def test_a_budget_stops_a_check_and_a_higher_one_resumes(project: Project, serve: Serve) -> None:
    server = serve(Expert())
    poor = project.evaluate("--check-judge", "--max-calls", 25)
    assert (poor.code, poor.out, len(server.requests)) == (5, "", 25)
    assert not (project.data / CHECK).exists()
    assert project.evaluate("--check-judge").code == 0
    repeated = Counter(json.dumps(body, sort_keys=True) for *_, body in server.requests)
    assert max(repeated.values()) == 1


def test_pairs_that_could_not_be_judged_are_asked_again(project: Project, serve: Serve) -> None:
    model = Silent(8)
    server = serve(model)
    done = project.evaluate("--check-judge")
    found = json.loads((project.data / CHECK).read_text(encoding="utf-8"))
    assert (done.code, found["trusted"]) == (3, False)
    assert "pairs could not be judged (the judge's answer could not be read)" in found["why"]
    model.topics = ()
    calls = len(server.requests)
    assert project.evaluate("--check-judge").code == 0
    for *_, body in server.requests[calls:]:
        assert topic_of(body["messages"]) == 8
    assert len(server.requests) > calls


def test_too_few_pairs_are_no_ground_for_trust(project: Project, serve: Serve) -> None:
    server = serve(Expert())
    project.write_gold([*gold_set(8, others=False), gold_item(30, "train")])
    done = project.evaluate("--check-judge")
    assert done.code == 3 and "are too few to tell" in " ".join(done.out.split())
    assert 0 < len(server.requests) < 20
    project.write_gold(gold_set(8, others=False))
    calls = len(server.requests)
    done = project.evaluate("--check-judge")
    assert done.code == 3 and "0 pairs of 0 chunks are too few to tell" in " ".join(
        done.out.split()
    )
    assert len(server.requests) == calls


# ---------------------------------------------------------------------- told with the verdict


def report(project: Project) -> str:
    return (project.folder() / "report.html").read_text(encoding="utf-8")


def test_a_verdict_says_that_its_judge_was_not_checked(project: Project, serve: Serve) -> None:
    serve(Expert())
    done = project.evaluate()
    judge = project.summary()["judge"]
    assert judge["checked"] is False
    assert "evaluate_pipeline.py --check-judge" in judge["why"]
    assert f": {judge['why']}" in " ".join(done.out.split())
    assert "Not checked." in report(project) and "Unchecked judge." in report(project)


@pytest.mark.parametrize(
    ("model", "trusted", "says"), [(Expert(), True, "Trusted."), (Model(), False, "Not trusted.")]
)
def test_a_verdict_says_how_its_judge_did(
    model: Model, trusted: bool, says: str, project: Project, serve: Serve
) -> None:
    serve(model)
    project.evaluate("--check-judge")
    done = project.evaluate()
    judge = project.summary()["judge"]
    assert judge == json.loads((project.data / CHECK).read_text(encoding="utf-8"))
    assert judge["trusted"] is trusted
    assert f": {judge['why']}" in " ".join(done.out.split())
    assert says in report(project)
    assert ("The judge failed its check." in report(project)) is not trusted
    assert "Unchecked judge." not in report(project)


def test_a_check_of_another_judge_does_not_count(project: Project, serve: Serve) -> None:
    server = serve(Expert())
    project.evaluate("--check-judge")
    write_judge(project.root / "mine.json")
    project.evaluate("--judge", "mine.json")
    assert project.summary()["judge"]["checked"] is False
    for flags, model in ((["--judge-pairs", "25"], "m"), (["--seed", "1"], "m"), ([], "m2")):
        project.write_accounts(account(server, model=model))
        before = {run.name for run in project.runs}
        project.evaluate(*flags)
        new = {run.name for run in project.runs} - before
        if flags == ["--judge-pairs", "25"]:  # the same run, but for what is known of its judge
            continue
        # how many pairs, and which, is the check's own affair; another model is another judge
        assert project.summary(new.pop())["judge"]["checked"] is (model == "m")


def test_a_check_made_after_the_verdict_is_told_too(project: Project, serve: Serve) -> None:
    serve(Expert())
    project.evaluate()
    project.evaluate("--check-judge")
    done = project.evaluate()
    assert "not checked against the person's picks" not in " ".join(done.out.split())
    assert project.summary()["judge"]["checked"] is True


def test_a_judge_found_trusted_is_so_in_the_verdict(project: Project, serve: Serve) -> None:
    class Almost(Expert):
        """Cannot be read about one of a hundred pairs."""

        def compare(self, messages: Messages) -> str:
            text = messages[-1]["content"]
            hard = topic_of(messages) == 8 and "bearings" in text
            return "no idea" if hard else super().compare(messages)

    serve(Almost())
    done = project.evaluate("--check-judge")
    found = json.loads((project.data / CHECK).read_text(encoding="utf-8"))
    assert (done.code, found["trusted"], found["unjudged"]) == (0, True, 1)
    project.evaluate()
    assert project.summary()["judge"]["checked"] is True


# ---------------------------------------------------------------------- which judge is at work


def test_the_optimised_judge_is_at_work_where_there_is_one(tmp_path: Path) -> None:
    assert judge_at_work(tmp_path, None).origin == BUILT_IN
    write_judge(tmp_path / "optimized_judge.json")
    found = judge_at_work(tmp_path, None)
    assert (found.origin, found.is_optimized) == ("optimized_judge.json", True)
    assert found.program.judge.signature.instructions.endswith("Be strict.")
    built_in = judge_at_work(tmp_path, "built-in")
    assert (built_in.origin, built_in.is_optimized) == (BUILT_IN, False)
    assert built_in.digest != found.digest
    assert judge_at_work(tmp_path, str(tmp_path / "optimized_judge.json"))[1:] == found[1:]


def test_another_judge_makes_another_run_and_judges_it(project: Project, serve: Serve) -> None:
    server = serve()
    project.evaluate()
    write_judge(project.data / "optimized_judge.json", "Be strict about pumps.")
    calls = len(server.requests)
    project.evaluate()
    assert len(project.runs) == 2
    new = [body["messages"] for *_, body in server.requests[calls:]]
    assert {step_of(messages) for messages in new} == {"score"}
    assert all("Be strict about pumps." in messages[0]["content"] for messages in new)
    project.evaluate("--judge", "built-in")
    assert len(project.runs) == 2  # that one is known


@pytest.mark.parametrize(
    ("named", "says"),
    [
        ("none.json", "none.json"),
        ("data/optimized_pipeline.json", "a program of another kind"),
        ("data/gold_dataset.json", "unfinished, gold_dataset.json.meta.json is missing"),
    ],
)
@pytest.mark.parametrize("flags", [[], ["--check-judge"]])
def test_a_judge_that_cannot_be_used_is_refused_before_any_call(
    named: str, says: str, flags: list[str], project: Project, serve: Serve
) -> None:
    server = serve()
    done = project.evaluate("--judge", named, *flags)
    assert (done.code, done.out, len(server.requests)) == (2, "", 0)
    assert says in done.err and len(done.err.splitlines()) == 1


def test_a_damaged_optimised_judge_is_not_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "optimized_judge.json"
    write_judge(path)
    path.write_text(path.read_text(encoding="utf-8").replace("strict", "kind"), encoding="utf-8")
    with pytest.raises(UserError, match="changed since it was made"):
        judge_at_work(tmp_path, None)


# ---------------------------------------------------------------------- what is kept


def test_a_judge_is_checked_on_items_that_it_never_saw(tmp_path: Path) -> None:
    items = [GoldItem(**row) for row in gold_set()]
    write_judge(tmp_path / "optimized_judge.json")
    optimised, built_in = judge_at_work(tmp_path, None), judge_at_work(tmp_path, BUILT_IN)
    assert {item.split for item in items_for_check(items, built_in)} == {"train", "dev"}
    assert {item.split for item in items_for_check(items, optimised)} == {"dev"}


def test_a_check_is_kept_for_the_very_same_settings(project: Project, serve: Serve) -> None:
    serve(Expert())
    assert project.evaluate("--check-judge").code == 0
    found = json.loads((project.data / CHECK).read_text(encoding="utf-8"))
    settings = check_settings(judge_at_work(project.data, None), ["m"], most=100, seed=0)
    inputs = {"gold_dataset.json": files.sha256(project.data / "gold_dataset.json")}
    assert kept_check(project.data, settings, inputs) == found
    changes = ({"seed": 1}, {"models": ["a"]}, {"judge_pairs": 99}, {"judge_digest": "x"})
    for change in (*changes, {"pass_score": 0.5}):
        assert kept_check(project.data, settings | change, inputs) is None
    assert kept_check(project.data, settings, {"gold_dataset.json": "1" * 64}) is None
    assert kept_check(project.root, settings, inputs) is None
    kept = (project.data / CHECK).read_bytes()
    for path in project.data.rglob("*.json"):  # edited
        if path.read_bytes() == kept:
            files.write_json(path, found | {"pairs": 7})
    assert kept_check(project.data, settings, inputs) is None


def test_the_models_order_makes_no_other_check(tmp_path: Path) -> None:
    judge = judge_at_work(tmp_path, None)
    one, other = (check_settings(judge, names, most=9, seed=0) for names in ("ab", "ba"))
    assert one == other and one["models"] == ["a", "b"]
