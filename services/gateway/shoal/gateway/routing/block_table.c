/* Which slots hold which blocks: the native form of block_table.py's BlockTable, where the contract stands.

   Nodes lie in one array and are taken from its start, so that blocks stored together lie together; a hash table of
   32-bit node numbers finds them by key, and a doubly linked list keeps them in order of use. Node 0 is no node.
   Slots' bits lie in planes of one 64-bit word a node, one plane for each tier and 64 slots, made when first needed.
   Every array has its full size from the start, and the system gives memory to the pages that are touched. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { TIERS = 3, LEVELS = TIERS + 1, SOON = 2, MAX_WORDS = 256, MAX_SLOTS = 64 * MAX_WORDS, AHEAD = 8 };
#define FREE UINT32_MAX

struct node {
    uint64_t key[2];
    uint32_t chain;        /* the next node of the same bucket, or of the free list */
    uint32_t older, newer; /* neighbours in order of use; newer is FREE in a free node */
    uint32_t until[SOON];  /* tick at which an expectation ends; 0: none */
    uint16_t slot[SOON];   /* whose it is */
};

struct table {
    uint64_t seed;
    uint32_t max_nodes, num_nodes, num_fresh, free_nodes, newest, oldest, bucket_shift, num_words;
    uint32_t *buckets;
    struct node *nodes;
    uint64_t *planes[TIERS][MAX_WORDS];
    uint64_t live[MAX_WORDS], retired[MAX_WORDS], sweeping[MAX_WORDS];
    uint32_t counts[TIERS][MAX_SLOTS];
    uint32_t sweep_at; /* the next node to sweep; 0 while no sweep is under way */
    uint64_t alive[LEVELS][MAX_WORDS];
    uint32_t depths[LEVELS][MAX_SLOTS];
    uint32_t position, now;
    uint32_t *matched;
    uint32_t matched_room;
};

static uint32_t *bucket_of(struct table *t, const uint64_t *key) {
    /* Keys are hashes already; the seed keeps anybody from making prompts that meet in one bucket. */
    return &t->buckets[((key[0] ^ t->seed) * 0x9E3779B97F4A7C15u) >> t->bucket_shift];
}

static void load_key(uint64_t *key, const uint8_t *keys, uint64_t i) { memcpy(key, keys + 16 * i, 16); }

/* Two steps, so that neither waits for memory: the bucket of the key 2 * AHEAD from here, the node of the one AHEAD. */
static void prefetch(struct table *t, const uint8_t *keys, int64_t bucket_at, int64_t node_at, int64_t n) {
    uint64_t key[2];
    if (bucket_at >= 0 && bucket_at < n) {
        load_key(key, keys, bucket_at);
        __builtin_prefetch(bucket_of(t, key));
    }
    if (node_at >= 0 && node_at < n) {
        load_key(key, keys, node_at);
        __builtin_prefetch(&t->nodes[*bucket_of(t, key)]);
    }
}

static uint32_t find(struct table *t, const uint64_t *key) {
    uint32_t at = *bucket_of(t, key);
    while (at && (t->nodes[at].key[0] != key[0] || t->nodes[at].key[1] != key[1])) at = t->nodes[at].chain;
    return at;
}

static void unlink_node(struct table *t, uint32_t at) {
    struct node *node = &t->nodes[at];
    if (node->newer) t->nodes[node->newer].older = node->older; else t->newest = node->older;
    if (node->older) t->nodes[node->older].newer = node->newer; else t->oldest = node->newer;
}

static void link_newest(struct table *t, uint32_t at) {
    struct node *node = &t->nodes[at];
    node->older = t->newest;
    node->newer = 0;
    if (t->newest) t->nodes[t->newest].newer = at; else t->oldest = at;
    t->newest = at;
}

static void touch(struct table *t, uint32_t at) {
    if (t->newest != at) {
        unlink_node(t, at);
        link_newest(t, at);
    }
}

