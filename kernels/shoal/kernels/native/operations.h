/* The functions of the library, for Python and for each other. Contracts stand with the definitions. */
#ifndef SHOAL_OPERATIONS_H
#define SHOAL_OPERATIONS_H

#include <stdint.h>

#include "../paged_attention/attention.h"

void shoal_rms_norm(const void *x, void *residual, const void *weight, void *out, int64_t rows, int64_t hidden,
                    float eps, int dtype, int weight_dtype, int num_threads);
enum { SHOAL_SILU = 0, SHOAL_GELU_TANH = 1 };

void shoal_act_and_mul(const void *gate_up, void *out, int64_t rows, int64_t width, int activation, int dtype,
                       int num_threads);
void shoal_rope_and_cache(void *qkv, const float *cos_sin, const int32_t *positions, const int32_t *slot_mapping,
                          void *cache, int64_t num_tokens, int64_t block_stride, int64_t v_offset, int64_t head_stride,
                          int64_t row_stride, int block_size, int num_heads, int num_kv_heads, int head_dim,
                          int rotary_dim, const float *q_norm, const float *k_norm, float eps, int dtype,
                          int num_threads);
void shoal_paged_attention(const attention_step *step, const void *q, const void *cache, void *out);
void shoal_linear(const void *x, const void *weight, const void *bias, void *out, int64_t rows, int64_t in,
                  int64_t features, int dtype, int out_float32, int num_threads);

#endif
