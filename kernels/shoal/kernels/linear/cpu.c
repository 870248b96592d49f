/* Products of a few rows with a weight in panels of 64 outputs, [out / 64][in / P][64][P] with P elements to 32 bits:
 * the layout that oneDNN packs bfloat16 and float32 weights in, so that both can use one copy.
 *
 * Each output is one chain of multiply-adds over `in`, whatever the number of rows: a row's result does not depend on
 * the rows beside it.
 */
#include "../native/operations.h"
#include "../native/simd.h"
#include "../native/threads.h"

/* PREFETCH: steps of 256 bytes ahead; 32 of them take six rows from 42 to 50 GB/s on a Zen 5 core. The panels of an item
 * follow each other, so reading ahead past the end of one is reading the next. */
enum { PANEL = 64, ROWS_AT_ONCE = 6, PREFETCH = 32 };

typedef struct {
    const char *x, *weight, *bias;
    char *out;
    int64_t rows, in, features;
    int64_t whole; /* items that are a panel; those after them are halves */
    int32_t out_float32;
} linear_job;

#define DOT_f32(acc, a, b) ((acc) + as_float(a) * as_float(b))
#define DOT_bf16 dot_bf16_pairs

#define DEFINE_LINEAR(SUFFIX, T, P, LOAD, STORE, TO_FLOAT, FROM_FLOAT)                                             \
    ALWAYS_INLINE void product_##SUFFIX(const int rows, const int columns, const T *x, int64_t in,                 \
                                        const uint32_t *weight, f32x16 acc[ROWS_AT_ONCE][4]) {                     \
        for (int r = 0; r < rows; r++)                                                                             \
            for (int c = 0; c < columns; c++) acc[r][c] = splat(0.0f);                                             \
        for (int64_t i = 0; i < in / P; i++) {                                                                     \
            u32x16 w[4];                                                                                           \
            _Pragma("GCC unroll 4") for (int c = 0; c < columns; c++)                                              \
                __builtin_prefetch(weight + (i + PREFETCH) * PANEL + c * LANES);                                   \
            _Pragma("GCC unroll 4") for (int c = 0; c < columns; c++)                                              \
                w[c] = *(const u32x16_at *)(weight + i * PANEL + c * LANES);                                       \
            _Pragma("GCC unroll 6") for (int r = 0; r < rows; r++) {                                               \
                u32x16 a = splat_bits(*(const u32_at *)(x + r * in + i * P));                                      \
                _Pragma("GCC unroll 4") for (int c = 0; c < columns; c++)                                          \
                    acc[r][c] = DOT_##SUFFIX(acc[r][c], a, w[c]);                                                  \
            }                                                                                                      \
        }                                                                                                          \
    }                                                                                                              \
    ALWAYS_INLINE void finish_##SUFFIX(const linear_job *job, int64_t row, int64_t feature, f32x16 value) {        \
        int64_t left = job->features - feature, at = row * job->features + feature;                                \
        float lane[LANES];                                                                                         \
        if (left >= LANES) {                                                                                       \
            if (job->bias) value += LOAD((const T *)job->bias + feature);                                          \
            if (job->out_float32)                                                                                  \
                store_f32((float *)job->out + at, value);                                                          \
            else                                                                                                   \
                STORE((T *)job->out + at, value);                                                                  \
            return;                                                                                                \
        }                                                                                                          \
        store_f32(lane, value);                                                                                    \
        for (int64_t i = 0; i < left; i++) {                                                                       \
            float v = lane[i] + (job->bias ? TO_FLOAT(((const T *)job->bias)[feature + i]) : 0.0f);                \
            if (job->out_float32)                                                                                  \
                ((float *)job->out)[at + i] = v;                                                                   \
            else                                                                                                   \
                ((T *)job->out)[at + i] = FROM_FLOAT(v);                                                           \
        }                                                                                                          \
    }                                                                                                              \
    ALWAYS_INLINE void block_##SUFFIX(const int rows, const int columns, const linear_job *job, int64_t row,       \
                                      int64_t feature, const uint32_t *weight) {                                   \
        f32x16 acc[ROWS_AT_ONCE][4];                                                                               \
        product_##SUFFIX(rows, columns, (const T *)job->x + row * job->in, job->in, weight, acc);                  \
        _Pragma("GCC unroll 6") for (int r = 0; r < rows; r++)                                                     \
            _Pragma("GCC unroll 4") for (int c = 0; c < columns; c++)                                              \
                finish_##SUFFIX(job, row + r, feature + c * LANES, acc[r][c]);                                     \
    }                                                                                                              \
    ALWAYS_INLINE void rows_##SUFFIX(const int columns, const linear_job *job, int64_t feature,                    \
                                     const uint32_t *weight) {                                                     \
        int64_t blocks = (job->rows + ROWS_AT_ONCE - 1) / ROWS_AT_ONCE, row = 0;                                   \
        for (; blocks > 0; blocks--) {                                                                             \
            /* Blocks of nearly equal size: 16 rows are 6, 5, 5. */                                                \
            int64_t count = (job->rows - row + blocks - 1) / blocks;                                               \
            switch (count) {                                                                                       \
            case 1: block_##SUFFIX(1, columns, job, row, feature, weight); break;                                  \
            case 2: block_##SUFFIX(2, columns, job, row, feature, weight); break;                                  \
            case 3: block_##SUFFIX(3, columns, job, row, feature, weight); break;                                  \
            case 4: block_##SUFFIX(4, columns, job, row, feature, weight); break;                                  \
            case 5: block_##SUFFIX(5, columns, job, row, feature, weight); break;                                  \
            default: block_##SUFFIX(6, columns, job, row, feature, weight); break;                                 \
            }                                                                                                      \
            row += count;                                                                                          \
        }                                                                                                          \
    }                                                                                                              \
    static void linear_##SUFFIX(void *pointer, int64_t begin, int64_t end) {                                       \
        const linear_job *job = pointer;                                                                           \
        for (int64_t item = begin; item < end; item++) {                                                           \
            const int64_t halves = item < job->whole ? 2 * item : job->whole + item;                               \
            const int64_t feature = halves * (PANEL / 2);                                                          \
            const uint32_t *weight =                                                                               \
                (const uint32_t *)job->weight + feature / PANEL * (job->in / P) * PANEL + feature % PANEL;         \
            if (item < job->whole)                                                                                 \
                rows_##SUFFIX(4, job, feature, weight);                                                            \
            else if (feature < job->features)                                                                      \
                rows_##SUFFIX(2, job, feature, weight);                                                            \
        }                                                                                                          \
    }

