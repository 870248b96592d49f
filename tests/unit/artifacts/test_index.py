"""pip's configuration, as far as it says where packages come from."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from shoal.artifacts import ArtifactError
from shoal.artifacts.index import DEFAULT_INDEX, IndexConfig, make_client, read_pip_config


def test_environment_beats_files(tmp_path: Path) -> None:
    path = tmp_path / "pip.conf"
    path.write_text(
        "[global]\nindex-url = http://file/simple\nextra-index-url =\n  http://a/\n  http://b/\ncert = /c\n"
    )
    environ = {"PIP_CONFIG_FILE": str(path), "XDG_CONFIG_HOME": str(tmp_path)}
    assert read_pip_config(environ) == IndexConfig(("http://file/simple", "http://a/", "http://b/"), "/c")
    environ["PIP_INDEX_URL"] = "http://env/simple"
    environ["PIP_EXTRA_INDEX_URL"] = "http://x/ http://y/"
    environ["PIP_PROXY"] = "http://proxy:3128"
    assert read_pip_config(environ).proxy == "http://proxy:3128"
    assert read_pip_config(environ).index_urls == ("http://env/simple", "http://x/", "http://y/")


def test_the_default_is_pypi(tmp_path: Path) -> None:
    assert read_pip_config({"PIP_CONFIG_FILE": os.devnull}) == IndexConfig((DEFAULT_INDEX,), None)


def test_files_that_do_not_parse_are_skipped(tmp_path: Path) -> None:
    path = tmp_path / "pip.conf"
    path.write_text("index-url without a section")
    environ = {"PIP_CONFIG_FILE": str(path), "PIP_INDEX_URL": "http://env/"}
    assert read_pip_config(environ).index_urls == ("http://env/",)


def test_a_missing_certificate_bundle_is_named(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="no-such-bundle"):
        make_client(IndexConfig(ca_bundle=str(tmp_path / "no-such-bundle")))
