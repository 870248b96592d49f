/* Attention of one item over its chunks, for one element type. Included once per type with
 *   T, P (elements per 32-bit lane), DOT(acc, a_bits, b_bits), STORE_P(p, v), NAME(x)
 * defined.
 *
 * Online softmax (Milakov and Gimelshein 2018; FlashAttention-2) on lane-packed KV: one 32-bit lane of k holds P
 * consecutive dims of one token, and sixteen tokens lie side by side, so scores come out sixteen to a vector with no
 * horizontal sums; v is packed over tokens in the same way, so both products are the same outer-product kernel.
 */

/* scores[r][16 t ...] = q[r] . k for `columns` groups of sixteen tokens. */
ALWAYS_INLINE void NAME(score_block)(const int rows, const int columns, const uint32_t *q, int q_stride,
                                     const uint32_t *const *k, int k_stride, int steps, float *scores) {
    f32x16 acc[ROW_BLOCK][4];
    for (int r = 0; r < rows; r++)
        for (int c = 0; c < columns; c++) acc[r][c] = splat(0.0f);
    for (int i = 0; i < steps; i++) {
        u32x16 column[4];
#pragma GCC unroll 4
        for (int c = 0; c < columns; c++) column[c] = *(const u32x16_at *)(k[c] + (int64_t)i * k_stride);
#pragma GCC unroll 6
        for (int r = 0; r < rows; r++) {
            u32x16 a = splat_bits(q[r * q_stride + i]);
#pragma GCC unroll 4
            for (int c = 0; c < columns; c++) acc[r][c] = DOT(acc[r][c], a, column[c]);
        }
    }
    for (int r = 0; r < rows; r++)
        for (int c = 0; c < columns; c++) store_f32(scores + r * TILE + c * LANES, acc[r][c]);
}

/* out[r][16 c ...] = out * alpha[r] + sum over tokens of p[r] * v, for `columns` vectors of dims. */
ALWAYS_INLINE void NAME(value_block)(const int rows, const int columns, const uint32_t *p, const uint32_t *const *v,
                                     int num_groups, int dim, int column_offset, const float *alpha, float *out) {
    f32x16 acc[ROW_BLOCK][4];
#pragma GCC unroll 6
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
        for (int c = 0; c < columns; c++) acc[r][c] = load_f32(out + r * dim + c * LANES) * alpha[r];
    for (int g = 0; g < num_groups; g++) {
        const uint32_t *group = v[g] + column_offset;
        for (int i = 0; i < LANES / P; i++) {
            u32x16 column[4];
#pragma GCC unroll 4
            for (int c = 0; c < columns; c++) column[c] = *(const u32x16_at *)(group + i * dim + c * LANES);
#pragma GCC unroll 6
            for (int r = 0; r < rows; r++) {
                u32x16 a = splat_bits(p[r * (TILE / P) + g * (LANES / P) + i]);
#pragma GCC unroll 4
                for (int c = 0; c < columns; c++) acc[r][c] = DOT(acc[r][c], a, column[c]);
            }
        }
    }
#pragma GCC unroll 6
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
        for (int c = 0; c < columns; c++) store_f32(out + r * dim + c * LANES, acc[r][c]);
}

#define BY_ROWS(CALL) \
    switch (rows) {   \
    case 1: CALL(1); break; \
    case 2: CALL(2); break; \
    case 3: CALL(3); break; \
    case 4: CALL(4); break; \
    case 5: CALL(5); break; \
    default: CALL(6); break; \
    }

static void NAME(score)(int rows, const uint32_t *q, int dim, const uint32_t *const *k, int k_stride, int num_groups,
                        float *scores) {
    int g = 0;
    for (; g + 4 <= num_groups; g += 4) {
#define CALL(R) NAME(score_block)(R, 4, q, dim / P, k + g, k_stride, dim / P, scores + g * LANES)
        BY_ROWS(CALL)
#undef CALL
    }
    for (; g < num_groups; g++) {
#define CALL(R) NAME(score_block)(R, 1, q, dim / P, k + g, k_stride, dim / P, scores + g * LANES)
        BY_ROWS(CALL)
#undef CALL
    }
}

static void NAME(values)(int rows, const uint32_t *p, const uint32_t *const *v, int num_groups, int dim,
                         const float *alpha, float *out) {
    int d = 0;
    for (; d + 4 * LANES <= dim; d += 4 * LANES) {
#define CALL(R) NAME(value_block)(R, 4, p, v, num_groups, dim, d, alpha, out + d)
        BY_ROWS(CALL)
#undef CALL
    }
    for (; d + 2 * LANES <= dim; d += 2 * LANES) {
#define CALL(R) NAME(value_block)(R, 2, p, v, num_groups, dim, d, alpha, out + d)
        BY_ROWS(CALL)
#undef CALL
    }
    for (; d < dim; d += LANES) {
#define CALL(R) NAME(value_block)(R, 1, p, v, num_groups, dim, d, alpha, out + d)
        BY_ROWS(CALL)
#undef CALL
    }
}
#undef BY_ROWS

