"""Finds the tokenizer among a model's files."""

from __future__ import annotations

from pathlib import Path

from shoal.gguf import GgufError, is_gguf, map_file, read_metadata
from shoal.tokenizer.definition import TokenizerDefinition
from shoal.tokenizer.errors import TokenizerError
from shoal.tokenizer.gguf_tokenizer import build_definition
from shoal.tokenizer.hf_files import load_folder


def load_definition(path: Path) -> TokenizerDefinition:
    """The tokenizer of `path`: a GGUF file, a tokenizer.json, or a folder with one of them.

    Raises TokenizerError naming what was found instead.
    """
    if path.is_dir():
        if (path / "tokenizer.json").is_file():
            return load_folder(path)
        return _load_gguf(_only_gguf(path))
    if path.name == "tokenizer.json":
        return load_folder(path.parent)
    if is_gguf(path):
        return _load_gguf(path)
    raise TokenizerError(f"{path}: neither a GGUF file, nor a tokenizer.json, nor a folder with one of them")


def _only_gguf(folder: Path) -> Path:
    names = sorted(entry.name for entry in folder.iterdir())
    found = [folder / name for name in names if name.endswith(".gguf")]
    if len(found) == 1:
        return found[0]
    if found:
        raise TokenizerError(f"{folder}: several GGUF files; name one of {', '.join(path.name for path in found)}")
    hint = (
        "; tokenizer.model alone is not supported: convert it to tokenizer.json" if "tokenizer.model" in names else ""
    )
    raise TokenizerError(
        f"{folder}: no tokenizer.json and no GGUF file among {', '.join(names[:20]) or 'no files'}{hint}"
    )


def _load_gguf(path: Path) -> TokenizerDefinition:
    try:
        with map_file(path) as data:
            metadata = read_metadata(path, data, keep_array=lambda key: key.startswith("tokenizer."))
        return build_definition(metadata)
    except GgufError as error:
        raise TokenizerError(str(error)) from error
    except TokenizerError as error:
        if str(path) in str(error):
            raise
        raise TokenizerError(f"{path}: {error}") from error
