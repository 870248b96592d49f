/* RMSNorm, with the residual addition before it fused in (one pass over the row while it is in L1). */
#include "../native/operations.h"
#include "../native/simd.h"
#include "../native/threads.h"

typedef struct {
    const char *x;
    char *residual;
    const char *weight;
    char *out;
    int64_t hidden;
    float eps;
} norm_job;

/* T, LOAD, TO_FLOAT: of the rows; W, LOAD_W, W_TO_FLOAT: of the weight. */
#define DEFINE_NORM(NAME, T, LOAD, STORE, TO_FLOAT, FROM_FLOAT, W, LOAD_W, W_TO_FLOAT)                \
    static void NAME(void *pointer, int64_t begin, int64_t end) {                                    \
        const norm_job *job = pointer;                                                               \
        const int64_t n = job->hidden, wide = n - n % LANES;                                         \
        const W *weight = (const W *)job->weight;                                                    \
        for (int64_t row = begin; row < end; row++) {                                                \
            const T *x = (const T *)job->x + row * n;                                                \
            T *residual = job->residual ? (T *)job->residual + row * n : 0;                          \
            T *out = (T *)job->out + row * n;                                                        \
            f32x16 squares = splat(0.0f), squares2 = splat(0.0f);                                    \
            float tail = 0.0f;                                                                       \
            const T *source = residual ? residual : x;                                               \
            for (int64_t i = 0; i < wide; i += LANES) {                                              \
                f32x16 v = LOAD(x + i);                                                              \
                if (residual) {                                                                      \
                    STORE(residual + i, v + LOAD(residual + i));                                     \
                    v = LOAD(residual + i);                                                          \
                }                                                                                    \
                if (i & LANES)                                                                       \
                    squares2 += v * v;                                                               \
                else                                                                                 \
                    squares += v * v;                                                                \
            }                                                                                        \
            for (int64_t i = wide; i < n; i++) {                                                     \
                float v = TO_FLOAT(x[i]);                                                            \
                if (residual) {                                                                      \
                    residual[i] = FROM_FLOAT(v + TO_FLOAT(residual[i]));                             \
                    v = TO_FLOAT(residual[i]);                                                       \
                }                                                                                    \
                tail += v * v;                                                                       \
            }                                                                                        \
            float mean = (sum_lanes(squares + squares2) + tail) / (float)n;                          \
            float scale = 1.0f / sqrtf(mean + job->eps);                                             \
            for (int64_t i = 0; i < wide; i += LANES)                                                \
                STORE(out + i, LOAD(source + i) * scale * LOAD_W(weight + i));                       \
            for (int64_t i = wide; i < n; i++)                                                       \
                out[i] = FROM_FLOAT(TO_FLOAT(source[i]) * scale * W_TO_FLOAT(weight[i]));            \
        }                                                                                            \
    }

#define SAME(x) (x)
DEFINE_NORM(norm_f32, float, load_f32, store_f32, SAME, SAME, float, load_f32, SAME)
DEFINE_NORM(norm_bf16, bf16, load_bf16, store_bf16, bf16_to_float, bf16_from_float, bf16, load_bf16, bf16_to_float)
DEFINE_NORM(norm_bf16_by_f32, bf16, load_bf16, store_bf16, bf16_to_float, bf16_from_float, float, load_f32, SAME)

/* x, residual, out: [rows, hidden]; weight: [hidden] of weight_dtype, float32 or `dtype`. residual may be NULL; else
 * residual += x first. */
void shoal_rms_norm(const void *x, void *residual, const void *weight, void *out, int64_t rows, int64_t hidden,
                    float eps, int dtype, int weight_dtype, int num_threads) {
    norm_job job = {x, residual, weight, out, hidden, eps};
    /* Below some 16k elements a row costs less than waking a thread. */
    int64_t grain = 16384 / (hidden > 0 ? hidden : 1) + 1;
    void (*run)(void *, int64_t, int64_t) = norm_f32;
    if (dtype == SHOAL_BFLOAT16) run = weight_dtype == SHOAL_BFLOAT16 ? norm_bf16 : norm_bf16_by_f32;
    shoal_parallel_for(rows, grain, num_threads, run, &job);
}
