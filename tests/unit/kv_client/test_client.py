from __future__ import annotations

from shoal.kv_client import KvClient
from support.kv_store_running import BLOCK_BYTES, key, payload, put


def get(client: KvClient, *numbers: int) -> list[bytes]:
    buffers = [bytearray(BLOCK_BYTES) for _ in numbers]
    num = client.get([key(number) for number in numbers], buffers)
    return [bytes(buffer) for buffer in buffers[:num]]


def test_what_was_put_is_got(client: KvClient) -> None:
    assert put(client, 1, 2, 3) == 3
    assert get(client, 1, 2, 3, 4) == [payload(1), payload(2), payload(3)]
    assert client.lookup([key(1), key(2), key(4), key(3)]) == (2, 2)


def test_a_put_larger_than_the_staging_memory_goes_in_parts(client: KvClient) -> None:
    assert put(client, *range(1, 41)) == 40
    assert get(client, *range(1, 41)) == [payload(number) for number in range(1, 41)]


def test_a_view_shows_the_blocks_without_a_copy(client: KvClient) -> None:
    put(client, 1, 2)
    with client.view([key(1), key(2), key(3)]) as lease:
        assert [bytes(block) for block in lease.blocks] == [payload(1), payload(2)]
        assert all(block.readonly for block in lease.blocks)
        assert lease.count_valid() == 2
