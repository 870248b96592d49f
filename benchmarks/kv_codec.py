"""What compressing KV blocks costs and saves, on the KV of a real model reading a real text.

Run: python benchmarks/kv_codec.py --model PATH.gguf --text FILE [--json OUT]. The text is read in blocks of 16 tokens;
after each block its keys and values are replaced by what a codec restores of them, so that every prediction but a
block's own rests on restored KV: the worst case, as a store's prefix is only a part of what a request attends to.

Perplexity is of all tokens but the first block's. Ratios and speeds are of blocks as a store would get them, in
bfloat16 as on a GPU, layer by layer, keys before values, head by head.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache

from rows import Row, write_results
from shoal.kv_codec import BlockShape, Codec, make_codec
from shoal.kv_store.disk import ShuffledZstd

BLOCK_TOKENS = 16
PERPLEXITY_BAR = 1.01
"""Of fp8: at most 1% above none."""
ROUNDS = 5
Restore = Callable[[torch.Tensor], torch.Tensor]


def main() -> None:
    """Command line entry."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    path = arguments.model
    model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    ids = tokenizer(arguments.text.read_text()).input_ids[: arguments.tokens]
    num_tokens = len(ids) // BLOCK_TOKENS * BLOCK_TOKENS
    rows, blocks = _measure_perplexity(model, ids[:num_tokens])
    rows += _measure_codecs(blocks)
    for row in rows:
        print(f"{row.name:48} {row.value:10.4f} {row.unit:12} {row.peer or 0:10.4f} {row.ratio or 0:7.3f}")
    if arguments.json:
        settings = {"tokens": num_tokens, "block_tokens": BLOCK_TOKENS, "model": path.name}
        write_results(arguments.json, rows, settings)


def _measure_perplexity(model: Any, ids: list[int]) -> tuple[list[Row], list[bytes]]:
    """Rows, and the blocks' payloads in bfloat16."""
    blocks: list[bytes] = []

    def keep(block: torch.Tensor) -> torch.Tensor:
        blocks.append(block.to(torch.bfloat16).contiguous().view(torch.uint8).numpy().tobytes())
        return block

    plain = _perplexity(model, ids, keep)
    fp8 = _perplexity(model, ids, _through_fp8(torch.float32))
    bf16 = _perplexity(model, ids, lambda block: block.to(torch.bfloat16).float())
    both = _perplexity(model, ids, _through_fp8(torch.bfloat16))
    rows = [
        Row("perplexity, KV float32", plain, "", None, None),
        Row("perplexity, KV float32 through fp8", fp8, "", plain, PERPLEXITY_BAR * plain / fp8),
        Row("perplexity, KV bfloat16", bf16, "", plain, None),
        Row("perplexity, KV bfloat16 through fp8", both, "", bf16, PERPLEXITY_BAR * bf16 / both),
    ]
    return rows, blocks


@torch.inference_mode()
def _perplexity(model: Any, ids: list[int], restore: Restore) -> float:
    """Of tokens after the first block; `restore` gets each block's KV [layers, 2, heads, tokens, head size]."""
    cache = DynamicCache()
    losses: list[float] = []
    tokens = torch.tensor([ids])
    for start in range(0, len(ids), BLOCK_TOKENS):
        logits = model(tokens[:, start : start + BLOCK_TOKENS], past_key_values=cache).logits[0].float()
        targets = tokens[0, start + 1 : start + BLOCK_TOKENS + 1]
        loss = torch.nn.functional.cross_entropy(logits[: len(targets)], targets, reduction="none")
        losses += loss[0 if start else BLOCK_TOKENS - 1 :].tolist()
        block = torch.stack(
            [torch.stack([layer.keys[0, :, start:], layer.values[0, :, start:]]) for layer in cache.layers]
        )
        for layer, (keys, values) in zip(cache.layers, restore(block), strict=True):
            layer.keys[0, :, start:] = keys
            layer.values[0, :, start:] = values
    return math.exp(statistics.fmean(losses))


def _through_fp8(dtype: torch.dtype) -> Restore:
    def restore(block: torch.Tensor) -> torch.Tensor:
        payload = block.to(dtype).contiguous().view(torch.uint8).numpy().tobytes()
        codec = _fp8(block.shape[0] * 2 * block.shape[2], len(payload), dtype)
        stored, restored = bytearray(codec.stored_bytes), bytearray(len(payload))
        codec.encode(payload, stored)
        codec.decode(stored, restored)
        return torch.frombuffer(restored, dtype=dtype).view(block.shape).float()

    return restore


def _fp8(num_groups: int, num_bytes: int, dtype: torch.dtype) -> Codec:
    name = "bfloat16" if dtype == torch.bfloat16 else "float32"
    return make_codec("fp8", BlockShape(num_groups, num_bytes // num_groups // dtype.itemsize, name))  # type: ignore[arg-type]


def _measure_codecs(blocks: list[bytes]) -> list[Row]:
    """Ratios and speeds on one core, of payloads in bfloat16 and of their fp8 form."""
    size = len(blocks[0])
    num_groups = size // (BLOCK_TOKENS * 64 * 2)
    codec = _fp8(num_groups, size, torch.bfloat16)
    stored = [bytearray(codec.stored_bytes) for _ in blocks]
    restored = bytearray(size)

    def encode() -> None:
        for block, into in zip(blocks, stored, strict=True):
            codec.encode(block, into)

    def decode() -> None:
        for each in stored:
            codec.decode(each, restored)

    encode_s, decode_s = _time(encode), _time(decode)
    megabytes = size * len(blocks) / 1e6
    rows = [
        Row("fp8: smaller by", size / codec.stored_bytes, "times", None, None),
        Row("fp8: encode", megabytes / encode_s, "MB/s", None, None),
        Row("fp8: decode", megabytes / decode_s, "MB/s", None, None),
    ]
    rows += _measure_zstd("shuffle and zstd of bfloat16", blocks, ShuffledZstd(2))
    rows += _measure_zstd("zstd of fp8", [bytes(each) for each in stored], ShuffledZstd(1))
    return rows


def _measure_zstd(name: str, payloads: list[bytes], codec: ShuffledZstd) -> list[Row]:
    size = len(payloads[0])
    packed = [codec.encode(memoryview(each)) for each in payloads]
    encode_s = _time(lambda: [codec.encode(memoryview(each)) for each in payloads])
    whole = [(each, payload) for each, payload in zip(packed, payloads, strict=True) if each is not None]
    decode_s = _time(lambda: [codec.decode(memoryview(each), size) for each, _ in whole])
    if any(codec.decode(memoryview(each), size) != payload for each, payload in whole):
        raise SystemExit("zstd lost something")
    stored_bytes = sum(size if each is None else len(each) for each in packed)
    megabytes = size / 1e6
    return [
        Row(f"{name}: smaller by", size * len(payloads) / stored_bytes, "times", None, None),
        Row(f"{name}: encode", megabytes * len(payloads) / encode_s, "MB/s", None, None),
        Row(f"{name}: decode", megabytes * len(whole) / decode_s if whole else 0.0, "MB/s", None, None),
    ]


def _time(call: Callable[[], object]) -> float:
    """Median seconds."""
    call()
    times = []
    for _ in range(ROUNDS):
        start_s = time.perf_counter()
        call()
        times.append(time.perf_counter() - start_s)
    return statistics.median(times)


if __name__ == "__main__":
    main()
