"""The tokenizer service as a process, with a real model."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import grpc
import grpc.aio
import pytest
import pytest_asyncio
from google.protobuf import json_format, struct_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tokenizers import pre_tokenizers

from shoal.api.chat.v1.chat_pb2 import Chat, ChatMessage
from shoal.api.tokenizer.v1 import tokenizer_pb2 as pb
from shoal.api.tokenizer.v1 import tokenizer_pb2_grpc
from shoal.rpc.errors import InvalidArgument, PayloadTooLarge, ResourceExhausted, ShoalError
from shoal.rpc.status import from_rpc_error
from support.chat_templates import CONVERSATIONS
from support.gguf_files import sentencepiece_keys, write_gguf
from support.logged_process import LoggedProcess
from support.model import smollm2_path
from support.texts import TEXTS
from support.tokenizer_process import launch_tokenizer, start_tokenizer, tokenizer_stub

Stub: TypeAlias = "tokenizer_pb2_grpc.TokenizerServiceAsyncStub"  # exists in the type stubs only
GOOD = pb.TokenIds(ids=[1])
pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def service() -> AsyncIterator[LoggedProcess]:
    path = await asyncio.to_thread(smollm2_path)
    async with start_tokenizer(f"--model={path}", "--max-text-bytes=100000", "--max-batch-size=64") as running:
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stub(service: LoggedProcess) -> AsyncIterator[Stub]:
    async with tokenizer_stub(service) as client:
        yield client


@pytest.fixture(scope="module")
def reference() -> Any:
    from transformers import AutoTokenizer

    path = smollm2_path()
    tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    # transformers does not know the pre-tokenizer `smollm` and takes GPT-2's, which keeps a space with the ½ after it.
    # This is the one of the model's own tokenizer.json.
    digits = pre_tokenizers.Digits(individual_digits=True)
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, byte_level])
    return tokenizer


async def failure(call: Any) -> ShoalError:
    """The domain error that a call ends with."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return from_rpc_error(caught.value)


def to_chat(messages: Sequence[dict[str, Any]], **extra: Any) -> Chat:
    chat = Chat(**extra)
    for message in messages:
        calls = [json_format.ParseDict(call, struct_pb2.Struct()) for call in message.get("tool_calls", ())]
        chat.messages.append(ChatMessage(**{**message, "tool_calls": calls}))
    return chat


async def test_info(stub: Stub) -> None:
    info = await stub.GetInfo(pb.GetInfoRequest())
    assert (info.vocab_size, info.bos_token_id, list(info.eos_token_ids)) == (49152, 1, [2])
    assert info.has_chat_template
    assert (info.max_text_bytes, info.max_batch_size) == (100_000, 64)
    assert len(info.digest) == 64


async def test_ids_and_texts_equal_those_of_transformers(stub: Stub, reference: Any) -> None:
    for special in (False, True):
        encoded = await stub.Encode(pb.EncodeRequest(texts=TEXTS, add_special_tokens=special))
        expected = [reference.encode(text, add_special_tokens=special) for text in TEXTS]
        for text, sequence, ids in zip(TEXTS, encoded.sequences, expected, strict=True):
            assert list(sequence.ids) == ids, text
            (alone,) = (await stub.Encode(pb.EncodeRequest(texts=[text], add_special_tokens=special))).sequences
            assert list(alone.ids) == ids
    for skip in (False, True):
        decoded = await stub.Decode(pb.DecodeRequest(sequences=encoded.sequences, skip_special_tokens=skip))
        assert list(decoded.texts) == [
            reference.decode(ids, skip_special_tokens=skip, clean_up_tokenization_spaces=False) for ids in expected
        ]


async def test_long_texts_take_another_way_to_the_same_ids(stub: Stub, reference: Any) -> None:
    text = "".join(TEXTS) * 20
    (sequence,) = (await stub.Encode(pb.EncodeRequest(texts=[text]))).sequences
    assert list(sequence.ids) == reference.encode(text, add_special_tokens=False)
    (decoded,) = (await stub.Decode(pb.DecodeRequest(sequences=[sequence]))).texts
    assert decoded == text


