"""One mesh of two workers for all tests that do not break it for good."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from shoal.client import Client
from support.shoal_up import Up, manifest, shoal_up


@pytest.fixture(scope="session")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    """`shoal up` with two workers of one thread each."""
    document = manifest(workers={"replicas": 2, "threads": 1, "maxQueuedRequests": 64})
    with shoal_up(tmp_path_factory.mktemp("mesh"), document) as running:
        yield running


@pytest.fixture
def client(up: Up) -> Iterator[Client]:
    """The SDK, connected to the mesh."""
    with Client(up.endpoint, timeout_s=120) as connected:
        yield connected


@pytest.fixture
def http(up: Up) -> Iterator[httpx.Client]:
    """An HTTP client of the OpenAI API."""
    with httpx.Client(base_url=f"http://{up.endpoint}", timeout=120, trust_env=False) as connected:
        yield connected
