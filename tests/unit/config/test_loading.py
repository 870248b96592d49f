"""Where a setting may come from, which one wins, and what a wrong one says."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import pytest
from msgspec import Meta

from shoal.config import ConfigError, describe, load, option


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Settings of a test."""

    model: str = option(help="Where the model is.")
    port: Annotated[int, Meta(ge=0, le=65535)] = option(50051, "Port to listen on.")
    dtype: Literal["auto", "float32"] = option("auto", "Type of the weights.")
    trace: bool = option(False, "Whether to trace.")
    token: str = option("", "A secret.", secret=True)


def build(*argv: str, **environ: str) -> Settings:
    return load(Settings, program="test", argv=["--model", "m", *argv], environ=environ)


def test_precedence_is_flag_environment_file_default(tmp_path: Path) -> None:
    file = tmp_path / "settings.toml"
    file.write_text('port = 1\ndtype = "float32"\ntrace = true\n')
    assert build().port == 50051
    assert build("--config", str(file)).port == 1
    assert build(SHOAL_CONFIG=str(file), SHOAL_PORT="2").port == 2
    settings = build("--config", str(file), "--port", "3", "--no-trace", SHOAL_PORT="2")
    assert (settings.port, settings.dtype, settings.trace) == (3, "float32", False)


@pytest.mark.parametrize(
    ("argv", "environ", "parts"),
    [
        (["--port", "70000"], {}, ["port = '70000'", "command line", "65535"]),
        (["--port", "x"], {}, ["port = 'x'", "int"]),
        ([], {"SHOAL_DTYPE": "int3"}, ["dtype = 'int3'", "environment"]),
    ],
)
def test_a_wrong_value_is_refused_with_its_name_and_origin(
    argv: list[str], environ: dict[str, str], parts: list[str]
) -> None:
    with pytest.raises(ConfigError) as caught:
        build(*argv, **environ)
    for part in parts:
        assert part in str(caught.value)


def test_a_missing_setting_names_its_flag_and_variable() -> None:
    with pytest.raises(ConfigError, match=r"--model.*SHOAL_MODEL"):
        load(Settings, program="test", argv=[], environ={})


def test_an_unknown_key_in_a_file_is_refused_with_a_suggestion(tmp_path: Path) -> None:
    file = tmp_path / "settings.toml"
    file.write_text("prot = 1\n")
    with pytest.raises(ConfigError, match=r"unknown setting 'prot'; did you mean 'port'"):
        build("--config", str(file))


def test_an_unreadable_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"absent\.toml"):
        build("--config", str(tmp_path / "absent.toml"))


def test_an_unknown_flag_is_refused() -> None:
    with pytest.raises(SystemExit) as caught:
        build("--prot", "1")
    assert caught.value.code == 2


def test_secrets_are_masked_when_shown_and_when_wrong() -> None:
    assert describe(build("--token", "hunter2"))["token"] == "***"
    assert describe(build())["token"] == ""
