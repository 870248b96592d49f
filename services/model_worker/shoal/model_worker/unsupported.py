"""Settings that manifests may have and this engine cannot do: refused at start, not passed over."""

from __future__ import annotations

from typing import Final

from shoal.model_worker.config import WorkerConfig

_NOT_THERE_YET: Final = (
    # Setting, values that the engine can do, what it would take.
    ("role", ("both",), "prefill and decode apart"),
    ("tensor_parallel_size", (1,), "a layer on several devices"),
    ("pipeline_parallel_size", (1,), "layers on several devices"),
    ("expert_parallel_size", (1,), "experts on several devices"),
    ("data_parallel_size", (1,), "several copies in one worker"),
    ("quantization", ("auto", "none"), "weights made smaller in other ways than the model's files say"),
    ("speculative_method", ("",), "tokens guessed ahead"),
    ("num_speculative_tokens", (0,), "tokens guessed ahead"),
    ("draft_model", ("",), "tokens guessed ahead"),
    ("lora_registry", ("",), "adapters beside its model"),
)


def find_unsupported(config: WorkerConfig) -> str | None:
    """One line that names each such flag, its value and what to give; None when there is none."""
    problems = []
    for name, can_do, what in _NOT_THERE_YET:
        value = getattr(config, name)
        if value not in can_do:
            allowed = " or ".join(str(each) for each in can_do if each != "")
            remedy = f"give {allowed}, or leave it out" if allowed else "leave it out"
            problems.append(f"--{name.replace('_', '-')}={value}: this engine has no {what} yet; {remedy}")
    return "; ".join(problems) or None
