/* Paged attention for any mix of decode and chunked prefill: items of (sequence, query tile, KV head, KV chunks). */
#include "attention.h"

#include "../native/operations.h"
#include "../native/simd.h"
#include "../native/threads.h"

/* Folds rows b into rows a. A row that saw nothing (sum 0) changes nothing. */
static void merge_rows(int rows, int dim, float *max_a, float *sum_a, float *values_a, const float *max_b,
                       const float *sum_b, const float *values_b) {
    for (int r = 0; r < rows; r++) {
        if (sum_b[r] == 0.0f) continue;
        const float highest = fmaxf(max_a[r], max_b[r]);
        const float scale_a = exp2f(max_a[r] - highest), scale_b = exp2f(max_b[r] - highest);
        for (int i = 0; i < dim; i += LANES)
            store_f32(values_a + r * dim + i,
                      load_f32(values_a + r * dim + i) * scale_a + load_f32(values_b + r * dim + i) * scale_b);
        sum_a[r] = sum_a[r] * scale_a + sum_b[r] * scale_b;
        max_a[r] = highest;
    }
}

#define NAME(x) x##_f32
#define T float
#define P 1
#define DOT(acc, a, b) ((acc) + as_float(a) * as_float(b))
#define STORE_P store_f32
#include "tile.h"
#undef NAME
#undef T
#undef P
#undef DOT
#undef STORE_P

#define NAME(x) x##_bf16
#define T bf16
#define P 2
#define DOT dot_bf16_pairs
#define STORE_P store_bf16
#include "tile.h"
#undef NAME
#undef T
#undef P
#undef DOT
#undef STORE_P

static void run_items(void *pointer) {
    attention_job *job = pointer;
    const attention_step *step = job->step;
    const attention_item *items = (const attention_item *)step->items;
    for (;;) {
        int64_t i = __atomic_fetch_add(&job->next, 1, __ATOMIC_RELAXED);
        if (i >= step->num_items) return;
        if (step->dtype == SHOAL_BFLOAT16)
            attend_bf16(job, items + i);
        else
            attend_f32(job, items + i);
    }
}

/* q: [tokens, q_stride], the query heads first; cache: one layer's; out: [tokens, out_stride]. */
void shoal_paged_attention(const attention_step *step, const void *q, const void *cache, void *out) {
    attention_job job = {step, q, cache, out, 0};
    shoal_parallel(run_items, &job, step->num_items > 1 ? step->num_threads : 1);
}

/* Lists the items of a step. Returns how many; writes those that fit in `capacity`, and the number of partial buffers
 * and of split groups they need. `pending` gets the chunk count of each group if it is not NULL.
 *
 * Items are split over KV only when there are too few of them to keep the threads busy. */
int32_t shoal_plan_attention(const attention_step *step, attention_item *items, int32_t capacity, int32_t *pending,
                             int32_t *num_partials, int32_t *num_groups) {
    const int group_size = step->num_heads / step->num_kv_heads;
    const int most = MAX_ROWS / group_size;
    int64_t whole = 0;
    for (int32_t s = 0; s < step->num_seqs; s++)
        whole += (step->query_starts[s + 1] - step->query_starts[s] + most - 1) / most * step->num_kv_heads;
    const int split = step->num_threads > 1 && whole < 4 * (int64_t)step->num_threads;
    int32_t count = 0, partials = 0, groups = 0;
    for (int32_t s = 0; s < step->num_seqs; s++) {
        const int32_t queries = step->query_starts[s + 1] - step->query_starts[s];
        /* Last tile first: it sees the most KV, and the longest items should not be the last to start. */
        for (int32_t begin = (queries - 1) / most * most; begin >= 0; begin -= most) {
            const int32_t num_queries = queries - begin < most ? queries - begin : most;
            const int32_t first = step->seq_lens[s] - queries + begin, kv_end = first + num_queries;
            const int32_t low = step->sliding_window ? first - step->sliding_window + 1 : 0;
            const int32_t chunk_begin = low > 0 ? low / CHUNK : 0, chunk_end = (kv_end + CHUNK - 1) / CHUNK;
            const int32_t stride = split && chunk_end - chunk_begin > 1 ? 1 : chunk_end - chunk_begin;
            const int is_split = stride < chunk_end - chunk_begin;
            for (int32_t h = 0; h < step->num_kv_heads; h++) {
                for (int32_t c = chunk_begin; c < chunk_end; c += stride, count++)
                    if (count < capacity)
                        items[count] = (attention_item){s,          h,          begin, num_queries,
                                                        c,          c + stride, is_split ? groups : -1,
                                                        is_split ? partials : -1, chunk_begin, chunk_end};
                if (!is_split) continue;
                if (pending) pending[groups] = chunk_end - chunk_begin;
                groups++;
                partials += chunk_end - chunk_begin;
            }
        }
    }
    *num_partials = partials;
    *num_groups = groups;
    return count;
}

int32_t shoal_attention_max_rows(void) { return MAX_ROWS; }
