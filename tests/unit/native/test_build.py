"""Compiling on first use: the cache, and what is said when it cannot be done."""

from __future__ import annotations

import ctypes
import dataclasses
import itertools
import stat
import sys
from pathlib import Path

import pytest

from shoal import native
from shoal.native import (
    Library,
    NativeBuildError,
    build,
    cache_directory,
    find_compiler,
    find_prebuilt,
    prebuilt_path,
)
from shoal.native.prebuilding import main, prebuild
from shoal.native.targets import TARGETS, cpu_features, fitting, targets_of_machine


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SHOAL_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache" / "some"


@pytest.fixture
def library(tmp_path: Path) -> Library:
    (tmp_path / "answer.h").write_text("#define ANSWER 42\n")
    (tmp_path / "answer.c").write_text('#include "answer.h"\nint answer(void) { return ANSWER; }\n')
    return Library("answer", "some", tmp_path, ("answer.c",), ("answer.h",))


def has_compiler() -> bool:
    try:
        find_compiler()
    except NativeBuildError:
        return False
    return True


needs_compiler = pytest.mark.skipif(not has_compiler(), reason="no C compiler here")


@needs_compiler
def test_builds_once_and_then_comes_from_the_cache(
    own_cache: Path, library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = build(library)
    assert path.parent == own_cache
    assert ctypes.CDLL(str(path)).answer() == 42
    assert stat.S_IMODE(own_cache.stat().st_mode) == 0o700
    assert [p.name for p in own_cache.iterdir()] == [path.name]

    def refuse(*args: object) -> None:
        raise AssertionError("compiled again")

    monkeypatch.setattr(native, "compile_library", refuse)
    assert build(library) == path


@needs_compiler
def test_a_changed_header_compiles_again(own_cache: Path, library: Library) -> None:
    first = build(library)
    (library.folder / "answer.h").write_text("#define ANSWER 43\n")
    second = build(library)
    assert second != first
    assert ctypes.CDLL(str(second)).answer() == 43


def test_no_compiler_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    with pytest.raises(NativeBuildError, match=r"there is no C compiler .*apt-get install gcc"):
        find_compiler()


def test_named_compiler_that_does_not_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "no-such-compiler -pipe")
    with pytest.raises(NativeBuildError, match=r"named by CC .no-such-compiler -pipe. does not exist"):
        find_compiler()


def test_failing_compiler_is_reported(
    own_cache: Path, library: Library, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    script = tmp_path / "broken"
    script.write_text("#!/bin/sh\necho out of order >&2\nexit 3\n")
    script.chmod(0o700)
    monkeypatch.setenv("CC", str(script))
    with pytest.raises(NativeBuildError, match=r"failed with status 3: out of order"):
        build(library)
    assert list(own_cache.iterdir()) == []


def test_cache_that_others_can_write_is_refused(own_cache: Path) -> None:
    own_cache.mkdir(parents=True)
    own_cache.chmod(0o777)
    with pytest.raises(NativeBuildError, match=r"can be written by another user"):
        cache_directory("some")


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Of an image; the folder of its libraries."""
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "environment"))
    return tmp_path / "environment" / "lib" / "shoal-native"


@needs_compiler
@pytest.mark.skipif(not fitting(cpu_features()), reason="nothing is compiled ahead for this machine")
def test_what_was_compiled_with_the_environment_needs_no_compiler(
    environment: Path, own_cache: Path, library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = prebuild(library, environment)
    assert sorted(environment.iterdir()) == sorted(paths)
    monkeypatch.setenv("PATH", "/nonexistent")
    monkeypatch.delenv("CC", raising=False)
    path = build(library)
    assert path == prebuilt_path(library, fitting(cpu_features())[0], environment)
    assert ctypes.CDLL(str(path)).answer() == 42
    assert not own_cache.exists()
    (library.folder / "answer.h").write_text("#define ANSWER 43\n")
    with pytest.raises(NativeBuildError, match="no C compiler"):
        build(library)


@needs_compiler
def test_a_lesser_processor_takes_a_lesser_kind(environment: Path, library: Library) -> None:
    kinds = list(targets_of_machine())
    prebuild(library, environment)
    found = [find_prebuilt(library, environment, target.features) for target in kinds]
    assert found == [prebuilt_path(library, target, environment) for target in kinds]
    for path in found[:-1]:
        assert path is not None
        path.unlink()
    assert find_prebuilt(library, environment, frozenset().union(*(kind.features for kind in kinds))) == found[-1]


@needs_compiler
def test_flags_of_a_library_make_it_another(environment: Path, own_cache: Path, library: Library) -> None:
    other = dataclasses.replace(library, flags=("-ffp-contract=off",))
    target = targets_of_machine()[0]
    assert prebuilt_path(library, target, environment) != prebuilt_path(other, target, environment)
    assert build(library) != build(other)


def test_each_kind_has_all_that_the_lesser_ones_have() -> None:
    for kinds in TARGETS.values():
        assert all(lesser.features < better.features for better, lesser in itertools.pairwise(kinds))


@needs_compiler
def test_libraries_are_found_in_modules(environment: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["shoal.blocks.chain"]) == 0
    assert len(list(environment.glob("shoal-blocks-*.so"))) == len(targets_of_machine())
    assert main(["shoal.blocks.words"]) == 1
    assert "has no library" in capsys.readouterr().err
