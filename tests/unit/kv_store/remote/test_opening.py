"""Settings of sharing that cannot be: said before anything is served."""

from __future__ import annotations

from pathlib import Path

import pytest

from shoal.kv_store.config import KvStoreConfig
from shoal.kv_store.process import SettingsProblem, open_control


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"peers": "127.0.0.1:9"}, "peer_secret_file"),
        ({"peers": "127.0.0.1:9", "peer_secret_file": "/nowhere"}, "No such file"),
        ({"peers": "127.0.0.1:9", "peer_secret_file": "SHORT"}, "give 16 to 4096"),
        ({"peers": "nonsense", "peer_secret_file": "SECRET"}, "host:port"),
        ({"peers": "127.0.0.1:9", "peer_secret_file": "SECRET", "peer_address": "me"}, "host:port"),
        ({"peers": "file:/nowhere", "peer_secret_file": "SECRET"}, "No such file"),
        ({"peers": "127.0.0.1:9", "peer_tls_cert": "a"}, "give all three"),
        ({"peers": "127.0.0.1:9", "peer_tls_cert": "a", "peer_tls_key": "b", "peer_tls_ca": "c"}, "No such file"),
    ],
)
async def test_settings_that_make_no_sense_are_refused(tmp_path: Path, settings: dict[str, str], problem: str) -> None:
    (tmp_path / "secret").write_text("a secret that all stores know")
    (tmp_path / "short").write_text("short")
    files = {"SECRET": str(tmp_path / "secret"), "SHORT": str(tmp_path / "short")}
    given = {name: files.get(value, value) for name, value in settings.items()}
    config = KvStoreConfig(
        socket_path=str(tmp_path / "kv.sock"),
        memory_bytes=1 << 20,
        chunk_bytes=1 << 16,
        peer_port=0,
        peer_data_port=0,
        **given,  # type: ignore[arg-type]
    )
    with pytest.raises(SettingsProblem, match=problem):
        async with open_control(config):
            pass
    assert not (tmp_path / "kv.sock").exists()


async def test_a_port_that_somebody_has_is_said(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("a secret that all stores know")
    settings = {"memory_bytes": 1 << 20, "chunk_bytes": 1 << 16, "peer_secret_file": str(tmp_path / "secret")}
    first = KvStoreConfig(
        socket_path=str(tmp_path / "a"),
        peers="127.0.0.1:9",
        peer_port=0,
        peer_data_port=0,
        **settings,  # type: ignore[arg-type]
    )
    async with open_control(first) as control:
        assert control.exchange is not None
        port = int(control.exchange.addresses.own.rpartition(":")[2])
        second = KvStoreConfig(
            socket_path=str(tmp_path / "b"),
            peers="127.0.0.1:9",
            peer_port=port,
            peer_data_port=0,
            **settings,  # type: ignore[arg-type]
        )
        with pytest.raises(OSError, match="in use"):
            async with open_control(second):
                pass
