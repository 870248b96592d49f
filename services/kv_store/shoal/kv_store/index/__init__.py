"""Which blocks are visible, and where: a forest of keys in which every block's parent is there too."""

from shoal.kv_store.index.block_index import NO_SLOT as NO_SLOT
from shoal.kv_store.index.block_index import BlockIndex as BlockIndex