@pytest.mark.parametrize("index", range(len(CONVERSATIONS)))
async def test_chats_render_as_in_transformers(stub: Stub, reference: Any, index: int) -> None:
    messages = CONVERSATIONS[index]
    for continued in (False, True):
        chat = to_chat(messages, continue_final_message=continued)
        arguments = {"continue_final_message": continued, "add_generation_prompt": not continued}
        rendered = await stub.RenderChat(pb.RenderChatRequest(chat=chat, return_text=True))
        assert rendered.text == reference.apply_chat_template(messages, tokenize=False, **arguments)
        ids = reference.apply_chat_template(messages, return_dict=False, **arguments)
        assert list(rendered.token_ids) == ids
    assert not (await stub.RenderChat(pb.RenderChatRequest(chat=chat))).text


async def test_the_vocabulary_joins_to_the_same_texts(stub: Stub, reference: Any) -> None:
    info = await stub.GetInfo(pb.GetInfoRequest())
    pieces: list[bytes] = []
    special: set[int] = set()
    async for message in stub.GetVocabulary(pb.GetVocabularyRequest()):
        assert message.first_id == len(pieces)
        assert message.join == pb.PIECE_JOIN_CONCATENATE
        assert message.digest == info.digest
        pieces += message.pieces
        special |= set(message.special_ids)
    assert len(pieces) == info.vocab_size
    assert special == set(range(17))
    for text in TEXTS:
        ids = reference.encode(text, add_special_tokens=False)
        assert b"".join(pieces[token_id] for token_id in ids) == text.encode()


@pytest.mark.parametrize(
    ("request_", "kind", "field"),
    [
        (pb.EncodeRequest(), InvalidArgument, "texts"),
        (pb.EncodeRequest(texts=["x"] * 65), InvalidArgument, "texts"),
        (pb.EncodeRequest(texts=["x" * 60_000, "é" * 20_001]), PayloadTooLarge, "texts"),
        (pb.DecodeRequest(), InvalidArgument, "sequences"),
        (pb.DecodeRequest(sequences=[GOOD, pb.TokenIds(ids=[2, 49152])]), InvalidArgument, "sequences[1].ids[1]"),
        (pb.DecodeRequest(sequences=[pb.TokenIds(ids=[2**32 - 1])]), InvalidArgument, "sequences[0].ids[0]"),
        (pb.DecodeRequest(sequences=[pb.TokenIds(ids=[5] * 100_001)]), PayloadTooLarge, "sequences"),
        (pb.RenderChatRequest(), InvalidArgument, "chat.messages"),
        (pb.RenderChatRequest(chat=to_chat([{"role": "", "content": "x"}])), InvalidArgument, "chat.messages[0].role"),
        (pb.RenderChatRequest(chat=to_chat([{"role": "user", "content": "x" * 100_001}])), PayloadTooLarge, "chat"),
        (pb.RenderChatRequest(chat=to_chat([{"role": "user", "content": "x" * 99_950}])), PayloadTooLarge, "chat"),
    ],
)  # fmt: skip
async def test_bad_requests_name_the_field(stub: Stub, request_: Any, kind: type[ShoalError], field: str) -> None:
    method = type(request_).__name__.removesuffix("Request")
    error = await failure(getattr(stub, method)(request_))
    assert (type(error), error.field) == (kind, field)


async def test_many_callers_at_once(stub: Stub) -> None:
    chats = [to_chat([{"role": "user", "content": f"number {i}"}]) for i in range(200)]
    answers = await asyncio.gather(
        *(stub.RenderChat(pb.RenderChatRequest(chat=chat, return_text=True)) for chat in chats)
    )
    assert [f"number {i}<|im_end|>" in answer.text for i, answer in enumerate(answers)] == [True] * 200


async def test_health_and_metrics(service: LoggedProcess, stub: Stub) -> None:
    await stub.Encode(pb.EncodeRequest(texts=["x"]))
    async with grpc.aio.insecure_channel(service.address) as channel:
        request = health_pb2.HealthCheckRequest(service="shoal.api.tokenizer.v1.TokenizerService")
        answer = await health_pb2_grpc.HealthStub(channel).Check(request)
    assert answer.status == health_pb2.HealthCheckResponse.SERVING
    text = await asyncio.to_thread(service.read_metrics)
    assert 'shoal_tokenizer_tokens_total{direction="encoded"}' in text
    assert 'method="/shoal.api.tokenizer.v1.TokenizerService/Encode"' in text


