"""A worker with the simulated device: what the contract of Generate says, over the wire."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio
import pytest
import pytest_asyncio

from shoal.api.generation.v1 import generation_pb2
from shoal.api.worker.v1 import worker_pb2
from shoal.rpc.status import from_rpc_error
from support.worker_calls import collect, generate_request
from support.worker_process import WorkerProcess, start_worker, worker_stub

if TYPE_CHECKING:
    from shoal.api.worker.v1.worker_pb2_grpc import ModelWorkerServiceAsyncStub as Stub

pytestmark = pytest.mark.asyncio(loop_scope="module")
FLAGS = ("--device=simulated", "--max-num-seqs=8", "--max-num-batched-tokens=32", "--max-model-len=512")
LENGTH, STOP = generation_pb2.FINISH_REASON_LENGTH, generation_pb2.FINISH_REASON_STOP


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def worker() -> AsyncIterator[WorkerProcess]:
    async with start_worker(*FLAGS, "--simulated-vocab-size=1000") as worker:
        yield worker


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stub(worker: WorkerProcess) -> AsyncIterator[Stub]:
    async with worker_stub(worker) as stub:
        yield stub


async def test_info_says_what_is_served(stub: Stub) -> None:
    info = await stub.GetInfo(worker_pb2.GetInfoRequest(), timeout=5)
    assert (info.model, info.device, info.block_size, info.max_model_len) == ("simulated", "simulated", 16, 512)
    assert (info.vocab_size, list(info.eos_token_ids), info.max_num_seqs) == (1000, [999], 8)
    assert info.epoch > 0
    assert info.model_digest


async def test_the_log_has_what_is_in_effect_and_how_long_the_start_took(worker: WorkerProcess) -> None:
    configuration, loaded = worker.logged("configuration"), worker.logged("loaded")
    assert (configuration["block_size"], configuration["engine_stall_timeout_s"]) == (16, 0.0)
    assert (loaded["block_size"], loaded["max_num_seqs"], loaded["max_model_len"]) == (16, 8, 512)
    assert re.fullmatch(r"\d+\.\d s: start \d+\.\d, simulated model \d+\.\d", loaded["ready_in"])


async def test_usage_comes_first_and_last_and_the_end_has_a_reason(stub: Stub) -> None:
    completions, messages = await collect(stub.Generate(generate_request(range(40), max_tokens=12), timeout=10))
    assert len(completions[0].token_ids) == 12
    assert completions[0].finish_reason == LENGTH
    assert [index for index, message in enumerate(messages) if message.HasField("usage")] == [0, len(messages) - 1]
    assert messages[0].usage.prompt_tokens == 40
    assert messages[-1].usage.completion_tokens == 12


async def test_the_same_seed_gives_the_same_tokens_and_another_prompt_or_seed_does_not(stub: Stub) -> None:
    async def tokens(prompt: list[int], seed: int) -> list[int]:
        completions, _ = await collect(stub.Generate(generate_request(prompt, seed=seed), timeout=10))
        return completions[0].token_ids

    first = await tokens([1, 2, 3], 1)
    assert await tokens([1, 2, 3], 1) == first
    assert await tokens([1, 2, 3], 2) != first
    assert await tokens([1, 2, 4], 1) != first


async def test_n_completions_differ_and_end_separately(stub: Stub) -> None:
    completions, messages = await collect(
        stub.Generate(generate_request(range(20), n=3, max_tokens=100, ignore_eos=False, seed=5), timeout=10)
    )
    assert sorted(completions) == [0, 1, 2]
    assert len({tuple(completion.token_ids) for completion in completions.values()}) == 3
    assert all(completion.finish_reason for completion in completions.values())
    assert messages[-1].usage.completion_tokens == sum(len(c.token_ids) for c in completions.values())


async def test_eos_and_stop_tokens_end_a_completion_and_are_its_last_token(stub: Stub) -> None:
    completions, _ = await collect(
        stub.Generate(generate_request(range(9), max_tokens=400, ignore_eos=False), timeout=10)
    )
    eos = completions[0]
    assert (eos.finish_reason, eos.stop_token_id, eos.token_ids[-1]) == (STOP, 999, 999)
    third = eos.token_ids[2]
    completions, _ = await collect(
        stub.Generate(generate_request(range(9), max_tokens=400, stop_token_ids=[third]), timeout=10)
    )
    assert completions[0].token_ids == eos.token_ids[:3]
    assert completions[0].stop_token_id == third


async def test_a_resumed_request_goes_on_where_the_first_attempt_was_cut(stub: Stub) -> None:
    completions, _ = await collect(stub.Generate(generate_request(range(30), max_tokens=40), timeout=10))
    whole = completions[0].token_ids
    for cut in (1, 17, 39):
        request = generate_request(range(30), max_tokens=40, resume=whole[:cut])
        completions, messages = await collect(stub.Generate(request, timeout=10), num_resumed=cut)
        assert completions[0].token_ids == whole[cut:]
        assert messages[-1].usage.completion_tokens == 40


async def test_each_of_several_completions_can_go_on_by_itself(stub: Stub) -> None:
    completions, _ = await collect(stub.Generate(generate_request(range(30), max_tokens=20, n=3), timeout=10))
    assert len({tuple(c.token_ids) for c in completions.values()}) == 3
    for choice, cut in ((0, 5), (1, 19), (2, 0)):
        whole = completions[choice].token_ids
        request = generate_request(range(30), max_tokens=20, resume=whole[:cut], choice=choice)
        rest, messages = await collect(stub.Generate(request, timeout=10), num_resumed=cut)
        assert rest[choice].token_ids == whole[cut:]
        assert {message.choice for message in messages} == {choice}


@pytest.mark.parametrize(("choice", "n"), [(1, 2), (64, 1)])
async def test_a_choice_that_cannot_be_is_refused(stub: Stub, choice: int, n: int) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await collect(stub.Generate(generate_request([1], choice=choice, n=n), timeout=10))
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert "at most 63, and only with n = 1" in (caught.value.details() or "")


@pytest.mark.parametrize(
    ("resume", "sampling", "reason"),
    [([1, 2, 3], {"max_tokens": 3}, LENGTH), ([1, 7], {"stop_token_ids": [7]}, STOP)],
)
async def test_resuming_what_had_ended_only_says_so(
    stub: Stub, resume: list[int], sampling: dict[str, Any], reason: int
) -> None:
    request = generate_request([4], resume=resume, **sampling)
    completions, messages = await collect(stub.Generate(request, timeout=10), num_resumed=len(resume))
    assert len(messages) == 1
    assert completions[0].token_ids == []
    assert completions[0].finish_reason == reason


async def test_the_second_request_of_a_tenant_is_cached_and_anothers_is_not(stub: Stub) -> None:
    async def cached(salt: bytes) -> int:
        request = generate_request(range(500, 600))
        request.cache_salt = salt
        _, messages = await collect(stub.Generate(request, timeout=10))
        return int(messages[0].usage.cached_tokens)

    assert [await cached(b"a"), await cached(b"a"), await cached(b"b")] == [0, 96, 0]


async def test_logprobs_come_with_their_tokens_and_the_prompts_with_the_first_message(stub: Stub) -> None:
    prompt = list(range(100, 180))
    request = generate_request(prompt, logprobs=1, prompt_logprobs=1)
    completions, messages = await collect(stub.Generate(request, timeout=10))
    assert [entry.token.token_id for entry in completions[0].logprobs] == completions[0].token_ids
    entries = messages[0].prompt_logprobs
    assert not entries[0].HasField("token")
    assert [entry.token.token_id for entry in entries[1:]] == prompt[1:]
    assert not any(message.prompt_logprobs for message in messages[1:])


BAD_REQUESTS = [
    (generate_request([]), "token_ids", "empty"),
    (generate_request([0] * 512), "token_ids", "at most 511 are allowed"),
    (generate_request([1, 1000]), "token_ids[1]", "outside [0, 999]"),
    (generate_request([1], resume=[1000]), "resume_token_ids[0]", "outside [0, 999]"),
    (generate_request([1], resume=[1], n=2), "resume_token_ids", "only with n = 1"),
    (generate_request([1], resume=[1, 2], max_tokens=1), "resume_token_ids", "more than max_tokens = 1"),
    (generate_request([1], max_tokens=512), "sampling.max_tokens", "outside [1, 511]"),
    (generate_request([1], temperature=2.5), "sampling.temperature", "outside [0, 2]"),
    (generate_request([1], top_p=0), "sampling.top_p", "outside (0, 1]"),
    (generate_request([1], n=9), "sampling.n", "more than the 8 sequences"),
    (generate_request([1], stop_token_ids=[5000]), "sampling.stop_token_ids", "outside [0, 999]"),
    (worker_pb2.GenerateRequest(token_ids=[1], cache_salt=bytes(65)), "cache_salt", "at most 64"),
]


@pytest.mark.parametrize(("request_", "field", "problem"), BAD_REQUESTS)
async def test_bad_requests_are_refused_by_field(
    stub: Stub, request_: worker_pb2.GenerateRequest, field: str, problem: str
) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await collect(stub.Generate(request_, timeout=10))
    assert raised.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    error = from_rpc_error(raised.value)
    assert error.field == field
    assert problem in error.message


async def test_kv_events_start_with_a_snapshot_and_go_on_without_a_gap(stub: Stub) -> None:
    await collect(stub.Generate(generate_request(range(700, 740)), timeout=10))
    call: Any = stub.SubscribeKvEvents(worker_pb2.SubscribeKvEventsRequest(), timeout=20)
    snapshot = await call.read()
    assert snapshot.snapshot.complete
    await collect(stub.Generate(generate_request(range(800, 840)), timeout=10))
    event = await call.read()
    assert event.seq == snapshot.seq + 1
    assert len(event.stored.keys) == 2
    assert not set(event.stored.keys) & set(snapshot.snapshot.keys)
    call.cancel()
    again: Any = stub.SubscribeKvEvents(
        worker_pb2.SubscribeKvEventsRequest(epoch=event.epoch, start_seq=event.seq), timeout=20
    )
    assert await again.read() == event
    again.cancel()
    stranger: Any = stub.SubscribeKvEvents(
        worker_pb2.SubscribeKvEventsRequest(epoch=event.epoch + 2, start_seq=event.seq), timeout=20
    )
    part = await stranger.read()
    assert set(event.stored.keys) < set(part.snapshot.keys)
    stranger.cancel()


async def test_metrics_have_the_names_that_dashboards_know(worker: WorkerProcess, stub: Stub) -> None:
    before = worker.metric("generation_tokens_total")
    await collect(stub.Generate(generate_request([1, 2], max_tokens=10), timeout=10))
    assert worker.metric("generation_tokens_total") == before + 10
    assert worker.metric("num_requests_running") == 0
    assert worker.metric('request_success_total{finished_reason="length"}') >= 1
    assert worker.metric("time_to_first_token_seconds_count") >= 1
    assert worker.metric("inter_token_latency_seconds_count") >= 9
    assert worker.metric("step_seconds_count") > 0
    assert worker.metric("prefix_cache_queries_total") > 0


async def test_orca_reports_flow_out_of_band(worker: WorkerProcess, stub: Stub) -> None:
    async with grpc.aio.insecure_channel(worker.address) as channel:
        method: Any = channel.unary_stream("/xds.service.orca.v3.OpenRcaService/StreamCoreMetrics", None, None)
        call = method(b"\x0a\x05\x10\x80\xc2\xd7\x2f", timeout=20)  # report_interval: 100 ms
        first = await call.read()
        assert b"kv_cache" in first
        assert b"queue" in first
        second = await call.read()
        assert second[:1] == b"\x31"
        call.cancel()
