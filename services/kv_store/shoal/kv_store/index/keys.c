/* Rows by key: the native form of python_keys.py's PythonKeys; key_table.py states the contract.

   Keys lie in one array by row; row 0 is no row. A hash table of row numbers finds them: linear probing, no more than
   three quarters full, and what follows a removed one moves up, so there are no tombstones. Positions come from a
   product with a secret, since whoever chooses tokens can choose keys with equal bits. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

struct keys {
    uint64_t secret;
    uint64_t (*of_row)[2];
    uint32_t *table;
    uint32_t num_keys, num_rows, num_room, free, shift; /* free: the first of the rows given back, linked by key[0] */
};

static uint32_t home_of(const struct keys *k, const uint64_t *key) {
    return (uint32_t)(((key[0] ^ (key[1] << 32 | key[1] >> 32)) * k->secret) >> k->shift);
}

static uint32_t mask_of(const struct keys *k) { return (uint32_t)(((uint64_t)1 << (64 - k->shift)) - 1); }

static int equal(const uint64_t *a, const uint64_t *b) { return a[0] == b[0] && a[1] == b[1]; }

/* The position of a key in the table, or of the gap where it would go. */
static uint32_t position_of(const struct keys *k, const uint64_t *key) {
    uint32_t at = home_of(k, key), mask = mask_of(k);
    while (k->table[at] && !equal(k->of_row[k->table[at]], key)) at = (at + 1) & mask;
    return at;
}

static int grow_table(struct keys *k) {
    uint32_t *grown = calloc((size_t)2 << (64 - k->shift), sizeof *grown), *old = k->table;
    if (!grown) return 0;
    uint32_t num_old = mask_of(k) + 1;
    k->table = grown, k->shift--;
    for (uint32_t at = 0; at < num_old; at++)
        if (old[at]) k->table[position_of(k, k->of_row[old[at]])] = old[at];
    free(old);
    return 1;
}

void shoal_keys_free(struct keys *k) {
    if (k) free(k->of_row), free(k->table);
    free(k);
}

struct keys *shoal_keys_make(uint64_t secret) {
    struct keys *k = calloc(1, sizeof *k);
    if (!k) return NULL;
    k->secret = secret | 1, k->shift = 64 - 10, k->num_rows = 1, k->num_room = 512;
    k->of_row = malloc(k->num_room * sizeof *k->of_row);
    k->table = calloc((size_t)1 << 10, sizeof *k->table);
    if (!k->of_row || !k->table) {
        shoal_keys_free(k);
        return NULL;
    }
    return k;
}

uint32_t shoal_keys_len(const struct keys *k) { return k->num_keys; }
const uint64_t *shoal_keys_key(const struct keys *k, uint32_t row) { return k->of_row[row]; }
uint32_t shoal_keys_find(const struct keys *k, const uint64_t *key) { return k->table[position_of(k, key)]; }

uint64_t shoal_keys_bytes(const struct keys *k) {
    return sizeof *k + (uint64_t)k->num_room * sizeof *k->of_row + ((uint64_t)mask_of(k) + 1) * sizeof *k->table;
}

/* A row for a key that has none; 0 without memory. */
uint32_t shoal_keys_add(struct keys *k, const uint64_t *key) {
    if (k->num_keys + 1 > (mask_of(k) + 1) / 4 * 3 && !grow_table(k)) return 0;
    if (!k->free && k->num_rows == k->num_room) {
        uint64_t room = k->num_room + (uint64_t)k->num_room / 8;
        uint64_t(*grown)[2] = room < UINT32_MAX ? realloc(k->of_row, room * sizeof *grown) : NULL;
        if (!grown) return 0;
        k->of_row = grown, k->num_room = (uint32_t)room;
    }
    uint32_t row = k->free ? k->free : k->num_rows++;
    if (k->free) k->free = (uint32_t)k->of_row[row][0];
    memcpy(k->of_row[row], key, sizeof k->of_row[row]);
    k->table[position_of(k, key)] = row;
    k->num_keys++;
    return row;
}

void shoal_keys_remove(struct keys *k, uint32_t row) {
    uint32_t mask = mask_of(k), gap = position_of(k, k->of_row[row]);
    for (uint32_t at = (gap + 1) & mask; k->table[at]; at = (at + 1) & mask) {
        uint32_t home = home_of(k, k->of_row[k->table[at]]);
        if (((at - home) & mask) >= ((at - gap) & mask)) k->table[gap] = k->table[at], gap = at;
    }
    k->table[gap] = 0;
    k->of_row[row][0] = k->free, k->of_row[row][1] = 0;
    k->free = row;
    k->num_keys--;
}

/* Rows of the leading keys that have one in the scope; how many. */
int64_t shoal_keys_prefix(const struct keys *k, const uint64_t *keys, int64_t n, const uint16_t *scopes, uint16_t scope,
                          uint32_t *rows) {
    for (int64_t i = 0; i < n; i++) {
        if (i + 4 < n) __builtin_prefetch(&k->table[home_of(k, keys + 2 * (i + 4))]);
        rows[i] = shoal_keys_find(k, keys + 2 * i);
        if (!rows[i] || scopes[rows[i]] != scope) return i;
    }
    return n;
}