#define SAME(x) (x)
DEFINE_LINEAR(f32, float, 1, load_f32, store_f32, SAME, SAME)
DEFINE_LINEAR(bf16, bf16, 2, load_bf16, store_bf16, bf16_to_float, bf16_from_float)

/* x: [rows, in]; weight: the panels, padded to 64 outputs; bias: [features] or NULL; out: [rows, features] of the same
 * type, or float if out_float32. `in` is even for bfloat16. */
void shoal_linear(const void *x, const void *weight, const void *bias, void *out, int64_t rows, int64_t in,
                  int64_t features, int dtype, int out_float32, int num_threads) {
    const int64_t panels = (features + PANEL - 1) / PANEL;
    /* Nine panels on two threads would be five and four. Halves of a panel are read at less than half the speed, so
     * only the panels that are left over are halved. */
    const int64_t whole = num_threads > 1 ? panels - panels % num_threads : panels;
    linear_job job = {x, weight, bias, out, rows, in, features, whole, out_float32};
    const int64_t items = whole + 2 * (panels - whole);
    const int64_t grain = items / (16 * num_threads) + 1;
    const int before = shoal_on_own_pool;
    shoal_on_own_pool = 1;
    shoal_parallel_for(items, grain, num_threads, dtype == SHOAL_BFLOAT16 ? linear_bf16 : linear_f32, &job);
    shoal_on_own_pool = before;
}
