"""Settings: four layers, typed, traceable to where they came from, and silent about secrets."""

from __future__ import annotations

from pathlib import Path

import pytest

from config import Settings, accounts_of, load_settings
from conftest import ROOT
from question_optimizer.cli import phase_parser, run
from question_optimizer.errors import UserError

KEY = "qdrant-secret-1234567890"
OPENAI_KEY = "sk-secret-0987654321"


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def load(*flags: str, dotenv: str = "", **environ: str) -> Settings:
    if dotenv:
        Path(".env").write_text(dotenv, encoding="utf-8")
    return load_settings(phase_parser("doc").parse_args(list(flags)), environ)


def test_defaults_are_those_the_readme_tells() -> None:
    settings = load()
    assert settings.model_dump() == {
        "qdrant_path": None,
        "qdrant_url": None,
        "qdrant_api_key": None,
        "collection": None,
        "data_dir": Path("data"),
        "personas_file": ROOT / "data/personas.json",
        "providers_file": Path("llm_providers.toml"),
        "limits_url": None,
        "embedding_model": "all-MiniLM-L6-v2",
        "seed": 0,
        "rehearsal": False,
    }


FLAGS = ["--seed", "4"]
ENVIRON = {"QO_SEED": "3"}
DOTENV = "QO_SEED=2\n"


@pytest.mark.parametrize(
    ("flags", "environ", "dotenv", "seed"),
    [
        ([], {}, "", 0),
        ([], {}, DOTENV, 2),
        ([], ENVIRON, "", 3),
        ([], ENVIRON, DOTENV, 3),
        (FLAGS, {}, DOTENV, 4),
        (FLAGS, ENVIRON, DOTENV, 4),
        (["--seed", "0"], ENVIRON, DOTENV, 0),
        ([], {"QO_SEED": ""}, DOTENV, 2),
        ([], {"QO_SEED": ""}, "QO_SEED=\n", 0),
        ([], {"qo_seed": "5"}, DOTENV, 5),
    ],
)
def test_flags_win_over_environment_over_dotenv_over_defaults(
    flags: list[str], environ: dict[str, str], dotenv: str, seed: int
) -> None:
    assert load(*flags, dotenv=dotenv, **environ).seed == seed


def test_every_setting_can_be_set_in_each_layer() -> None:
    values = {
        "qdrant_path": "folder",
        "qdrant_url": "http://localhost:6333",
        "collection": "docs",
        "data_dir": "elsewhere",
        "personas_file": "p.json",
        "providers_file": "l.toml",
        "embedding_model": "model",
        "seed": "9",
    }
    flags = [part for n, v in values.items() for part in (f"--{n.replace('_', '-')}", v)]
    by_flag = load(*flags, "--rehearsal")
    by_environment = load(**{f"QO_{n.upper()}": v for n, v in values.items()}, QO_REHEARSAL="true")
    lines = "".join(f"QO_{n.upper()}={v}\n" for n, v in values.items())
    by_dotenv = load(dotenv=f"# a comment\n{lines}QO_REHEARSAL=1\n")
    assert by_flag.model_dump() == by_environment.model_dump() == by_dotenv.model_dump()
    assert (by_flag.data_dir, by_flag.seed, by_flag.rehearsal) == (Path("elsewhere"), 9, True)


@pytest.mark.parametrize(
    ("environ", "dotenv", "message"),
    [
        (
            {"QO_COLECTION": "x"},
            "",
            "environment: unknown setting QO_COLECTION; did you mean QO_COLLECTION?",
        ),
        (
            {},
            "QO_QDRANT_PTH=x\n",
            ".env: unknown setting QO_QDRANT_PTH; did you mean QO_QDRANT_PATH?",
        ),
        (
            {"QO_XYZZY": "x"},
            "",
            "environment: unknown setting QO_XYZZY; known are QO_QDRANT_PATH, QO_QDRANT_URL, "
            "QO_QDRANT_API_KEY, QO_COLLECTION, QO_DATA_DIR, QO_PERSONAS_FILE, QO_PROVIDERS_FILE, "
            "QO_LIMITS_URL, QO_EMBEDDING_MODEL, QO_SEED, QO_REHEARSAL",
        ),
        ({"QO_ENVIRON": "x"}, "", "environment: unknown setting QO_ENVIRON; "),
        (
            {"QO_SEED": "abc"},
            "",
            "seed (from environment QO_SEED): Input should be a valid integer, "
            "unable to parse string as an integer",
        ),
        (
            {},
            "QO_SEED=1.5\n",
            "seed (from .env QO_SEED): Input should be a valid integer, "
            "unable to parse string as an integer",
        ),
        (
            {"QO_SEED": "-1"},  # numpy's generators know none
            "",
            "seed (from environment QO_SEED): Input should be greater than or equal to 0",
        ),
        (
            {"QO_REHEARSAL": "maybe"},
            "",
            "rehearsal (from environment QO_REHEARSAL): Input should be a valid boolean, "
            "unable to interpret input",
        ),
    ],
)
def test_a_wrong_setting_is_named_with_its_source(
    environ: dict[str, str], dotenv: str, message: str
) -> None:
    with pytest.raises(UserError) as refusal:
        load(dotenv=dotenv, **environ)
    assert str(refusal.value).startswith(message)
    assert refusal.value.exit_code == 2


