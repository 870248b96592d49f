/* All layers of a pre-norm decoder (RMSNorm, grouped-query attention, SwiGLU) for a few rows, in one call.
 *
 * It only calls the other operations in order. From Python the nine calls of a layer cost some 35 us, 1.1 ms for the 30
 * layers of a 135M model whose weights take 5 ms to read.
 */
#include "../native/operations.h"
#include "../native/threads.h"

typedef struct {
    const void *input_norm, *post_attention_norm;
    const void *qkv, *o, *gate_up, *down; /* panels, see linear/cpu.c */
    const void *qkv_bias, *o_bias, *gate_up_bias, *down_bias;
} decoder_layer;

typedef struct {
    const decoder_layer *layers;
    const attention_step *attention;
    const float *cos_sin;
    const int32_t *positions, *slot_mapping;
    const void *final_norm;
    char *cache;
    char *residual; /* [rows, hidden]: the embeddings; overwritten */
    char *x, *qkv, *attended, *gate_up, *activated; /* scratch; x ends as the result */
    int64_t layer_bytes; /* of the cache, between one layer's part of a block and the next layer's */
    int64_t rows, hidden, intermediate;
    int32_t num_layers, rotary_dim;
    float eps;
} decoder_step;

void shoal_decoder(const decoder_step *s) {
    const attention_step *a = s->attention;
    const int dtype = a->dtype, threads = a->num_threads;
    const int before = shoal_on_own_pool;
    shoal_on_own_pool = 1;
    const int64_t q_width = (int64_t)a->num_heads * a->head_dim;
    for (int i = 0; i < s->num_layers; i++) {
        const decoder_layer *layer = s->layers + i;
        char *cache = s->cache + i * s->layer_bytes;
        shoal_rms_norm(i ? s->x : s->residual, i ? s->residual : 0, layer->input_norm, s->x, s->rows, s->hidden, s->eps,
                       dtype, dtype, threads);
        shoal_linear(s->x, layer->qkv, layer->qkv_bias, s->qkv, s->rows, s->hidden, a->q_stride, dtype, 0, threads);
        shoal_rope_and_cache(s->qkv, s->cos_sin, s->positions, s->slot_mapping, cache, s->rows, a->block_stride,
                             a->v_offset, a->head_stride, a->q_stride, a->block_size, a->num_heads, a->num_kv_heads,
                             a->head_dim, s->rotary_dim, 0, 0, 0.0f, dtype, threads);
        shoal_paged_attention(a, s->qkv, cache, s->attended);
        shoal_linear(s->attended, layer->o, layer->o_bias, s->x, s->rows, q_width, s->hidden, dtype, 0, threads);
        shoal_rms_norm(s->x, s->residual, layer->post_attention_norm, s->x, s->rows, s->hidden, s->eps, dtype, dtype,
                       threads);
        shoal_linear(s->x, layer->gate_up, layer->gate_up_bias, s->gate_up, s->rows, s->hidden, 2 * s->intermediate,
                     dtype, 0, threads);
        shoal_act_and_mul(s->gate_up, s->activated, s->rows, s->intermediate, SHOAL_SILU, dtype, threads);
        shoal_linear(s->activated, layer->down, layer->down_bias, s->x, s->rows, s->intermediate, s->hidden, dtype, 0,
                     threads);
    }
    shoal_rms_norm(s->x, s->residual, s->final_norm, s->x, s->rows, s->hidden, s->eps, dtype, dtype, threads);
    shoal_on_own_pool = before;
}
