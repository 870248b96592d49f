/* What the two element types of the attention share: the step's description, the work items, the merge buffers. */
#ifndef SHOAL_ATTENTION_H
#define SHOAL_ATTENTION_H

#include <stdint.h>

enum {
    MAX_ROWS = 96,    /* query rows (tokens x heads of a group) of an item */
    MAX_DIM = 256,    /* head_dim */
    TILE = 128,       /* KV tokens scored before one softmax update */
    CHUNK = 256,      /* KV tokens between merges; fixed, so that a row's result never depends on the batch around it */
    ROW_BLOCK = 6     /* rows whose accumulators share the vector registers: 6 x 4 of 32 */
};

/* Fixed for a step and the layers of one scale and window. Built by Python (paged_attention/plan.py mirrors the fields). */
typedef struct {
    const int32_t *query_starts; /* [num_seqs + 1] */
    const int32_t *seq_lens;     /* [num_seqs] tokens with KV, those of this step included */
    const int32_t *block_tables; /* [*, table_stride] */
    const int32_t *table_rows;   /* [num_seqs] row of block_tables */
    const int32_t *items;        /* [num_items, ITEM_FIELDS] */
    float *partials;             /* [num_partials, MAX_ROWS * (head_dim + 2)] */
    int32_t *pending;            /* [num_groups] chunks of a split item not yet done; restored when they are */
    int64_t table_stride;
    int64_t q_stride, out_stride;                 /* elements between tokens */
    int64_t block_stride, v_offset, head_stride;  /* elements */
    int32_t num_seqs, num_items, num_heads, num_kv_heads, head_dim, block_size;
    int32_t sliding_window; /* 0: none */
    int32_t dtype, num_threads;
    float scale;
} attention_step;

/* A KV head's share of a run of query tokens of one sequence, over chunks [chunk_begin, chunk_end) of its KV. */
typedef struct {
    int32_t seq, kv_head, query_begin, num_queries, chunk_begin, chunk_end;
    int32_t group, first_partial; /* -1 unless the item is one of several that share these rows */
    int32_t group_chunk_begin, group_chunk_end;
} attention_item;

enum { ITEM_FIELDS = sizeof(attention_item) / sizeof(int32_t) };

typedef struct {
    const attention_step *step;
    const char *q, *cache;
    char *out;
    int64_t next;
} attention_job;

#endif
