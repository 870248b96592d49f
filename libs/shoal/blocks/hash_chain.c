/* A chain of block keys by OpenSSL's SHA-256, whose functions the caller hands in: see chain.py. */
#include <stdint.h>
#include <string.h>

enum { KEY_BYTES = 16, CONTEXT_BYTES = 512 }; /* SHA256_CTX has 112 bytes in every OpenSSL */

typedef int (*init_function)(void *context);
typedef int (*update_function)(void *context, const void *data, size_t num_bytes);
typedef int (*final_function)(uint8_t *digest, void *context);

/* Writes keys[first..last): each of the key before it (the parent, for the first) and its `block_bytes` of tokens. */
void shoal_hash_chain(
    void *init, void *update, void *final, const uint8_t *parent, const uint8_t *tokens, uint64_t block_bytes,
    uint8_t *keys, uint64_t first, uint64_t last) {
    _Alignas(64) uint8_t context[CONTEXT_BYTES];
    uint8_t digest[32];
    for (uint64_t i = first; i < last; i++) {
        ((init_function)init)(context);
        ((update_function)update)(context, i ? keys + KEY_BYTES * (i - 1) : parent, KEY_BYTES);
        ((update_function)update)(context, tokens + block_bytes * i, block_bytes);
        ((final_function)final)(digest, context);
        memcpy(keys + KEY_BYTES * i, digest, KEY_BYTES);
    }
}
