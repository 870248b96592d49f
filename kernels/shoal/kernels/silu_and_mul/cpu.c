/* out = silu(gate) * up, where gate and up are the two halves of each row. */
#include "../native/operations.h"
#include "../native/simd.h"
#include "../native/threads.h"

typedef struct {
    const char *gate_up;
    char *out;
    int64_t width;
} silu_job;

ALWAYS_INLINE f32x16 silu(f32x16 x) {
    f32x16 clamped = max_f32(splat(-87.0f), x);
    return x / (1.0f + exp2_f32(max_f32(clamped * -1.4426950408889634f, splat(-126.0f))));
}

#define DEFINE_SILU(NAME, T, LOAD, STORE, TO_FLOAT, FROM_FLOAT)                            \
    static void NAME(void *pointer, int64_t begin, int64_t end) {                          \
        const silu_job *job = pointer;                                                     \
        const int64_t n = job->width, wide = n - n % LANES;                                \
        for (int64_t row = begin; row < end; row++) {                                      \
            const T *gate = (const T *)job->gate_up + row * 2 * n, *up = gate + n;         \
            T *out = (T *)job->out + row * n;                                              \
            for (int64_t i = 0; i < wide; i += LANES)                                      \
                STORE(out + i, silu(LOAD(gate + i)) * LOAD(up + i));                       \
            for (int64_t i = wide; i < n; i++) {                                           \
                float x = TO_FLOAT(gate[i]);                                               \
                out[i] = FROM_FLOAT(x / (1.0f + expf(-x)) * TO_FLOAT(up[i]));              \
            }                                                                              \
        }                                                                                  \
    }

#define SAME(x) (x)
DEFINE_SILU(silu_f32, float, load_f32, store_f32, SAME, SAME)
DEFINE_SILU(silu_bf16, bf16, load_bf16, store_bf16, bf16_to_float, bf16_from_float)

/* gate_up: [rows, 2 * width]; out: [rows, width]. */
void shoal_silu_and_mul(const void *gate_up, void *out, int64_t rows, int64_t width, int dtype, int num_threads) {
    silu_job job = {gate_up, out, width};
    int64_t grain = 16384 / (width > 0 ? width : 1) + 1;
    shoal_parallel_for(rows, grain, num_threads, dtype == SHOAL_BFLOAT16 ? silu_bf16 : silu_f32, &job);
}
