"""What the webhook knows of models, from a cache and from a hub of this process."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from shoal.operator.api import ModelFacts
from shoal.operator.api.spec import Model
from shoal.operator.webhook import known_models
from shoal.operator.webhook.known_models import KnownModels
from support.eventually import wait_until
from support.package_index import FileServer, add_repository, serve
from support.published_configs import PUBLISHED

CONFIG = msgspec.json.encode(PUBLISHED["Llama-3.1-8B"])
INDEX = msgspec.json.encode({"metadata": {"total_size": 16_060_522_496}, "weight_map": {}})
FACTS = ModelFacts(32, 8, 128, 131_072, num_attention_heads=32)
WHOLE = ModelFacts(32, 8, 128, 131_072, num_attention_heads=32, num_parameters=8_030_261_248)
MODEL = Model(name="llama", uri="hf://org/llama")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    with serve(FileServer()) as running:
        add_repository(running, "org/llama", {"config.json": CONFIG, "model.safetensors.index.json": INDEX})
        add_repository(running, "org/one-file", {"config.json": CONFIG})
        add_repository(running, "org/odd", {"config.json": b'{"model_type": "mamba"}'})
        monkeypatch.setenv("HF_ENDPOINT", running.url)
        monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
        yield running


@pytest.fixture
def known(tmp_path: Path) -> Iterator[KnownModels]:
    models = KnownModels(asks_hub=True, cache_dir=tmp_path, wait_s=20)
    yield models
    models.close()


def test_the_hub_is_asked_once(hub: FileServer, known: KnownModels) -> None:
    assert known.find(MODEL) == WHOLE
    hub.requests.clear()
    assert known.find(MODEL) == WHOLE
    assert not hub.requests


def test_without_the_size_of_the_weights_the_rest_is_known(hub: FileServer, known: KnownModels) -> None:
    assert known.find(Model(name="a", uri="hf://org/one-file")) == FACTS


@pytest.mark.parametrize("uri", ["hf://org/absent", "hf://org/odd", "hf://org/llama/x.gguf", "/m", "hf://"])
def test_what_is_not_there_is_not_known(hub: FileServer, known: KnownModels, uri: str) -> None:
    assert known.find(Model(name="a", uri=uri)) is None


def test_a_hub_that_may_not_be_asked_is_not(hub: FileServer, tmp_path: Path) -> None:
    models = KnownModels(asks_hub=False, cache_dir=tmp_path, wait_s=20)
    assert models.find(MODEL) is None
    assert not hub.requests
    models.close()


def test_a_cached_model_needs_no_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config.json").write_bytes(CONFIG)
    monkeypatch.setattr(known_models, "resolve", lambda uri, **_: tmp_path)
    models = KnownModels(asks_hub=False, wait_s=20)
    assert models.find(MODEL) == FACTS
    models.close()


def test_nobody_waits_for_a_slow_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(CONFIG)
    arrived, calls, now = threading.Event(), [], [0.0]

    def slow(uri: str, **_: Any) -> Path:
        calls.append(uri)
        assert arrived.wait(20)
        return tmp_path

    monkeypatch.setattr(known_models, "resolve", slow)
    models = KnownModels(asks_hub=False, wait_s=0.01, keep_s=60, clock=lambda: now[0])
    assert models.find(MODEL) is None
    now[0] = 100.0
    assert models.find(MODEL) is None, "the first attempt goes on"
    arrived.set()
    wait_until(lambda: models.find(MODEL) == FACTS, "it arrived")
    assert calls == ["hf://org/llama"]
    now[0] = 161.0
    wait_until(lambda: models.find(MODEL) == FACTS, "it arrived again")
    assert len(calls) == 2, "after a while it is looked at again"
    models.close()
