/* Rotary embedding of q and k in place, and the write of k and v to the paged cache: one pass over the qkv rows. */
#include "../native/operations.h"
#include "../native/simd.h"
#include "../native/threads.h"

typedef struct {
    char *qkv;
    const float *cos_sin;
    const int32_t *positions;
    const int32_t *slot_mapping;
    char *cache;
    int64_t block_stride, v_offset, head_stride, row_stride; /* elements */
    int32_t block_size, num_heads, num_kv_heads, head_dim, rotary_dim;
    const float *q_norm, *k_norm; /* [head_dim], or NULL */
    float eps;
} rope_job;

#define DEFINE_ROPE(NAME, T, LOAD, STORE, TO_FLOAT, FROM_FLOAT)                                     \
    ALWAYS_INLINE void NAME(T *x, const float *cosine, const float *sine, int half) {               \
        if (half % LANES == 0) {                                                                    \
            for (int i = 0; i < half; i += LANES) {                                                 \
                f32x16 a = LOAD(x + i), b = LOAD(x + half + i);                                     \
                f32x16 c = load_f32(cosine + i), s = load_f32(sine + i);                            \
                STORE(x + i, a * c - b * s);                                                        \
                STORE(x + half + i, b * c + a * s);                                                 \
            }                                                                                       \
            return;                                                                                 \
        }                                                                                           \
        for (int i = 0; i < half; i++) {                                                            \
            float a = TO_FLOAT(x[i]), b = TO_FLOAT(x[half + i]);                                    \
            x[i] = FROM_FLOAT(a * cosine[i] - b * sine[i]);                                         \
            x[half + i] = FROM_FLOAT(b * cosine[i] + a * sine[i]);                                  \
        }                                                                                           \
    }

#define SAME(x) (x)
DEFINE_ROPE(rotate_f32, float, load_f32, store_f32, SAME, SAME)
DEFINE_ROPE(rotate_bf16, bf16, load_bf16, store_bf16, bf16_to_float, bf16_from_float)

/* RMSNorm of a head, then its rotation, rounded once. */
#define DEFINE_NORM_ROTATE(NAME, T, LOAD, STORE, TO_FLOAT, FROM_FLOAT)                              \
    static void NAME(T *x, const float *weight, float eps, int dim, const float *cosine,            \
                     const float *sine, int half) {                                                 \
        float wide[MAX_DIM] __attribute__((aligned(64)));                                           \
        const int whole = dim - dim % LANES;                                                        \
        f32x16 squares = splat(0.0f);                                                               \
        float tail = 0.0f;                                                                          \
        for (int i = 0; i < whole; i += LANES) {                                                    \
            f32x16 v = LOAD(x + i);                                                                 \
            squares += v * v;                                                                       \
        }                                                                                           \
        for (int i = whole; i < dim; i++) tail += TO_FLOAT(x[i]) * TO_FLOAT(x[i]);                  \
        const float scale = 1.0f / sqrtf((sum_lanes(squares) + tail) / (float)dim + eps);           \
        for (int i = 0; i < whole; i += LANES)                                                      \
            store_f32(wide + i, LOAD(x + i) * scale * load_f32(weight + i));                        \
        for (int i = whole; i < dim; i++) wide[i] = TO_FLOAT(x[i]) * scale * weight[i];             \
        rotate_f32(wide, cosine, sine, half);                                                       \
        for (int i = 0; i < whole; i += LANES) STORE(x + i, load_f32(wide + i));                    \
        for (int i = whole; i < dim; i++) x[i] = FROM_FLOAT(wide[i]);                               \
    }

DEFINE_NORM_ROTATE(norm_rotate_f32, float, load_f32, store_f32, SAME, SAME)
DEFINE_NORM_ROTATE(norm_rotate_bf16, bf16, load_bf16, store_bf16, bf16_to_float, bf16_from_float)

/* The lane-packed layout of kv_layout.py: k as [dim / p][slot][p], v as [slot / p][dim][p], p elements to 32 bits. */
#define DEFINE_TOKENS(NAME, T, P, ROTATE, NORM_ROTATE)                                              \
    static void NAME(void *pointer, int64_t begin, int64_t end) {                                   \
        const rope_job *job = pointer;                                                              \
        const int dim = job->head_dim, size = job->block_size, half = job->rotary_dim / 2;          \
        for (int64_t t = begin; t < end; t++) {                                                     \
            T *row = (T *)job->qkv + t * job->row_stride;                                           \
            const float *cosine = job->cos_sin + (int64_t)job->positions[t] * 2 * half;             \
            for (int h = 0; h < job->num_heads + job->num_kv_heads; h++)                            \
                if (job->q_norm)                                                                    \
                    NORM_ROTATE(row + h * dim, h < job->num_heads ? job->q_norm : job->k_norm,      \
                                job->eps, dim, cosine, cosine + half, half);                        \
                else                                                                                \
                    ROTATE(row + h * dim, cosine, cosine + half, half);                             \
            const int32_t slot = job->slot_mapping[t], at = slot % size;                            \
            T *block = (T *)job->cache + (slot / size) * job->block_stride;                         \
            for (int h = 0; h < job->num_kv_heads; h++) {                                           \
                const T *k = row + (job->num_heads + h) * dim, *v = k + job->num_kv_heads * dim;    \
                T *k_out = block + h * job->head_stride + at * P;                                   \
                T *v_out = block + job->v_offset + h * job->head_stride + at / P * P * dim + at % P; \
                for (int i = 0; i < dim / P; i++) memcpy(k_out + i * size * P, k + i * P, 4);       \
                for (int i = 0; i < dim; i++) v_out[i * P] = v[i];                                  \
            }                                                                                       \
        }                                                                                           \
    }

DEFINE_TOKENS(tokens_f32, float, 1, rotate_f32, norm_rotate_f32)
DEFINE_TOKENS(tokens_bf16, bf16, 2, rotate_bf16, norm_rotate_bf16)

/* q_norm, k_norm: RMSNorm weights [head_dim] for head_dim <= MAX_DIM; both NULL: no norms. */
void shoal_rope_and_cache(void *qkv, const float *cos_sin, const int32_t *positions, const int32_t *slot_mapping,
                          void *cache, int64_t num_tokens, int64_t block_stride, int64_t v_offset, int64_t head_stride,
                          int64_t row_stride, int block_size, int num_heads, int num_kv_heads, int head_dim,
                          int rotary_dim, const float *q_norm, const float *k_norm, float eps, int dtype,
                          int num_threads) {
    rope_job job = {qkv,        cos_sin,   positions,    slot_mapping, cache,      block_stride, v_offset, head_stride,
                    row_stride, block_size, num_heads,    num_kv_heads, head_dim,   rotary_dim,   q_norm,   k_norm,
                    eps};
    /* Whole blocks to a thread, so that two rarely write the same cache line; a token is about a microsecond. */
    shoal_parallel_for(num_tokens, 16, num_threads, dtype == SHOAL_BFLOAT16 ? tokens_bf16 : tokens_f32, &job);
}