/* Scales a row's scores and masks the columns outside [low, high), whatever they hold (NaN from a slot never written,
 * too). Returns the largest, -inf if there is none. */
ALWAYS_INLINE float NAME(mask_row)(float *scores, int num_groups, int low, int high, float scale) {
    const i32x16 lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    const f32x16 masked = splat(-INFINITY);
    f32x16 top = masked;
    for (int g = 0; g < num_groups; g++) {
        const int first = g * LANES;
        f32x16 s = load_f32(scores + first) * scale;
        if (first < low || first + LANES > high) s = blend((lane + first >= low) & (lane + first < high), s, masked);
        store_f32(scores + first, s);
        top = max_f32(s, top);
    }
    return max_lanes(top);
}

/* Turns the scores of a row block into probabilities relative to the running maxima, which it raises; `alpha` gets what
 * the rows' earlier sums are to be multiplied by. `low` and `high` as for mask_row, per row. */
static void NAME(softmax_block)(int rows, float *scores, int num_groups, const int *low, const int *high, float scale,
                                float *maxima, float *sums, float *alpha, T *p) {
    float change[LANES] = {0}, base[ROW_BLOCK];
    for (int r = 0; r < rows; r++) {
        const float top = NAME(mask_row)(scores + r * TILE, num_groups, low[r], high[r], scale);
        const float highest = top > maxima[r] ? top : maxima[r];
        base[r] = highest == -INFINITY ? 0.0f : highest;
        change[r] = maxima[r] - base[r];
        maxima[r] = highest;
    }
    float factors[LANES];
    store_f32(factors, exp2_f32(load_f32(change)));
    for (int r = 0; r < rows; r++) {
        f32x16 total = splat(0.0f);
        for (int g = 0; g < num_groups; g++) {
            const f32x16 e = exp2_f32(load_f32(scores + r * TILE + g * LANES) - base[r]);
            total += e;
            STORE_P(p + r * TILE + g * LANES, e);
        }
        alpha[r] = factors[r];
        sums[r] = sums[r] * factors[r] + sum_lanes(total);
    }
}

typedef struct {
    const attention_step *step;
    const T *cache; /* of this item's KV head */
    const int32_t *table;
    int first_position; /* of the item's first query token */
    int rows, group;    /* query rows; query heads that share the KV head */
    int kv_end;         /* one past the last position that any row sees */
} NAME(view);

/* Pointers to the sixteen-token groups of a tile. The last group of the sequence is copied with zeros for tokens that
 * do not exist: 0 * NaN would be NaN. */
static void NAME(locate)(const NAME(view) *view, int tile_begin, int num_groups, const uint32_t **k, const uint32_t **v,
                         uint32_t *v_tail) {
    const attention_step *step = view->step;
    const int size = step->block_size, dim = step->head_dim;
    for (int g = 0; g < num_groups; g++) {
        const int position = tile_begin + g * LANES, at = position % size;
        const T *block = view->cache + (int64_t)view->table[position / size] * step->block_stride;
        k[g] = (const uint32_t *)(block + at * P);
        v[g] = (const uint32_t *)(block + step->v_offset + (int64_t)at * dim);
        const int valid = view->kv_end - position;
        if (valid < LANES) {
            const int whole = valid / P;
            memcpy(v_tail, v[g], (size_t)whole * dim * 4);
            memset(v_tail + whole * dim, 0, (size_t)(LANES / P - whole) * dim * 4);
            for (int i = 0; P == 2 && valid % 2 && i < dim; i++)
                ((T *)(v_tail + whole * dim))[2 * i] = ((const T *)(v[g] + whole * dim))[2 * i];
            v[g] = v_tail;
        }
    }
}

