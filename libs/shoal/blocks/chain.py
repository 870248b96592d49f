"""A prompt's block keys, made as far as somebody asks, where many are made at once.

Natively the whole chain is one call, into OpenSSL: 85 us for 8,192 tokens in blocks of 16, against 245 us by hashlib.
The functions are those of the libcrypto that Python's own hashlib has loaded, so there is nothing to install or to
link; where it cannot be reached, or there is no C compiler, hashlib does the same.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import importlib
import logging
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final

from shoal.blocks.words import KEY_BYTES, to_words
from shoal.native import Library, NativeBuildError, build

_LIBRARY: Final = Library("shoal-blocks", "native", Path(__file__).resolve().parent, ("hash_chain.c",))
_logger = logging.getLogger(__name__)
HashChain = Callable[[bytes, int, int, int, int, int], None]
"""(parent, address of the words, bytes a block, address of the keys, first, last): writes keys[first:last]."""


class KeyChain:
    """Keys of the full blocks of a sequence. Hashed once each, from the start, never further than asked."""

    __slots__ = ("_block_bytes", "_keys", "_num_hashed", "_parent", "_words")

    def __init__(self, parent: bytes, tokens: Sequence[int], block_size: int) -> None:
        """`parent` has 16 bytes, token ids fit 32 bits unsigned; a `block_size` of 0 means no blocks."""
        if len(parent) != KEY_BYTES:
            raise ValueError(f"a parent key has {KEY_BYTES} bytes, not {len(parent)}")
        self._parent = parent
        self._words = to_words(tokens) if block_size else array("I")
        self._block_bytes = 4 * block_size
        self._keys = array("Q", bytes(KEY_BYTES * (len(self._words) // block_size if block_size else 0)))
        self._num_hashed = 0

    @classmethod
    def of(cls, keys: Iterable[bytes]) -> KeyChain:
        """A chain of keys that are known already. Raises ValueError unless each has 16 bytes."""
        return cls.unpacked(join_keys(list(keys)))

    @classmethod
    def unpacked(cls, keys: bytes) -> KeyChain:
        """A chain of known keys, one after the other, as `packed` gives them."""
        chain = cls(bytes(KEY_BYTES), (), 0)
        chain._keys = array("Q", keys)
        chain._num_hashed = len(chain)
        return chain

    def packed(self, first: int, last: int) -> bytes:
        """Keys [first:last], or as many as there are, one after the other."""
        self.hash_to(last)
        return self._keys[2 * first : 2 * last].tobytes()

    def __len__(self) -> int:
        return len(self._keys) // 2

    def __iter__(self) -> Iterator[bytes]:
        for index in range(len(self)):
            self.hash_to(index + 1)
            yield self._keys[2 * index : 2 * index + 2].tobytes()

    @property
    def num_hashed(self) -> int:
        """Keys made so far."""
        return self._num_hashed

    @property
    def address(self) -> int:
        """Of the first key, in memory that lives as long as this; keys follow each other."""
        return self._keys.buffer_info()[0]

    def hash_to(self, num: int) -> int:
        """Makes sure that the first `num` keys are there, or all; how many there are."""
        first, last = self._num_hashed, min(num, len(self))
        if last <= first:
            return first
        self._num_hashed = last
        native = native_hash_chain()
        if native is None:
            self._hash_in_python(first, last)
        else:
            words = self._words.buffer_info()[0]
            native(self._parent, words, self._block_bytes, self.address, first, last)
        return last

    def _hash_in_python(self, first: int, last: int) -> None:
        data, step, sha256 = self._words.tobytes(), self._block_bytes, hashlib.sha256
        keys = memoryview(self._keys).cast("B")
        parent = bytes(keys[KEY_BYTES * (first - 1) : KEY_BYTES * first]) if first else self._parent
        for index in range(first, last):
            parent = sha256(parent + data[step * index : step * (index + 1)]).digest()[:KEY_BYTES]
            keys[KEY_BYTES * index : KEY_BYTES * (index + 1)] = parent


def join_keys(keys: Sequence[bytes]) -> bytes:
    """Keys one after the other. Raises ValueError unless each has 16 bytes."""
    if sizes := set(map(len, keys)) - {KEY_BYTES}:
        raise ValueError(f"a block key has {KEY_BYTES} bytes, not {min(sizes)}")
    return b"".join(keys)


@functools.cache
def native_hash_chain() -> HashChain | None:
    """The native chain, compiled on the first call and checked against hashlib; None where it cannot be had."""
    try:
        hash_chain = _bind()
    except (NativeBuildError, OSError, AttributeError, ImportError) as error:
        _logger.warning("block keys are hashed in Python, several times slower: %s", error)
        return None
    words, keys = array("I", range(32)), array("Q", bytes(2 * KEY_BYTES))
    hash_chain(bytes(KEY_BYTES), words.buffer_info()[0], 64, keys.buffer_info()[0], 0, 2)
    first = hashlib.sha256(bytes(KEY_BYTES) + words[:16].tobytes()).digest()[:KEY_BYTES]
    if keys.tobytes() == first + hashlib.sha256(first + words[16:].tobytes()).digest()[:KEY_BYTES]:
        return hash_chain
    _logger.warning("block keys are hashed in Python, several times slower: libcrypto computes something else")
    return None


def _bind() -> HashChain:
    # The extension is linked to libcrypto, whose symbols are found through it; built in, it is the program itself.
    libcrypto = ctypes.PyDLL(importlib.import_module("_hashlib").__dict__.get("__file__"))
    names = ("SHA256_Init", "SHA256_Update", "SHA256_Final")
    functions = [ctypes.cast(getattr(libcrypto, name), ctypes.c_void_p) for name in names]
    # PyDLL keeps the GIL: giving it up and taking it back costs more than most of these calls.
    function = ctypes.PyDLL(str(build(_LIBRARY))).shoal_hash_chain
    pointer, size = ctypes.c_void_p, ctypes.c_uint64
    function.argtypes, function.restype = (*(pointer,) * 5, size, pointer, size, size), None
    return functools.partial(function, *functions)
