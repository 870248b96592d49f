"""Workers that come, go, restart and tell of their caches; what is picked, and what the span and metrics say."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import grpc
import grpc.aio
import pytest

from shoal.api.chat.v1 import chat_pb2
from shoal.api.gateway.v1 import gateway_pb2
from shoal.api.worker.v1 import worker_pb2
from shoal.blocks import block_keys, namespace_key
from support.eventually import eventually
from support.fake_tokenizer import FakeTokenizer
from support.fake_worker import MODEL, FakeWorker, Reply, info, serve_fakes
from support.gateway_running import RunningGateway, run_gateway, write_workers

PROMPT = "sixteen letters!"
KEYS = block_keys(namespace_key("d1" * 32, "fake-v1"), list(PROMPT.encode()), 4)
PIN = "x-shoal-endpoint"


def stored(seq: int, keys: list[bytes], epoch: int = 1) -> worker_pb2.SubscribeKvEventsResponse:
    event = worker_pb2.KvStored(keys=keys, tier=worker_pb2.TIER_DEVICE)
    return worker_pb2.SubscribeKvEventsResponse(epoch=epoch, seq=seq, stored=event)


@asynccontextmanager
async def fleet_of(
    path: Path, *workers: FakeWorker, wait: bool = True
) -> AsyncIterator[tuple[RunningGateway, list[FakeWorker]]]:
    """A gateway in front of a mesh that is `workers[0]`, with all of them in its workers file."""
    async with AsyncExitStack() as stack:
        for worker in workers[1:]:
            await stack.enter_async_context(serve_fakes(worker))
        file = path / "workers.json"
        running = await stack.enter_async_context(run_gateway(workers[0], wait=False, workers_file=str(file)))
        write_workers(file, [w.address for w in workers])
        if wait:
            expected = {w.address for w in workers}
            await eventually(lambda: running.gateway.index.workers == expected, "all caches are known")
            await eventually(lambda: not running.gateway.not_ready(), "the gateway is ready")
        yield running, list(workers)


async def test_the_worker_with_the_longest_prefix_is_pinned_first(tmp_path: Path) -> None:
    roomy = [FakeWorker(info(num_blocks=1 << 16)) for _ in range(3)]  # else making room costs more than 4 tokens save
    async with fleet_of(tmp_path, *roomy) as (running, workers):
        workers[1].publish(stored(1, KEYS[:2]))
        workers[2].publish(stored(1, KEYS[:1]), stored(2, KEYS[1:3]))
        index = running.gateway.index
        await eventually(lambda: index.match(KEYS) == {workers[1].address: 2, workers[2].address: 3}, "events arrived")
        await running.generate(text=PROMPT)
        pin = workers[0].calls[0].metadata[PIN]
    assert pin.split(",") == [workers[2].address, workers[1].address, workers[0].address]


async def test_without_any_known_cache_there_is_no_pin(tmp_path: Path) -> None:
    silent = FakeWorker()
    silent.has_snapshot = False
    async with fleet_of(tmp_path, silent, wait=False) as (running, _):
        await eventually(lambda: not running.gateway.not_ready(), "the gateway is ready")
        messages = await running.generate(text=PROMPT)
        assert PIN not in silent.calls[0].metadata
    assert messages[0].worker == ""


async def test_the_mesh_says_who_served(tmp_path: Path) -> None:
    async with fleet_of(tmp_path, FakeWorker()) as (running, workers):
        workers[0].replies[0] = Reply(served_by="10.0.0.9:1")
        messages = await running.generate(text=PROMPT)
    assert messages[0].worker == "10.0.0.9:1"


async def test_workers_come_and_go_with_the_file(tmp_path: Path) -> None:
    async with fleet_of(tmp_path, FakeWorker(), FakeWorker()) as (running, workers):
        first, second = (w.address for w in workers)
        file = tmp_path / "workers.json"
        write_workers(file, [second])
        await eventually(lambda: running.gateway.index.workers == {second}, "one worker left")
        await running.generate(text=PROMPT)
        assert workers[0].calls[-1].metadata[PIN] == second
        write_workers(file, [first, second], health_status="DRAINING")
        await eventually(lambda: not running.gateway.fleet.any_ready, "no worker takes requests")
        assert running.gateway.not_ready() == "no worker is ready"
        write_workers(file, [first, second])
        await eventually(lambda: len(running.gateway.fleet.ready_endpoints(MODEL)) == 2, "both are back")


async def test_a_restarted_worker_starts_with_an_empty_cache(tmp_path: Path) -> None:
    async with fleet_of(tmp_path, FakeWorker()) as (running, workers):
        worker, index = workers[0], running.gateway.index
        worker.publish(stored(1, KEYS))
        await eventually(lambda: bool(index.match(KEYS)), "the event arrived")
        worker.info = info(epoch=2)
        worker.end_subscription()
        await eventually(lambda: index.workers == {worker.address} and not index.match(KEYS), "it was forgotten")
        assert (worker.subscriptions[-1].epoch, worker.subscriptions[-1].start_seq) == (0, 0)


async def test_a_lost_event_is_asked_for_again(tmp_path: Path) -> None:
    async with fleet_of(tmp_path, FakeWorker()) as (running, workers):
        worker, index = workers[0], running.gateway.index
        worker.publish(stored(1, KEYS[:1]), stored(3, KEYS[2:3]))
        await eventually(lambda: len(worker.subscriptions) == 2, "the subscriber came back")
        assert (worker.subscriptions[1].epoch, worker.subscriptions[1].start_seq) == (1, 2)
        worker.publish(stored(2, KEYS[1:2]), stored(3, KEYS[2:3]))
        await eventually(lambda: index.match(KEYS) == {worker.address: 3}, "nothing is missing")


async def test_a_worker_that_is_gone_is_not_picked_and_comes_back(tmp_path: Path) -> None:
    mesh = FakeWorker()
    file = tmp_path / "workers.json"
    async with AsyncExitStack() as stack:
        running = await stack.enter_async_context(run_gateway(mesh, wait=False, workers_file=str(file)))
        fleet = running.gateway.fleet
        async with serve_fakes(FakeWorker()) as address:
            write_workers(file, [address, mesh.address])
            await eventually(lambda: len(fleet.ready_endpoints(MODEL)) == 2, "both are ready")
        await eventually(lambda: fleet.ready_endpoints(MODEL) == [mesh.address], "the dead one is left out")
        async with serve_fakes(FakeWorker(), port=int(address.rpartition(":")[2])):
            await eventually(lambda: len(fleet.ready_endpoints(MODEL)) == 2, "it is back")


async def test_models_of_a_mixed_fleet_are_kept_apart(tmp_path: Path) -> None:
    other = FakeWorker(info(model="other-model", max_model_len=99))
    async with fleet_of(tmp_path, FakeWorker(), other) as (running, workers):
        models = (await running.stub.ListModels(gateway_pb2.ListModelsRequest())).models
        await running.generate(text=PROMPT, model="other-model")
        pin = workers[0].calls[0].metadata[PIN]
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await running.generate(text=PROMPT)
    assert [(m.name, m.max_model_len, m.ready_workers) for m in models] == [(MODEL, 1024, 1), ("other-model", 99, 1)]
    assert pin == other.address
    assert caught.value.code() == grpc.StatusCode.NOT_FOUND
    assert "one must be named" in str(caught.value.details())


async def test_a_tokenizer_that_loads_is_waited_for() -> None:
    tokenizer = FakeTokenizer()
    tokenizer.unavailable_times = 2
    async with run_gateway(tokenizer=tokenizer) as running:
        assert running.gateway.tokenizer.ready
        assert tokenizer.unavailable_times == 0


async def test_the_unary_calls() -> None:
    async with run_gateway() as running:
        stub = running.stub
        ids = (await stub.Tokenize(gateway_pb2.TokenizeRequest(text="hé"))).token_ids
        chat = chat_pb2.Chat(messages=[chat_pb2.ChatMessage(role="user", content="x")])
        rendered = (await stub.Tokenize(gateway_pb2.TokenizeRequest(chat=chat))).token_ids
        text = (await stub.Detokenize(gateway_pb2.DetokenizeRequest(token_ids=[*ids, 256]))).text
        special = gateway_pb2.DetokenizeRequest(token_ids=[65, 256], include_special_tokens=True)
        with_special = (await stub.Detokenize(special)).text
        empty = (await stub.Detokenize(gateway_pb2.DetokenizeRequest())).text
        model = (await stub.GetModel(gateway_pb2.GetModelRequest(name=MODEL))).model
        with pytest.raises(grpc.aio.AioRpcError) as missing:
            await stub.GetModel(gateway_pb2.GetModelRequest(name="gpt"))
        with pytest.raises(grpc.aio.AioRpcError) as nothing:
            await stub.Tokenize(gateway_pb2.TokenizeRequest())
    assert bytes(ids).decode() == text == "hé"
    assert bytes(rendered) == b"user:x\n"
    assert (with_special, empty) == ("A<eos>", "")
    assert (model.max_model_len, model.vocab_size, model.ready_workers, model.has_chat_template) == (1024, 258, 1, True)
    assert missing.value.code() == grpc.StatusCode.NOT_FOUND
    assert nothing.value.code() == grpc.StatusCode.INVALID_ARGUMENT