static int has_bits(struct table *t, uint32_t at) {
    for (int tier = 0; tier < TIERS; tier++)
        for (uint32_t w = 0; w < t->num_words; w++)
            if (t->planes[tier][w] && t->planes[tier][w][at]) return 1;
    return 0;
}

static int is_empty(struct table *t, uint32_t at, uint32_t now) {
    for (int i = 0; i < SOON; i++)
        if (t->nodes[at].until[i] > now) return 0;
    return !has_bits(t, at);
}

static void free_node(struct table *t, uint32_t at) {
    struct node *node = &t->nodes[at];
    uint32_t *link = bucket_of(t, node->key);
    while (*link != at) link = &t->nodes[*link].chain;
    *link = node->chain;
    unlink_node(t, at);
    node->until[0] = node->until[1] = 0;
    node->newer = FREE;
    node->chain = t->free_nodes;
    t->free_nodes = at;
    t->num_nodes--;
}

static void clear_word(struct table *t, int tier, uint32_t w, uint32_t at, uint64_t bits) {
    uint64_t *word = &t->planes[tier][w][at];
    bits &= *word;
    *word &= ~bits;
    for (; bits; bits &= bits - 1) t->counts[tier][64 * w + __builtin_ctzll(bits)]--;
}

static void evict_oldest(struct table *t) {
    uint32_t at = t->oldest;
    for (int tier = 0; tier < TIERS; tier++)
        for (uint32_t w = 0; w < t->num_words; w++)
            if (t->planes[tier][w]) clear_word(t, tier, w, at, ~0ull);
    free_node(t, at);
}

static uint32_t find_or_add(struct table *t, const uint64_t *key) {
    uint32_t at = find(t, key);
    if (at) {
        touch(t, at);
        return at;
    }
    if (t->num_nodes == t->max_nodes) evict_oldest(t);
    if (t->free_nodes) {
        at = t->free_nodes;
        t->free_nodes = t->nodes[at].chain;
    } else {
        at = ++t->num_fresh;
    }
    t->num_nodes++;
    struct node *node = &t->nodes[at];
    uint32_t *bucket = bucket_of(t, key);
    memcpy(node->key, key, 16);
    node->chain = *bucket;
    *bucket = at;
    link_newest(t, at);
    return at;
}

void shoal_table_free(struct table *t) {
    if (!t) return;
    for (int tier = 0; tier < TIERS; tier++)
        for (int w = 0; w < MAX_WORDS; w++) free(t->planes[tier][w]);
    free(t->buckets);
    free(t->nodes);
    free(t->matched);
    free(t);
}

struct table *shoal_table_make(uint32_t max_keys, uint64_t seed) {
    struct table *t = calloc(1, sizeof *t);
    if (!t) return NULL;
    uint32_t bits = 4;
    while (bits < 32 && (1ull << bits) < max_keys + (uint64_t)max_keys / 4) bits++;
    t->seed = seed;
    t->max_nodes = max_keys;
    t->bucket_shift = 64 - bits;
    t->buckets = calloc(1ull << bits, sizeof *t->buckets);
    t->nodes = calloc((uint64_t)max_keys + 1, sizeof *t->nodes);
    if (t->buckets && t->nodes) return t;
    shoal_table_free(t);
    return NULL;
}

uint32_t shoal_table_len(struct table *t) { return t->num_nodes; }

uint32_t shoal_table_count(struct table *t, int tier, uint32_t slot) { return t->counts[tier][slot]; }

/* Row `level` of the depths of the last match, one for each slot. */
uint32_t *shoal_table_depths(struct table *t, int level) { return t->depths[level]; }

int32_t shoal_table_acquire(struct table *t) {
    for (uint32_t w = 0; w < MAX_WORDS; w++) {
        uint64_t unused = ~(t->live[w] | t->retired[w] | t->sweeping[w]);
        if (!unused) continue;
        if (w >= t->num_words) t->num_words = w + 1;
        uint32_t bit = __builtin_ctzll(unused);
        t->live[w] |= 1ull << bit;
        return 64 * w + bit;
    }
    return -1;
}

