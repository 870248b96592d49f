/* Copies whole KV blocks: a block is one contiguous run of bytes in the cache, all layers included. */
#include <string.h>

#include "../native/threads.h"

typedef struct {
    char *cache;
    const int32_t *pairs;
    int64_t block_bytes;
} copy_job;

static void copy_blocks(void *pointer, int64_t begin, int64_t end) {
    const copy_job *job = pointer;
    for (int64_t i = begin; i < end; i++)
        memcpy(job->cache + job->pairs[2 * i + 1] * job->block_bytes, job->cache + job->pairs[2 * i] * job->block_bytes,
               (size_t)job->block_bytes);
}

/* pairs: [count, 2] (source, target); no target is the source or target of another pair. */
void shoal_block_copy(void *cache, const int32_t *pairs, int64_t count, int64_t block_bytes, int num_threads) {
    copy_job job = {cache, pairs, block_bytes};
    shoal_parallel_for(count, 1, num_threads, copy_blocks, &job);
}