/* One chunk: rows' maxima, sums and weighted values from nothing. Whole row blocks skip what no row of them sees. */
static void NAME(chunk)(const NAME(view) *view, const T *q, int begin, int end, float *maxima, float *sums, float *out) {
    const attention_step *step = view->step;
    const int dim = step->head_dim, rows = view->rows, window = step->sliding_window;
    const float scale = step->scale * 1.4426950408889634f;
    uint32_t v_tail[LANES / P * MAX_DIM] __attribute__((aligned(64)));
    float scores[ROW_BLOCK * TILE] __attribute__((aligned(64)));
    T p[ROW_BLOCK * TILE] __attribute__((aligned(64)));
    const uint32_t *k[TILE / LANES], *v[TILE / LANES];
    for (int r = 0; r < rows; r++) maxima[r] = -INFINITY, sums[r] = 0.0f;
    memset(out, 0, sizeof(float) * (size_t)rows * dim);
    for (int tile = begin; tile < end; tile += TILE) {
        const int tile_end = tile + TILE < end ? tile + TILE : end;
        NAME(locate)(view, tile, (tile_end - tile + LANES - 1) / LANES, k, v, v_tail);
        for (int r = 0; r < rows; r += ROW_BLOCK) {
            const int count = rows - r < ROW_BLOCK ? rows - r : ROW_BLOCK;
            const int last = view->first_position + (r + count - 1) / view->group;
            const int first = view->first_position + r / view->group;
            const int seen = last + 1 < tile_end ? last + 1 : tile_end;
            if (seen <= tile || (window && first - window + 1 >= tile_end)) continue;
            const int num_groups = (seen - tile + LANES - 1) / LANES;
            float alpha[ROW_BLOCK];
            NAME(score)(count, (const uint32_t *)(q + r * dim), dim, k, step->block_size, num_groups, scores);
            int low[ROW_BLOCK], high[ROW_BLOCK];
            for (int i = 0; i < count; i++) {
                const int position = view->first_position + (r + i) / view->group;
                low[i] = window ? position - window + 1 - tile : 0;
                high[i] = position + 1 - tile;
            }
            NAME(softmax_block)(count, scores, num_groups, low, high, scale, maxima + r, sums + r, alpha, p);
            NAME(values)(count, (const uint32_t *)p, v, num_groups, dim, alpha, out + r * dim);
        }
    }
}

static void NAME(write_out)(const attention_job *job, const attention_item *item, int rows, int group, const float *sums,
                            const float *values) {
    const attention_step *step = job->step;
    const int dim = step->head_dim;
    const int64_t token = step->query_starts[item->seq] + item->query_begin;
    for (int r = 0; r < rows; r++) {
        T *out = (T *)job->out + (token + r / group) * step->out_stride + (item->kv_head * group + r % group) * dim;
        const float inverse = 1.0f / sums[r];
        for (int i = 0; i < dim; i += LANES) STORE_P(out + i, load_f32(values + r * dim + i) * inverse);
    }
}

static void NAME(attend)(const attention_job *job, const attention_item *item) {
    const attention_step *step = job->step;
    const int dim = step->head_dim, group = step->num_heads / step->num_kv_heads;
    const int rows = item->num_queries * group;
    const int query_len = step->query_starts[item->seq + 1] - step->query_starts[item->seq];
    const int first_position = step->seq_lens[item->seq] - query_len + item->query_begin;
    const NAME(view) view = {step,
                             (const T *)job->cache + item->kv_head * step->head_stride,
                             step->block_tables + step->table_rows[item->seq] * step->table_stride,
                             first_position,
                             rows,
                             group,
                             first_position + item->num_queries};
    T q[MAX_ROWS * MAX_DIM] __attribute__((aligned(64)));
    float maxima[2][MAX_ROWS], sums[2][MAX_ROWS];
    float values[2][MAX_ROWS * MAX_DIM] __attribute__((aligned(64)));
    const int64_t token = step->query_starts[item->seq] + item->query_begin;
    for (int r = 0; r < rows; r++)
        memcpy(q + r * dim,
               (const T *)job->q + (token + r / group) * step->q_stride + (item->kv_head * group + r % group) * dim,
               sizeof(T) * (size_t)dim);
    for (int c = item->chunk_begin; c < item->chunk_end; c++) {
        const int begin = c * CHUNK, end = begin + CHUNK < view.kv_end ? begin + CHUNK : view.kv_end;
        if (item->group >= 0) {
            float *partial = step->partials + (int64_t)(item->first_partial + c - item->group_chunk_begin) *
                                                  MAX_ROWS * (dim + 2);
            NAME(chunk)(&view, q, begin, end, partial, partial + MAX_ROWS, partial + 2 * MAX_ROWS);
            continue;
        }
        const int into = c > item->chunk_begin;
        NAME(chunk)(&view, q, begin, end, maxima[into], sums[into], values[into]);
        if (into) merge_rows(rows, dim, maxima[0], sums[0], values[0], maxima[1], sums[1], values[1]);
    }
    if (item->group >= 0) {
        const int done = item->chunk_end - item->chunk_begin;
        if (__atomic_sub_fetch(&step->pending[item->group], done, __ATOMIC_ACQ_REL) != 0) return;
        const int chunks = item->group_chunk_end - item->group_chunk_begin;
        const int64_t size = (int64_t)MAX_ROWS * (dim + 2);
        float *first = step->partials + item->first_partial * size;
        for (int c = 1; c < chunks; c++) {
            const float *other = first + c * size;
            merge_rows(rows, dim, first, first + MAX_ROWS, first + 2 * MAX_ROWS, other, other + MAX_ROWS,
                       other + 2 * MAX_ROWS);
        }
        __atomic_store_n(&step->pending[item->group], chunks, __ATOMIC_RELEASE);
        NAME(write_out)(job, item, rows, group, first + MAX_ROWS, first + 2 * MAX_ROWS);
        return;
    }
    NAME(write_out)(job, item, rows, group, sums[0], values[0]);
}
