"""What becomes of a KV block's bytes between a worker's cache and a store.

    codec = make_codec("fp8", BlockShape(num_groups=30 * 2 * 3, group_elements=16 * 64, dtype="bfloat16"))
    codec.encode(payload, into=staging)      # staging has codec.stored_bytes
    codec.decode(stored, into=block)

A codec that changes bytes is part of the block keys' namespace and of the fingerprint: append `codec.suffix` to the KV
layout's name before the namespace key is made. `none` has no suffix. What a store does to bytes on its own disk and
undoes before they leave it (byte shuffle and zstd) is nobody's business but its own, and is not in the namespace.
"""

from shoal.kv_codec.codecs import NAMES as NAMES
from shoal.kv_codec.codecs import BlockShape as BlockShape
from shoal.kv_codec.codecs import Codec as Codec
from shoal.kv_codec.codecs import Identity as Identity
from shoal.kv_codec.codecs import make_codec as make_codec
from shoal.kv_codec.fp8 import Fp8 as Fp8
