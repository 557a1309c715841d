"""Settings: each has one name in three spellings, `qdrant_path`, `QO_QDRANT_PATH`, `--qdrant-path`.

Defaults, then `.env`, then the environment, then flags; the later wins. Read by scripts only: a
host application has a `config` of its own, so nothing that hosts import may import this one.
"""

from __future__ import annotations

import argparse
import difflib
import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError

from question_optimizer.errors import UserError

if TYPE_CHECKING:
    from question_optimizer.chunk_store import ChunkStore
    from question_optimizer.providers import LLMClientConfig

PREFIX = "QO_"
DEFAULTS = {
    "qdrant_path": None,
    "qdrant_url": None,
    "qdrant_api_key": None,
    "collection": None,
    "data_dir": "data",
    "personas_file": "data/personas.json",  # or the shipped one, where that does not exist
    "providers_file": "llm_providers.toml",
    "limits_url": None,
    "embedding_model": "all-MiniLM-L6-v2",
    "seed": 0,
    "rehearsal": False,
}
SECRETS = {"qdrant_api_key", "limits_url"}  # an address may hold a password


class Origin(NamedTuple):
    """A setting's raw value and where it came from."""

    value: object
    source: str


class Settings(BaseModel):
    """Every setting, typed. `environ` (where account keys are looked up) is never shown."""

    model_config = ConfigDict(extra="forbid")

    qdrant_path: Path | None
    qdrant_url: str | None
    qdrant_api_key: SecretStr | None
    collection: str | None
    data_dir: Path
    personas_file: Path
    providers_file: Path
    limits_url: SecretStr | None
    embedding_model: str
    seed: int = Field(ge=0)
    rehearsal: bool
    environ: dict[str, str] = Field(default={}, repr=False, exclude=True)

    def secret_of(self, name: Literal["qdrant_api_key", "limits_url"]) -> str | None:
        """A setting that is never shown."""
        secret: SecretStr | None = getattr(self, name)
        return secret.get_secret_value() if secret else None


def load_settings(args: argparse.Namespace, environ: Mapping[str, str] | None = None) -> Settings:
    """The typed settings for a parsed command line; UserError naming a bad or unknown setting.

    With `--print-config` it prints every value and where it came from, and exits.
    """
    environ = dict(os.environ if environ is None else environ)
    dotenv = _read_dotenv(Path(".env"))
    chosen = _chosen(args, environ, dotenv)
    own = Path(str(chosen["data_dir"].value)) / "personas.json"
    if chosen["personas_file"].source == "default" and own.is_file():
        chosen["personas_file"] = Origin(own, "default, found in data_dir")
    elif chosen["personas_file"].source == "default" and not Path("data/personas.json").is_file():
        shipped = Path(__file__).parent / "data" / "personas.json"
        chosen["personas_file"] = Origin(shipped, "default, as shipped")
    try:
        settings = Settings.model_validate(
            {name: origin.value for name, origin in chosen.items()}
            | {"environ": {**dotenv, **environ}}
        )
    except ValidationError as error:
        first = error.errors(include_input=False)[0]
        name = str(first["loc"][0]) if first["loc"] else "settings"
        source = chosen[name].source if name in chosen else "settings"
        raise UserError(f"{name} (from {source}): {first['msg']}") from error
    if getattr(args, "print_config", False):
        _print_config(settings, chosen)
        sys.exit(0)
    return settings


def accounts_of(settings: Settings) -> list[LLMClientConfig]:
    """The LLM accounts to use: the rehearsal's where asked for, the providers file's otherwise."""
    from question_optimizer.providers import load_providers, rehearsal_account

    if settings.rehearsal:
        return [rehearsal_account()]
    return load_providers(settings.providers_file, settings.environ)


def store_of(
    settings: Settings, *, via_client: bool = False, even_if_locked: bool = False
) -> ChunkStore:
    """The collection that the settings name; UserError where it cannot be read."""
    from question_optimizer.chunk_store import open_store

    return open_store(
        path=settings.qdrant_path,
        url=settings.qdrant_url,
        api_key=settings.secret_of("qdrant_api_key"),
        collection=settings.collection,
        via_client=via_client,
        even_if_locked=even_if_locked,
    )


def _chosen(
    args: argparse.Namespace, environ: Mapping[str, str], dotenv: Mapping[str, str]
) -> dict[str, Origin]:
    chosen = {name: Origin(value, "default") for name, value in DEFAULTS.items()}
    for source, found in ((".env", dotenv), ("environment", environ)):
        for key, value in found.items():
            if not key.upper().startswith(PREFIX):
                continue
            name = key.upper().removeprefix(PREFIX).lower()
            if name not in DEFAULTS:
                near = difflib.get_close_matches(name, DEFAULTS, n=1)
                hint = (
                    f"did you mean {PREFIX}{near[0].upper()}?"
                    if near
                    else (f"known are {', '.join(PREFIX + known.upper() for known in DEFAULTS)}")
                )
                raise UserError(f"{source}: unknown setting {key}; {hint}")
            if value != "":
                chosen[name] = Origin(value, f"{source} {key}")
    for name in DEFAULTS:
        flag = getattr(args, name, None)
        if flag is not None:
            chosen[name] = Origin(flag, f"flag --{name.replace('_', '-')}")
    for name, other in (("qdrant_path", "qdrant_url"), ("qdrant_url", "qdrant_path")):
        if chosen[name].source.startswith("flag") and not chosen[other].source.startswith("flag"):
            chosen[other] = Origin(None, f"overruled by {chosen[name].source}")
    return chosen


def _read_dotenv(path: Path) -> dict[str, str]:
    if not path.is_file():
        return {}
    from dotenv import dotenv_values

    try:
        found = dotenv_values(path)
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text ({error.reason}); save it as UTF-8") from error
    return {key: value for key, value in found.items() if value is not None}


def _print_config(settings: Settings, chosen: Mapping[str, Origin]) -> None:
    for name, origin in chosen.items():
        value = getattr(settings, name)
        shown = "********" if name in SECRETS and value is not None else value
        if name == "qdrant_url" and value:
            shown = re.sub(r"//[^/@]*@", "//********@", str(value))
        print(f"{name:16} {shown!s:40} {origin.source}")