def write_model(path: Path, **keys: Any) -> Path:
    return write_gguf(path, sentencepiece_keys() | {f"tokenizer.{key}": value for key, value in keys.items()})


async def test_a_model_without_a_template(tmp_path: Path) -> None:
    path = write_model(tmp_path / "m.gguf")
    async with start_tokenizer(f"--model={path}") as service, tokenizer_stub(service) as stub:
        assert not (await stub.GetInfo(pb.GetInfoRequest())).has_chat_template
        error = await failure(stub.RenderChat(pb.RenderChatRequest(chat=to_chat(CONVERSATIONS[0]))))
        assert isinstance(error, InvalidArgument)
        assert "no chat template" in str(error)
        message = await anext(aiter(stub.GetVocabulary(pb.GetVocabularyRequest())))
        assert message.join == pb.PIECE_JOIN_CONCATENATE_STRIP_LEADING_SPACE


async def test_evil_templates_harm_only_their_own_call(tmp_path: Path) -> None:
    template = (
        "{% set c = messages[0].content %}"
        "{% if c == 'loop' %}{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
        "{% elif c == 'power' %}{{ (messages|length + 8) ** 999999999 }}"
        "{% elif c == 'memory' %}{{ c * 1000000000 }}"
        "{% elif c == 'raise' %}{{ raise_exception('only users, please') }}"
        "{% elif c == 'escape' %}{{ ''.__class__.__mro__ }}"
        "{% else %}ok {{ c }}{% endif %}"
    )
    path = write_model(tmp_path / "m.gguf", chat_template=template)
    flags = (f"--model={path}", "--render-timeout-s=0.5", "--render-processes=2", "--render-memory-mib=256")

    async with start_tokenizer(*flags) as service, tokenizer_stub(service) as stub:

        async def render(content: str) -> str:
            chat = to_chat([{"role": "user", "content": content}])
            return str((await stub.RenderChat(pb.RenderChatRequest(chat=chat, return_text=True), timeout=20)).text)

        runaway = asyncio.create_task(failure(render("loop")))
        assert [await render(f"{i}") for i in range(50)] == [f"ok {i}" for i in range(50)]
        error = await runaway
        assert isinstance(error, ResourceExhausted)
        assert "took longer than 0.5 s" in str(error)
        assert error.retry_after_s is not None
        assert isinstance(await failure(render("power")), ResourceExhausted)
        assert "bytes of memory" in str(await failure(render("memory")))
        assert "only users, please" in str(await failure(render("raise")))
        assert isinstance(await failure(render("escape")), InvalidArgument)
        assert await render("again") == "ok again"
        assert "shoal_tokenizer_render_restarts_total" in await asyncio.to_thread(service.read_metrics)


@pytest.mark.parametrize(
    ("keys", "named"),
    [
        ({"chat_template": "{% if %}"}, "does not compile: line 1"),
        ({"ggml.model": "bert"}, "tokenizer.ggml.model = 'bert' is not supported"),
    ],
)
async def test_what_cannot_be_served_ends_the_start(tmp_path: Path, keys: dict[str, Any], named: str) -> None:
    path = write_model(tmp_path / "m.gguf", **keys)
    service = await launch_tokenizer(f"--model={path}")
    assert await service.wait_ended() == 1
    assert named in service.logged("cannot serve")["error"]


async def test_a_missing_model_is_named(tmp_path: Path) -> None:
    service = await launch_tokenizer(f"--model={tmp_path / 'absent.gguf'}")
    assert await service.wait_ended() == 1
    assert "absent.gguf does not exist" in service.logged("cannot serve")["error"]


def children_of(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


def is_running(pid: str) -> bool:
    return Path(f"/proc/{pid}").exists()


async def test_sigterm_drains_and_leaves_no_process(tmp_path: Path) -> None:
    path = write_model(tmp_path / "m.gguf", chat_template="{{ messages[0].content }}")
    async with start_tokenizer(f"--model={path}") as service:
        children = children_of(service.process.pid)
        assert len(children) == 2
        service.signal(signal.SIGTERM)
        assert await service.wait_ended() == 0
        assert service.logged("stopped")
    assert not any(is_running(child) for child in children)
