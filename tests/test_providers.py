"""Accounts: what a TOML file may say, and what connections an account opens."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from conftest import ROOT
from question_optimizer.errors import USAGE, UserError
from question_optimizer.providers import (
    REQUEST_TIMEOUT_SECONDS,
    ROLES,
    SETUP_HINT,
    LLMClientConfig,
    load_providers,
    rehearsal_account,
)

KEY = "a1b2c3d4e5f6plainkey"  # no prefix that gives it away as a key

GOOD = """
[[accounts]]
name = "first"
model = "small"
api_key_env = "FIRST_KEY"
"""


def write(folder: Path, text: str | bytes) -> Path:
    path = folder / "llm_providers.toml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def test_accounts_carry_what_the_file_says_and_the_key_from_the_environment(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        GOOD
        + """
[[accounts]]
name = "second"
kind = "anthropic"
model = "large"
base_url = "http://127.0.0.1:9"
api_key_env = "SECOND_KEY"
rpm_limit = 50
tpm_limit = 40000.5
daily_limit = 1000
concurrency = 4
input_price = 1.0
output_price = 5
roles = ["judge"]

[[accounts]]
name = "local"
model = "qwen3:8b"
base_url = "http://localhost:11434/v1"
""",
    )
    first, second, local = load_providers(path, {"FIRST_KEY": " key-1\n", "SECOND_KEY": "key-2"})
    assert first == LLMClientConfig(name="first", model="small", api_key="key-1")
    assert (first.kind, first.concurrency, first.roles, first.priced) == ("openai", 1, ROLES, False)
    assert second == LLMClientConfig(
        name="second",
        kind="anthropic",
        model="large",
        base_url="http://127.0.0.1:9",
        api_key="key-2",
        rpm_limit=50,
        tpm_limit=40000.5,
        daily_limit=1000,
        concurrency=4,
        input_price=1.0,
        output_price=5.0,
        roles=("judge",),
    )
    assert second.cost(1_000_000, 200_000) == 2.0
    assert (local.api_key, local.base_url) == ("none", "http://localhost:11434/v1")


def test_the_example_file_works_once_its_keys_are_set() -> None:
    keys = {"OPENAI_API_KEY": "k1", "ANTHROPIC_API_KEY": "k2"}
    accounts = load_providers(ROOT / "llm_providers.example.toml", keys)
    assert [(a.name, a.kind, a.roles, a.priced) for a in accounts] == [
        ("openai-1", "openai", ("student", "teacher"), True),
        ("claude-1", "anthropic", ("judge",), True),
    ]


def test_limits_and_how_to_call_are_carried_as_the_file_says_them(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        of_account("""
input_tpm_limit = 30000
output_tpm_limit = 8000.5
daily_token_limit = 2000000
reset_zone = "America/Los_Angeles"
token_rule = "reserved"
fixed_limits = true
weight = 2.5
timeout = 30
transport = "sdk"
concurrency = "learn"
"""),
    )
    [account] = load_providers(path, {"FIRST_KEY": KEY})
    assert account == LLMClientConfig(
        name="first",
        model="small",
        api_key=KEY,
        input_tpm_limit=30000.0,
        output_tpm_limit=8000.5,
        daily_token_limit=2_000_000,
        reset_zone="America/Los_Angeles",
        token_rule="reserved",
        fixed_limits=True,
        weight=2.5,
        timeout=30.0,
        transport="sdk",
        concurrency=None,
    )


def test_what_the_file_leaves_out_is_no_limit_and_one_call_at_once(tmp_path: Path) -> None:
    [account] = load_providers(write(tmp_path, GOOD), {"FIRST_KEY": KEY})
    limits = (account.rpm_limit, account.tpm_limit, account.daily_limit)
    assert limits == (None, None, None)
    limits = (account.input_tpm_limit, account.output_tpm_limit, account.daily_token_limit)
    assert limits == (None, None, None)
    assert (account.reset_zone, account.fixed_limits, account.weight) == ("UTC", False, 1.0)
    assert (account.timeout, account.transport) == (REQUEST_TIMEOUT_SECONDS, "direct")
    assert account.concurrency == 1


@pytest.mark.parametrize(
    ("lines", "rule"),
    [
        ("", "reserved"),  # OpenAI itself
        ('base_url = "https://api.openai.com/v1"', "reserved"),
        ('base_url = "https://eu.api.openai.com/v1"', "reserved"),
        ('base_url = "https://us.openai.azure.com/openai/v1"', "reserved"),
        ('base_url = "https://api.groq.com/openai/v1"', "used"),
        ('base_url = "http://localhost:11434/v1"', "used"),
        ('kind = "anthropic"', "used"),
        ('token_rule = "used"', "used"),
        ('base_url = "http://localhost:11434/v1"\ntoken_rule = "reserved"', "reserved"),
    ],
)
def test_how_tokens_count_follows_the_provider_unless_the_file_says_otherwise(
    tmp_path: Path, lines: str, rule: str
) -> None:
    [account] = load_providers(write(tmp_path, of_account(lines)), {"FIRST_KEY": KEY})
    assert account.token_rule == rule


@pytest.mark.parametrize("zone", ["UTC", "Europe/Berlin", "America/Los_Angeles", "Etc/GMT+8"])
def test_every_zone_that_the_system_knows_may_end_a_day(tmp_path: Path, zone: str) -> None:
    path = write(tmp_path, of_account(f'reset_zone = "{zone}"'))
    [account] = load_providers(path, {"FIRST_KEY": KEY})
    assert account.reset_zone == zone


def test_the_key_is_in_no_repr() -> None:
    account = LLMClientConfig(name="it", model="m", api_key=KEY)
    assert KEY not in repr(account) + str(account) + f"{account}" + repr([account])
    assert repr(account) == repr(LLMClientConfig(name="it", model="m", api_key="another"))


def of_account(line: str, *, and_then: str = "") -> str:
    return GOOD + line + "\n" + and_then


EXAMPLE = "see llm_providers.example.toml"
WRONG_FILES = {
    "missing": (None, "no LLM account: {path} does not exist; " + SETUP_HINT),
    "not TOML": ("[[accounts", "{path}: not TOML (…); " + EXAMPLE),
    "not text": (b"name = '\xff'", "{path}: not TOML (…); " + EXAMPLE),
    "empty": ("", "{path}: no [[accounts]]; " + SETUP_HINT),
    "one table": ('[accounts]\nname = "a"', "{path}: no [[accounts]]; " + SETUP_HINT),
    "empty list": ("accounts = []", "{path}: no [[accounts]]; " + SETUP_HINT),
    "other key": (
        of_account("rpm = 60"),
        "{path}: account 1: rpm: unknown; " + EXAMPLE,
    ),
    "second account": (
        of_account("", and_then='[[accounts]]\nname = "b"\nmodel = "m"\nlimit = 1\n'),
        "{path}: account 2: limit: unknown, did you mean tpm_limit; " + EXAMPLE,
    ),
    "key in file": (
        of_account(f'api_key = "{KEY}"'),
        "{path}: account 1: a key has no place in this file; name its variable in api_key_env",
    ),
    "no name": (
        '[[accounts]]\nmodel = "m"',
        "{path}: account 1: name: Field required; " + EXAMPLE,
    ),
    "empty name": (
        '[[accounts]]\nname = ""\nmodel = "m"',
        "{path}: account 1: name: String should have at least 1 character; " + EXAMPLE,
    ),
    "no model": (
        '[[accounts]]\nname = "a"',
        "{path}: account 1: model: Field required; " + EXAMPLE,
    ),
    "kind": (
        of_account('kind = "gemini"'),
        "{path}: account 1: kind: Input should be 'openai' or 'anthropic'; " + EXAMPLE,
    ),
    "rpm_limit": (
        of_account("rpm_limit = 0"),
        "{path}: account 1: rpm_limit: Input should be greater than 0; " + EXAMPLE,
    ),
    "tpm_limit": (
        of_account("tpm_limit = nan"),
        "{path}: account 1: tpm_limit: Input should be greater than 0; " + EXAMPLE,
    ),
    "daily_limit": (
        of_account("daily_limit = -5"),
        "{path}: account 1: daily_limit: Input should be greater than 0; " + EXAMPLE,
    ),
    "half a request": (
        of_account("daily_limit = 2.5"),
        "{path}: account 1: daily_limit: Input should be a valid integer, "
        "got a number with a fractional part; " + EXAMPLE,
    ),
    "concurrency": (
        of_account("concurrency = 0"),
        '{path}: account 1: concurrency: must be a number from 1, or "learn"; ' + EXAMPLE,
    ),
    "input_tpm_limit of nothing": (
        of_account("input_tpm_limit = 0"),
        "{path}: account 1: input_tpm_limit: Input should be greater than 0; " + EXAMPLE,
    ),
    "output_tpm_limit of nothing": (
        of_account("output_tpm_limit = 0"),
        "{path}: account 1: output_tpm_limit: Input should be greater than 0; " + EXAMPLE,
    ),
    "daily_token_limit of nothing": (
        of_account("daily_token_limit = 0"),
        "{path}: account 1: daily_token_limit: Input should be greater than 0; " + EXAMPLE,
    ),
    "weight of nothing": (
        of_account("weight = 0"),
        "{path}: account 1: weight: Input should be greater than 0; " + EXAMPLE,
    ),
    "timeout of nothing": (
        of_account("timeout = 0"),
        "{path}: account 1: timeout: Input should be greater than 0; " + EXAMPLE,
    ),
    "weight that is no number": (
        of_account("weight = nan"),
        "{path}: account 1: weight: Input should be greater than 0; " + EXAMPLE,
    ),
    "half a token": (
        of_account("daily_token_limit = 0.5"),
        "{path}: account 1: daily_token_limit: …; " + EXAMPLE,
    ),
    "no such zone": (
        of_account('reset_zone = "Mars/Olympus"'),
        "{path}: account 1: reset_zone: …; " + EXAMPLE,
    ),
    "a zone outside": (
        of_account('reset_zone = "../../etc/passwd"'),
        "{path}: account 1: reset_zone: …; " + EXAMPLE,
    ),
    "empty zone": (
        of_account('reset_zone = ""'),
        "{path}: account 1: reset_zone: …; " + EXAMPLE,
    ),
    "token rule": (
        of_account('token_rule = "guessed"'),
        "{path}: account 1: token_rule: Input should be 'used' or 'reserved'; " + EXAMPLE,
    ),
    "transport": (
        of_account('transport = "carrier pigeon"'),
        "{path}: account 1: transport: Input should be 'direct' or 'sdk'; " + EXAMPLE,
    ),
    "fixed limits": (
        of_account('fixed_limits = "perhaps"'),
        "{path}: account 1: fixed_limits: …; " + EXAMPLE,
    ),
    "what to learn": (
        of_account('concurrency = "guess"'),
        '{path}: account 1: concurrency: must be a number from 1, or "learn"; ' + EXAMPLE,
    ),
    "price": (
        of_account('input_price = "cheap"'),
        "{path}: account 1: input_price: Input should be a valid number, "
        "unable to parse string as a number; " + EXAMPLE,
    ),
    "role": (
        of_account('roles = ["student", "poet"]'),
        "{path}: account 1: roles.1: Input should be 'student', 'teacher' or 'judge'; " + EXAMPLE,
    ),
    "key for its variable": (
        GOOD.replace("FIRST_KEY", KEY),
        "{path}: account 'first': api_key_env must name a variable, in capitals",
    ),
    "variable unset": (
        GOOD.replace("FIRST", "OTHER"),
        "{path}: account 'first': OTHER_KEY is not set; "
        "set it in the environment or .env, remove the account, or use --rehearsal",
    ),
    "variable blank": (
        GOOD.replace("FIRST", "BLANK"),
        "{path}: account 'first': BLANK_KEY is not set; "
        "set it in the environment or .env, remove the account, or use --rehearsal",
    ),
    "nowhere to go": (
        '[[accounts]]\nname = "a"\nmodel = "m"',
        "{path}: account 'a': needs api_key_env, or base_url of a local server",
    ),
    "same name": (
        GOOD + GOOD,
        "{path}: account name 'first' occurs twice; edit the file",
    ),
    "no judge": (
        of_account('roles = ["student", "teacher"]'),
        "{path}: no account has role 'judge'; add it to an account's roles",
    ),
    "no roles": (
        of_account("roles = []"),
        "{path}: no account has role 'student'; add it to an account's roles",
    ),
}


@pytest.mark.parametrize(
    "case",
    WRONG_FILES,
)
def test_a_wrong_file_is_refused_in_one_line_that_says_what_to_do(
    tmp_path: Path, case: str
) -> None:
    text, message = WRONG_FILES[case]
    path = tmp_path / "llm_providers.toml" if text is None else write(tmp_path, text)
    with pytest.raises(UserError) as raised:
        load_providers(path, {"FIRST_KEY": KEY, "BLANK_KEY": "  "})
    said = str(raised.value)
    start, _, end = message.format(path=path).partition("…")
    assert said.startswith(start) and said.endswith(end) and (end or said == start), said
    assert raised.value.exit_code == USAGE
    assert "\n" not in said
    assert KEY not in said


def test_a_folder_in_the_files_place_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError) as raised:
        load_providers(tmp_path, {})
    assert str(raised.value) == f"{tmp_path}: cannot be read (Is a directory)"


def test_an_account_that_is_no_table_is_refused_without_our_own_class_names(tmp_path: Path) -> None:
    path = write(tmp_path, 'accounts = ["openai"]')
    with pytest.raises(UserError) as raised:
        load_providers(path, {})
    said = str(raised.value)
    assert said.startswith(f"{path}: account 1: ") and said.endswith(EXAMPLE)
    assert "_AccountEntry" not in said and ": :" not in said


# ---------------------------------------------------------------------- connections


@pytest.mark.parametrize("kind", ["openai", "anthropic"])
@pytest.mark.parametrize("opened", ["client", "session"])
def test_a_connection_belongs_to_its_loop_and_is_made_once_in_it(kind: Any, opened: str) -> None:
    config = LLMClientConfig("it", "m", kind=kind, base_url="http://127.0.0.1:9", api_key=KEY)

    async def connections() -> list[Any]:
        first, second = getattr(config, opened), getattr(config, opened)
        await config.aclose()
        third = getattr(config, opened)
        await config.aclose()
        return [first, second, third]

    first, second, after_closing = asyncio.run(connections())
    other_loop, _, _ = asyncio.run(connections())
    assert first is second
    assert len({id(made) for made in (first, after_closing, other_loop)}) == 3
    closed = [made.is_closed() if opened == "client" else made.closed for made in (first, second)]
    assert closed == [True, True]


async def test_closing_what_was_never_opened_is_nothing() -> None:
    await rehearsal_account().aclose()
    config = LLMClientConfig("it", "m", base_url="http://127.0.0.1:9", api_key=KEY)
    await config.aclose()
    await config.aclose()


def test_the_rehearsal_needs_no_key_and_costs_nothing() -> None:
    config = rehearsal_account()
    assert (config.api_key, config.kind, config.roles) == ("", "rehearsal", ROLES)
    assert config.priced
    assert config.cost(1e6, 1e6) == 0.0