def test_a_dotenv_that_is_no_utf8_is_refused_in_one_line() -> None:
    Path(".env").write_text("QO_SEED=1\n", encoding="utf-16")  # as PowerShell's `>` writes it
    with pytest.raises(UserError) as refusal:
        load()
    assert str(refusal.value).startswith(".env: not UTF-8 text (")


@pytest.mark.parametrize("flags", [["--seed", "abc"], ["--seed", "1.5"], ["--colection", "x"]])
def test_a_wrong_flag_ends_with_usage_and_exit_code_2(
    flags: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        load(*flags)
    assert end.value.code == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert ("invalid int value: " in said.err) or ("unrecognized arguments: " in said.err)


def test_other_programs_variables_are_none_of_ours() -> None:
    assert load(PATH="/bin", QOSEED="x", MY_QO_SEED="x", SEED="7").seed == 0


# ---------------------------------------------------------------------- showing


def test_print_config_shows_each_value_and_its_origin_and_exits(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as end:
        load(
            "--print-config",
            "--collection",
            "docs",
            dotenv="QO_SEED=2\n",
            QO_DATA_DIR="elsewhere",
            QO_QDRANT_API_KEY=KEY,
        )
    assert end.value.code == 0
    said = capsys.readouterr()
    rows = {line.split(None, 1)[0]: line.split(None, 2)[1:] for line in said.out.splitlines()}
    assert rows == {
        "qdrant_path": ["None", "default"],
        "qdrant_url": ["None", "default"],
        "qdrant_api_key": ["********", "environment QO_QDRANT_API_KEY"],
        "collection": ["docs", "flag --collection"],
        "data_dir": ["elsewhere", "environment QO_DATA_DIR"],
        "personas_file": [str(ROOT / "data/personas.json"), "default, as shipped"],
        "providers_file": ["llm_providers.toml", "default"],
        "limits_url": ["None", "default"],
        "embedding_model": ["all-MiniLM-L6-v2", "default"],
        "seed": ["2", ".env QO_SEED"],
        "rehearsal": ["False", "default"],
    }
    assert KEY not in said.out + said.err


def test_secrets_are_in_no_repr_and_no_dump() -> None:
    settings = load(QO_QDRANT_API_KEY=KEY, dotenv=f"OPENAI_API_KEY={OPENAI_KEY}\n")
    assert settings.secret_of("qdrant_api_key") == KEY
    assert settings.environ["OPENAI_API_KEY"] == OPENAI_KEY
    for shown in (
        repr(settings),
        str(settings),
        str(settings.model_dump()),
        settings.model_dump_json(),
        f"{settings.qdrant_api_key}",
    ):
        assert KEY not in shown
        assert OPENAI_KEY not in shown
    assert load().secret_of("qdrant_api_key") is None


def test_an_account_finds_its_key_in_dotenv_and_shows_it_nowhere() -> None:
    Path("llm_providers.toml").write_text(
        '[[accounts]]\nname = "a"\nmodel = "m"\napi_key_env = "OPENAI_API_KEY"\n'
    )
    (account,) = accounts_of(load(dotenv=f"OPENAI_API_KEY={OPENAI_KEY}\n"))
    assert account.api_key == OPENAI_KEY
    assert OPENAI_KEY not in repr(account)
    (other,) = accounts_of(load(OPENAI_API_KEY="sk-of-the-environment"))
    assert other.api_key == "sk-of-the-environment"


def test_a_wrong_setting_beside_a_secret_does_not_show_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def main() -> int:
        load(QO_QDRANT_API_KEY=KEY, QO_SEED="x", OPENAI_API_KEY=OPENAI_KEY)
        return 0

    assert run(main) == 2
    said = capsys.readouterr()
    assert "seed (from environment QO_SEED): Input should be a valid integer" in said.err
    assert KEY not in said.err
    assert OPENAI_KEY not in said.err


def test_without_an_account_and_without_rehearsal_the_way_out_is_named() -> None:
    with pytest.raises(UserError) as refusal:
        accounts_of(load())
    said = str(refusal.value)
    assert said.startswith("no LLM account: llm_providers.toml does not exist; copy ")
    assert "--rehearsal" in said
    (stand_in,) = accounts_of(load("--rehearsal"))
    assert stand_in.kind == "rehearsal"


def test_personas_in_the_data_dir_come_before_the_shipped_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    args = phase_parser("").parse_args(["--data-dir", "mine"])
    assert load_settings(args, {}).personas_file == ROOT / "data" / "personas.json"
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "personas.json").write_text("[]")
    assert load_settings(args, {}).personas_file == Path("data/personas.json")
    (tmp_path / "mine" / "personas.json").write_text("[]")
    assert load_settings(args, {}).personas_file == Path("mine/personas.json")
