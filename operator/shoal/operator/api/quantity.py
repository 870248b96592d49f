"""Kubernetes quantities (`512Mi`, `2G`, `1.5Gi`, `1e9`) as whole bytes."""

from __future__ import annotations

import re
from decimal import Decimal

QUANTITY_PATTERN = r"^[0-9]+(\.[0-9]+)?(Ki|Mi|Gi|Ti|k|M|G|T|e[0-9]{1,2})?$"
QUANTITY_ALLOWED = "a quantity such as 512Mi, 2Gi or 1.5G"
CPU_PATTERN = r"^([0-9]+(\.[0-9]{1,3})?|[0-9]+m)$"
CPU_ALLOWED = "cores, such as 2, 0.5 or 500m"

_FACTORS = {
    "": 1,
    "k": 10**3,
    "M": 10**6,
    "G": 10**9,
    "T": 10**12,
    "Ki": 1 << 10,
    "Mi": 1 << 20,
    "Gi": 1 << 30,
    "Ti": 1 << 40,
}
_DECIMAL = {"K": "k", "M": "M", "G": "G", "T": "T"}


def parse_quantity(quantity: str | int) -> int:
    """Bytes, rounded down. Raises ValueError naming the text for anything that `QUANTITY_PATTERN` does not match."""
    if isinstance(quantity, int):
        return quantity
    match = re.match(QUANTITY_PATTERN, quantity)
    if match is None:
        raise ValueError(f"{quantity!r} is not {QUANTITY_ALLOWED}")
    suffix = match.group(2) or ""
    if suffix.startswith("e"):
        return int(Decimal(quantity))
    return int(Decimal(quantity.removesuffix(suffix)) * _FACTORS[suffix])


def suggest_quantity(text: str) -> str:
    """For what looks like bytes and is no quantity: `; did you mean 16G or 16Gi?`. Empty for anything else."""
    match = re.fullmatch(r"([0-9]{1,9}(?:\.[0-9]{1,3})?) ?([kmgt])(i?)b?", text.strip(), re.IGNORECASE)
    if match is None:
        return ""
    number, prefix, is_binary = match.group(1), match.group(2).upper(), bool(match.group(3))
    binary = f"{number}{prefix}i"
    return f"; did you mean {binary}?" if is_binary else f"; did you mean {number}{_DECIMAL[prefix]} or {binary}?"


def parse_cpu(quantity: str | int) -> float:
    """Cores, from what `CPU_PATTERN` matches."""
    text = str(quantity)
    return int(text[:-1]) / 1000 if text.endswith("m") else float(text)


def format_bytes(num_bytes: int) -> str:
    """For people: `512.0Mi`, with one decimal."""
    for suffix in ("Ti", "Gi", "Mi", "Ki"):
        if num_bytes >= _FACTORS[suffix]:
            return f"{num_bytes / _FACTORS[suffix]:.1f}{suffix}"
    return f"{num_bytes} bytes"