void shoal_table_retire(struct table *t, uint32_t slot) {
    t->live[slot / 64] &= ~(1ull << slot % 64);
    t->retired[slot / 64] |= 1ull << slot % 64;
}

/* 0; or 1 when there is no memory, and nothing changed. */
int shoal_table_store(struct table *t, uint32_t slot, int tier, const uint8_t *keys, int64_t n) {
    uint64_t **plane = &t->planes[tier][slot / 64], bit = 1ull << slot % 64, key[2];
    if (!*plane && !(*plane = calloc((uint64_t)t->max_nodes + 1, sizeof **plane))) return 1;
    for (int64_t i = n - 1; i >= 0; i--) {
        prefetch(t, keys, i - 2 * AHEAD, i - AHEAD, n);
        load_key(key, keys, i);
        uint64_t *word = &(*plane)[find_or_add(t, key)];
        t->counts[tier][slot] += !(*word & bit);
        *word |= bit;
    }
    return 0;
}

void shoal_table_remove(struct table *t, uint32_t slot, int tier, const uint8_t *keys, int64_t n, uint32_t now) {
    uint64_t key[2];
    for (int64_t i = 0; i < n; i++) {
        prefetch(t, keys, i + 2 * AHEAD, i + AHEAD, n);
        load_key(key, keys, i);
        uint32_t at = find(t, key);
        if (!at) continue;
        if (t->planes[tier][slot / 64]) clear_word(t, tier, slot / 64, at, 1ull << slot % 64);
        if (tier == 0)
            for (int s = 0; s < SOON; s++)
                if (t->nodes[at].slot[s] == slot) t->nodes[at].until[s] = 0;
        if (is_empty(t, at, now)) free_node(t, at);
    }
}

static int is_live(const struct table *t, uint32_t slot) { return t->live[slot / 64] >> slot % 64 & 1; }

void shoal_table_expect(
    struct table *t, uint32_t slot, const uint8_t *keys, int64_t n, uint32_t now, uint32_t until) {
    uint64_t *plane = t->planes[0][slot / 64], key[2];
    for (int64_t i = n - 1; i >= 0; i--) {
        prefetch(t, keys, i - 2 * AHEAD, i - AHEAD, n);
        load_key(key, keys, i);
        uint32_t at = find_or_add(t, key);
        if (plane && plane[at] >> slot % 64 & 1) continue;
        struct node *node = &t->nodes[at];
        int other = SOON - 1; /* the latest expectation of another slot, which becomes the older of the two */
        while (other >= 0 && (node->until[other] <= now || node->slot[other] == slot || !is_live(t, node->slot[other])))
            other--;
        node->until[0] = other < 0 ? 0 : node->until[other];
        node->slot[0] = other < 0 ? 0 : node->slot[other];
        node->until[1] = until;
        node->slot[1] = (uint16_t)slot;
    }
}

void shoal_table_withdraw(
    struct table *t, uint32_t slot, const uint8_t *keys, int64_t n, uint32_t now, uint32_t until) {
    uint64_t key[2];
    for (int64_t i = 0; i < n; i++) {
        prefetch(t, keys, i + 2 * AHEAD, i + AHEAD, n);
        load_key(key, keys, i);
        uint32_t at = find(t, key);
        if (!at) continue;
        struct node *node = &t->nodes[at];
        for (int s = 0; s < SOON; s++)
            if (node->slot[s] == slot && node->until[s] <= until) node->until[s] = 0;
        if (is_empty(t, at, now)) free_node(t, at);
    }
}

void shoal_table_begin_match(struct table *t, uint32_t now) {
    t->position = 0;
    t->now = now;
    for (int level = 0; level < LEVELS; level++) {
        memcpy(t->alive[level], t->live, t->num_words * sizeof(uint64_t));
        memset(t->depths[level], 0, 64 * t->num_words * sizeof(uint32_t));
    }
}

