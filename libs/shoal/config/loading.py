"""Fills a frozen dataclass from flags, environment, file and defaults. See the package docstring."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import os
import sys
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import msgspec

_C = TypeVar("_C")
ENV_PREFIX = "SHOAL_"
MAX_FILE_BYTES = 1 << 20


class ConfigError(Exception):
    """A setting is unknown, missing or out of range; the message names it and where it came from."""


def option(default: Any = dataclasses.MISSING, help: str = "", *, secret: bool = False) -> Any:
    """Declares a field of a configuration dataclass. Without a default the setting is required."""
    metadata = {"help": help, "secret": secret}
    return dataclasses.field(default=default, metadata=metadata)


def load(
    kind: type[_C],
    *,
    program: str,
    argv: Sequence[str] | None = None,
    environ: Mapping[str, str] | None = None,
) -> _C:
    """Builds a `kind` from `argv` (default: the process's), `environ` and the file they name.

    Raises ConfigError; `--help` prints the settings and exits 0, an unknown flag exits 2, as argparse does.
    """
    environ = os.environ if environ is None else environ
    fields = {f.name: f for f in dataclasses.fields(typing.cast(Any, kind))}
    flags = _parse_flags(kind, fields, program, argv)
    path = flags.pop("config", None) or environ.get(f"{ENV_PREFIX}CONFIG")
    layers: list[tuple[str, dict[str, Any]]] = []
    if path:
        layers.append((path, _read_file(Path(path), fields)))
    layers.append(("environment", {n: environ[k] for n in fields if (k := ENV_PREFIX + n.upper()) in environ}))
    layers.append(("command line", flags))
    return _convert(kind, fields, layers)


def _parse_flags(kind: type, fields: dict[str, Any], program: str, argv: Sequence[str] | None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(prog=program, description=kind.__doc__, allow_abbrev=False)
    parser.add_argument(
        "--config", help="TOML file of settings, keys spelt like the flags with _ for -", metavar="FILE"
    )
    hints = typing.get_type_hints(kind)
    for name, field in fields.items():
        required = field.default is dataclasses.MISSING
        suffix = " (required)" if required else f" (default: {field.default!r})"
        text = (field.metadata.get("help", "") + suffix).replace("%", "%%")
        action = argparse.BooleanOptionalAction if hints[name] is bool else "store"
        parser.add_argument(f"--{name.replace('_', '-')}", action=action, default=None, help=text)
    parsed = vars(parser.parse_args(argv))
    return {name: value for name, value in parsed.items() if value is not None}


def _read_file(path: Path, fields: dict[str, Any]) -> dict[str, Any]:
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise ConfigError(f"{path}: larger than {MAX_FILE_BYTES} bytes, which no settings file is")
        values = msgspec.toml.decode(path.read_bytes())
    except (OSError, msgspec.DecodeError) as error:
        raise ConfigError(f"{path}: {error}") from error
    for key in values:
        if key not in fields:
            close = difflib.get_close_matches(key, fields, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(sorted(fields))}"
            raise ConfigError(f"{path}: unknown setting {key!r}{hint}")
    return dict(values)


def _convert(kind: type[_C], fields: dict[str, Any], layers: list[tuple[str, dict[str, Any]]]) -> _C:
    values: dict[str, Any] = {}
    origin: dict[str, str] = {}
    for source, layer in layers:
        values |= layer
        origin |= dict.fromkeys(layer, source)
    for name, field in fields.items():
        if name not in values and field.default is dataclasses.MISSING:
            flag = name.replace("_", "-")
            raise ConfigError(f"{name} is required: give --{flag} or set {ENV_PREFIX}{name.upper()}")
    hints = typing.get_type_hints(kind, include_extras=True)
    converted: dict[str, Any] = {}
    for name, value in values.items():
        try:
            converted[name] = msgspec.convert(value, hints[name], strict=False)
        except msgspec.ValidationError as error:
            shown = "***" if fields[name].metadata.get("secret") else repr(value)
            raise ConfigError(f"{name} = {shown} (from {origin[name]}): {error}") from error
    return kind(**converted)


def load_or_exit(kind: type[_C], *, program: str) -> _C:
    """`load` for a `main`: prints the problem and exits 2 instead of raising."""
    try:
        return load(kind, program=program)
    except ConfigError as error:
        print(f"{program}: {error}", file=sys.stderr)
        raise SystemExit(2) from None
