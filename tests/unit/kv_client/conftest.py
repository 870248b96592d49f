"""A store and a client of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from shoal.kv_client import KvClient
from support.kv_store_running import RunningStore, running_store


@pytest.fixture
def running(tmp_path: Path) -> Iterator[RunningStore]:
    with running_store(tmp_path) as running:
        yield running


@pytest.fixture
def client(running: RunningStore) -> Iterator[KvClient]:
    client = running.client()
    yield client
    client.close()
