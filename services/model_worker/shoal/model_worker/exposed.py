"""Settings by which a secret would be told to others: refused at start."""

from __future__ import annotations

from shoal.model_worker.config import WorkerConfig
from shoal.model_worker.kv_store_watch import is_on_this_host
from shoal.model_worker.tenants import OPERATOR, operator_token


def find_exposed(config: WorkerConfig) -> str | None:
    """One line that says what would be told and what to give instead; None when nothing is."""
    address, path = config.kv_store_address, config.kv_store_tokens_file
    if not (address and path and config.kv_store_event_keys) or is_on_this_host(address):
        return None
    if not operator_token(path):
        return None
    return (
        f"--kv-store-address={address}: the operator's token would go there in the clear; give an address of this host "
        f'(127.0.0.1:PORT, [::1]:PORT, localhost:PORT or unix:PATH), or take "{OPERATOR}" out of {path}'
    )
