"""The grammar of model sources."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.artifacts import ArtifactError, FileSource, HubSource, Source, WheelSource, parse_source

PIN = "ab" * 32


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("/models/a b", FileSource(Path("/models/a b"))),
        ("file:///models/a%20b", FileSource(Path("/models/a b"))),
        (f"file:///m.gguf#sha256={PIN}", FileSource(Path("/m.gguf"), PIN)),
        ("hf://org/model", HubSource("org/model")),
        ("hf://gpt2", HubSource("gpt2")),
        ("hf://gpt2@v1/model.gguf", HubSource("gpt2", "v1", "model.gguf")),
        ("hf://org/model@refs%2Fpr%2F1", HubSource("org/model", "refs/pr/1")),
        ("hf://org/model@abc/sub/m.gguf", HubSource("org/model", "abc", "sub/m.gguf")),
        (f"hf://org/model/m.gguf#sha256={PIN.upper()}", HubSource("org/model", "main", "m.gguf", PIN)),
        ("pypi://LLM_Small.x==1.0+cpu/pkg/m.gguf", WheelSource("llm-small-x", "1.0+cpu", "pkg/m.gguf")),
    ],
)
def test_sources_are_read(uri: str, expected: Source) -> None:
    assert parse_source(uri) == expected


@pytest.mark.parametrize(
    ("uri", "named"),
    [
        ("", "1 to 4096"),
        ("s3://bucket/key", "hf://"),
        ("file://host/x", "file:///path"),
        ("file:relative://x", "scheme"),
        ("hf://", "hf://org/model"),
        ("hf://org/../x", "hf://org/model"),
        ("hf://org/model/../../etc/passwd", "plain relative path"),
        ("hf://org/model/a%2F..%2Fb", "plain relative path"),
        (f"hf://org/model#sha256={PIN}", "one file"),
        ("pypi://project/file", "project==version"),
        ("pypi://project==1.0", "plain relative path"),
        ("pypi://project==1.0/a/../../b", "plain relative path"),
        ("pypi://project==1.0//etc/passwd", "plain relative path"),
        ("pypi://project==1.0/a\\b", "plain relative path"),
        ("pypi://project==1.0/a#md5=1", "unknown fragment"),
        ("pypi://project==1.0/a#sha256=12", "64 hex digits"),
        ("pypi://project==1.0/a?b", "no query"),
        ("~no-such-user/model", "~no-such-user is no user of this machine"),
    ],
)
def test_wrong_sources_are_refused_with_the_reason(uri: str, named: str) -> None:
    with pytest.raises(ArtifactError, match="(?i)" + named.replace("(", r"\(")):
        parse_source(uri)


def test_two_pins_must_agree() -> None:
    uri = f"pypi://p==1/f#sha256={PIN}"
    assert parse_source(uri, PIN) == parse_source(uri)
    with pytest.raises(ArtifactError, match="two different sha256"):
        parse_source(uri, "cd" * 32)


@given(st.text(max_size=60), st.sampled_from(["hf://o/m/", "pypi://p==1/", "hf://", "pypi://"]))
def test_no_text_reaches_outside_of_a_folder(text: str, prefix: str) -> None:
    try:
        source = parse_source(prefix + text)
    except ArtifactError:
        return
    inner = source.member if isinstance(source, WheelSource) else getattr(source, "filename", None)
    if inner is not None:
        root = Path("/root/of/cache")
        assert Path(root, inner).resolve().is_relative_to(root)
        assert not Path(inner).is_absolute()
