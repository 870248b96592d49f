/* out = activation(gate) * up, where gate and up are the two halves of each row. */
#include "../native/operations.h"
#include "../native/simd.h"
#include "../native/threads.h"

typedef struct {
    const char *gate_up;
    char *out;
    int64_t width;
} gate_job;

/* Both activations are x / (1 + e^-z); z is x for SiLU. For GELU, 0.5 (1 + tanh u) = 1 / (1 + e^-2u), where
 * 2u = 2 sqrt(2 / pi) (x + 0.044715 x^3). */
#define SILU(x) (x)
#define GELU_TANH(x) ((x) * ((x) * (x) * 0.071354816f + 1.5957691f))

ALWAYS_INLINE f32x16 gated(f32x16 x, f32x16 z) {
    f32x16 clamped = max_f32(splat(-87.0f), z);
    return x / (1.0f + exp2_f32(max_f32(clamped * -1.4426950408889634f, splat(-126.0f))));
}

#define DEFINE_GATE(NAME, Z, T, LOAD, STORE, TO_FLOAT, FROM_FLOAT)                         \
    static void NAME(void *pointer, int64_t begin, int64_t end) {                          \
        const gate_job *job = pointer;                                                     \
        const int64_t n = job->width, wide = n - n % LANES;                                \
        for (int64_t row = begin; row < end; row++) {                                      \
            const T *gate = (const T *)job->gate_up + row * 2 * n, *up = gate + n;         \
            T *out = (T *)job->out + row * n;                                              \
            for (int64_t i = 0; i < wide; i += LANES) {                                    \
                f32x16 x = LOAD(gate + i);                                                 \
                STORE(out + i, gated(x, Z(x)) * LOAD(up + i));                             \
            }                                                                              \
            for (int64_t i = wide; i < n; i++) {                                           \
                float x = TO_FLOAT(gate[i]);                                               \
                out[i] = FROM_FLOAT(x / (1.0f + expf(-Z(x))) * TO_FLOAT(up[i]));           \
            }                                                                              \
        }                                                                                  \
    }

#define SAME(x) (x)
DEFINE_GATE(silu_f32, SILU, float, load_f32, store_f32, SAME, SAME)
DEFINE_GATE(silu_bf16, SILU, bf16, load_bf16, store_bf16, bf16_to_float, bf16_from_float)
DEFINE_GATE(gelu_f32, GELU_TANH, float, load_f32, store_f32, SAME, SAME)
DEFINE_GATE(gelu_bf16, GELU_TANH, bf16, load_bf16, store_bf16, bf16_to_float, bf16_from_float)

/* gate_up: [rows, 2 * width]; out: [rows, width]. */
void shoal_act_and_mul(const void *gate_up, void *out, int64_t rows, int64_t width, int activation, int dtype,
                       int num_threads) {
    gate_job job = {gate_up, out, width};
    int64_t grain = 16384 / (width > 0 ? width : 1) + 1;
    void (*run)(void *, int64_t, int64_t) = dtype == SHOAL_BFLOAT16 ? silu_bf16 : silu_f32;
    if (activation == SHOAL_GELU_TANH) run = dtype == SHOAL_BFLOAT16 ? gelu_bf16 : gelu_f32;
    shoal_parallel_for(rows, grain, num_threads, run, &job);
}