static void note_lost(struct table *t, int level, uint32_t w, uint64_t held) {
    uint64_t lost = t->alive[level][w] & ~held;
    t->alive[level][w] &= held;
    for (; lost; lost &= lost - 1) t->depths[level][64 * w + __builtin_ctzll(lost)] = t->position;
}

static int match_node(struct table *t, uint32_t at) {
    const struct node *node = &t->nodes[at];
    uint64_t any = 0;
    for (uint32_t w = 0; w < t->num_words; w++) {
        if (!t->alive[LEVELS - 1][w]) continue;
        uint64_t held = 0;
        for (int level = 0; level < LEVELS; level++) {
            if (level == 1) {
                for (int s = 0; s < SOON; s++)
                    if (node->until[s] > t->now && node->slot[s] / 64 == w) held |= 1ull << node->slot[s] % 64;
            } else {
                const uint64_t *plane = t->planes[level ? level - 1 : 0][w];
                if (at && plane) held |= plane[at];
            }
            note_lost(t, level, w, held);
        }
        any |= t->alive[LEVELS - 1][w];
    }
    return any != 0;
}

/* Whether any slot holds all keys so far; -1 when there is no memory. */
int shoal_table_match(struct table *t, const uint8_t *keys, int64_t n) {
    uint64_t key[2];
    uint64_t room = t->position + (uint64_t)n;
    if (room > t->matched_room) {
        uint32_t *matched = realloc(t->matched, room * sizeof *matched);
        if (!matched) return -1;
        t->matched = matched;
        t->matched_room = (uint32_t)room;
    }
    for (int64_t i = 0; i < n; i++) {
        prefetch(t, keys, i + 2 * AHEAD, i + AHEAD, n);
        load_key(key, keys, i);
        uint32_t at = find(t, key);
        if (!match_node(t, at)) return 0;
        t->matched[t->position++] = at;
    }
    return 1;
}

uint32_t shoal_table_end_match(struct table *t) {
    for (int level = 0; level < LEVELS; level++)
        for (uint32_t w = 0; w < t->num_words; w++) note_lost(t, level, w, 0);
    for (uint32_t i = t->position; i-- > 0;) touch(t, t->matched[i]);
    return t->position;
}

static void sweep_node(struct table *t, uint32_t at, uint32_t now) {
    struct node *node = &t->nodes[at];
    if (node->newer == FREE) return;
    for (int tier = 0; tier < TIERS; tier++)
        for (uint32_t w = 0; w < t->num_words; w++)
            if (t->planes[tier][w] && t->sweeping[w] & t->planes[tier][w][at])
                clear_word(t, tier, w, at, t->sweeping[w]);
    for (int s = 0; s < SOON; s++)
        if (node->until[s] <= now || t->sweeping[node->slot[s] / 64] >> node->slot[s] % 64 & 1) node->until[s] = 0;
    if (is_empty(t, at, now)) free_node(t, at);
}

/* Sweeps up to `budget` nodes for retired slots; whether there is more to do. */
int shoal_table_sweep(struct table *t, uint32_t budget, uint32_t now) {
    if (!t->sweep_at) {
        uint64_t any = 0;
        for (uint32_t w = 0; w < t->num_words; w++) any |= t->sweeping[w] = t->retired[w];
        if (!any) return 0;
        memset(t->retired, 0, sizeof t->retired);
        t->sweep_at = 1;
    }
    for (; budget && t->sweep_at <= t->num_fresh; budget--) sweep_node(t, t->sweep_at++, now);
    if (t->sweep_at > t->num_fresh) {
        memset(t->sweeping, 0, sizeof t->sweeping);
        t->sweep_at = 0;
    }
    uint64_t left = t->sweep_at;
    for (uint32_t w = 0; w < t->num_words; w++) left |= t->retired[w];
    return left != 0;
}
