"""Logs stay within their size and lose nothing that their writer has written before the cut."""

from __future__ import annotations

from pathlib import Path

import pytest

from shoal.operator.substrate.logs import bound_log, open_log, previous_log, read_tail

LIMIT = 1000


def lines(first: int, last: int) -> bytes:
    return b"".join(b"line %06d\n" % number for number in range(first, last))


def test_a_log_that_grew_too_large_goes_on_at_its_start(tmp_path: Path) -> None:
    log = tmp_path / "worker-0.log"
    with open_log(log) as writer:
        writer.write(lines(0, 80))
        writer.flush()
        assert not bound_log(log, LIMIT)  # 960 bytes
        writer.write(lines(80, 90))
        writer.flush()
        assert bound_log(log, LIMIT)
        writer.write(lines(90, 100))
    assert log.read_bytes() == lines(90, 100)
    assert previous_log(log).name == "worker-0.log.1"
    assert previous_log(log).read_bytes() == lines(0, 90)[-LIMIT:]


def test_two_files_hold_it_all_whatever_was_written_between_two_looks(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with open_log(log) as writer:
        for round_ in range(5):
            writer.write(lines(round_ * 1000, (round_ + 1) * 1000))
            writer.flush()
            assert bound_log(log, LIMIT)
            assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 2 * LIMIT
    assert previous_log(log).read_bytes() == lines(0, 5000)[-LIMIT:]


def test_the_tail_goes_back_over_a_cut(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with open_log(log) as writer:
        writer.write(lines(0, 100))
        writer.flush()
        assert bound_log(log, LIMIT)
        writer.write(lines(100, 102))
    assert read_tail(log) == lines(82, 102).decode().rstrip()


def test_a_full_disk_costs_the_old_lines_and_not_the_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = tmp_path / "log"
    log.write_bytes(lines(0, 100))
    monkeypatch.setattr("shoal.operator.substrate.logs.previous_log", lambda path: Path("/dev/full"))
    monkeypatch.setattr(Path, "unlink", lambda path, missing_ok: removed.append(path))
    removed: list[Path] = []
    assert bound_log(log, LIMIT)
    assert log.stat().st_size == 0
    assert removed == [Path("/dev/full")]


def test_a_log_that_is_not_there_is_nobodys_problem(tmp_path: Path) -> None:
    assert not bound_log(tmp_path / "none", LIMIT)
    assert list(tmp_path.iterdir()) == []


def test_tail_is_bounded(tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert read_tail(log) == ""
    log.write_bytes(b"".join(b"line %d \xff\n" % index for index in range(10_000)))
    shown = read_tail(log).splitlines()
    assert len(shown) == 20
    assert shown[-1].startswith("line 9999")
