/* Which block to give up and which not to take: the native form of python_adaptive.py's PythonAdaptive, where the
   contract stands; docs/adr/0017 says why it is as it is.

   Blocks lie in one array and are found by a hash table of 32-bit numbers; number 0 is no block. Each use count and
   level of cost has a list in order of last use. A block at the old end of its list that others follow on is taken out
   (COVERED) until they are gone; one that the caller does not allow waits in the list of the HELD. Blocks that were
   refused, evicted or removed leave a ghost of 8 bytes in a set of 8, where the oldest gives way. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "reuse_rates.h"

enum { COSTS = 5, LISTS = CLASSES * COSTS, HELD_LIST = LISTS, WAYS = 8, MIN_GHOSTS = 1 << 16, GHOSTS_A_BLOCK = 4 };
enum { TAG_MASK = (1 << 24) - 1, CLASS_SHIFT = 24, UNIT_SHIFT = 32 };
#define NEVER (UINT32_MAX / 2)

enum state { LISTED, HELD, COVERED, GONE };

struct block {
    uint64_t key[2];
    uint32_t chain; /* the next of the same bucket, or of the free */
    uint32_t parent, num_children;
    uint32_t older, newer; /* neighbours in its list */
    uint32_t last; /* unit of its last use */
    uint8_t class, cost, state;
};

struct list {
    uint32_t oldest, newest;
};

struct policy {
    struct rates rates;
    double mean_cost; /* per byte */
    uint32_t num_blocks, num_room, num_fresh, free, bucket_shift, set_shift, current, full_at, num_victims;
    struct list lists[LISTS + 1];
    uint32_t *buckets;
    struct block *blocks;
    uint64_t *ghosts; /* unit of last use:32, class + 1:8, part of the key:24; newest first in each set; 0 is none */
};

static uint64_t mix(const uint64_t *key) { return (key[0] ^ key[1]) * 0x9E3779B97F4A7C15u; }

static uint32_t *bucket_of(struct policy *p, const uint64_t *key) { return &p->buckets[mix(key) >> p->bucket_shift]; }

static uint32_t find(struct policy *p, const uint64_t *key) {
    uint32_t at = *bucket_of(p, key);
    while (at && (p->blocks[at].key[0] != key[0] || p->blocks[at].key[1] != key[1])) at = p->blocks[at].chain;
    return at;
}

static struct list *list_of(struct policy *p, const struct block *b) {
    return &p->lists[b->state == HELD ? HELD_LIST : b->class * COSTS + b->cost];
}

static void take_out(struct policy *p, uint32_t at) {
    struct block *b = &p->blocks[at];
    if (b->state == COVERED) return;
    struct list *list = list_of(p, b);
    *(b->older ? &p->blocks[b->older].newer : &list->oldest) = b->newer;
    *(b->newer ? &p->blocks[b->newer].older : &list->newest) = b->older;
    b->state = COVERED;
}

static void put_newest(struct policy *p, uint32_t at, enum state state) {
    struct block *b = &p->blocks[at];
    b->state = (uint8_t)state;
    struct list *list = list_of(p, b);
    b->older = list->newest, b->newer = 0;
    *(list->newest ? &p->blocks[list->newest].newer : &list->oldest) = at;
    list->newest = at;
}

static void put_oldest(struct policy *p, uint32_t at) {
    struct block *b = &p->blocks[at];
    b->state = LISTED;
    struct list *list = list_of(p, b);
    b->newer = list->oldest, b->older = 0;
    *(list->oldest ? &p->blocks[list->oldest].older : &list->newest) = at;
    list->oldest = at;
}

static uint64_t *ghosts_of(struct policy *p, const uint64_t *key) { return &p->ghosts[(mix(key) >> p->set_shift) * WAYS]; }

static uint64_t *find_ghost(struct policy *p, const uint64_t *key) {
    uint64_t *set = ghosts_of(p, key);
    for (int i = 0; i < WAYS && set[i]; i++)
        if ((set[i] & TAG_MASK) == (key[1] & TAG_MASK)) return set + i;
    return NULL;
}

static int ghost_class(uint64_t ghost) { return (int)(ghost >> CLASS_SHIFT & 255) - 1; }
static uint32_t ghost_last(uint64_t ghost) { return (uint32_t)(ghost >> UNIT_SHIFT); }

static void drop_ghost(struct policy *p, const uint64_t *key, uint64_t *ghost) {
    uint64_t *end = ghosts_of(p, key) + WAYS;
    memmove(ghost, ghost + 1, (size_t)(end - ghost - 1) * sizeof *ghost);
    end[-1] = 0;
}

static void leave_ghost(struct policy *p, const uint64_t *key, int class, uint32_t last) {
    uint64_t *set = ghosts_of(p, key), tag = key[1] & TAG_MASK;
    memmove(set + 1, set, (WAYS - 1) * sizeof *set);
    set[0] = (uint64_t)last << UNIT_SHIFT | (uint64_t)(class + 1) << CLASS_SHIFT | tag;
}

/* Twice the sets. Which half a ghost belongs to is not known, so it goes to both, and leaves the wrong one in time. */
static int grow_ghosts(struct policy *p) {
    size_t num_sets = (size_t)1 << (64 - p->set_shift);
    uint64_t *grown = malloc(2 * num_sets * WAYS * sizeof *grown);
    if (!grown) return 0;
    for (size_t i = 0; i < 2 * num_sets; i++) memcpy(grown + i * WAYS, p->ghosts + i / 2 * WAYS, WAYS * sizeof *grown);
    free(p->ghosts);
    p->ghosts = grown, p->set_shift--;
    return 1;
}

static int grow_blocks(struct policy *p) {
    uint32_t room = p->num_room < 1u << 30 ? 2 * p->num_room : 0;
    struct block *grown = room ? realloc(p->blocks, room * sizeof *grown) : NULL;
    if (!grown) return 0;
    p->blocks = grown, p->num_room = room;
    size_t num_ghosts = (size_t)WAYS << (64 - p->set_shift);
    if (num_ghosts < (size_t)GHOSTS_A_BLOCK * room) grow_ghosts(p); /* without memory for it, learn a little less */
    return 1;
}

static void count_access(struct policy *p) {
    if (--p->rates.left) return;
    if (p->num_victims) p->rates.unit = p->num_blocks > UNITS ? p->num_blocks / UNITS : 1;
    else if (p->full_at < NEVER) p->full_at += 1 + p->num_blocks / UNITS; /* is it full still? */
    p->num_victims = 0;
    next_unit(&p->rates);
}

static int next_class(int class) { return class < CLASSES - 1 ? class + 1 : class; }

/* A factor of 2 each around what a byte costs on average. */
static int cost_level(double per_byte, double mean) {
    if (!(per_byte > 0) || !(mean > 0)) return COSTS / 2;
    double level = floor(log2(per_byte / mean) + 0.5) + COSTS / 2;
    return level < 0 ? 0 : level > COSTS - 1 ? COSTS - 1 : (int)level;
}

static double rank_at(struct policy *p, int class, int cost, uint32_t last) {
    return ldexp(p->rates.ranks[class][age_bucket(&p->rates, last)], cost - COSTS / 2);
}

/* The oldest leaf of the list whose oldest leaf is worth least; of equals the one used longest ago. */
static uint32_t find_worst(struct policy *p, double *worst) {
    uint32_t found = 0;
    for (int i = 0; i < LISTS; i++) {
        struct list *list = &p->lists[i];
        while (list->oldest && p->blocks[list->oldest].num_children) take_out(p, list->oldest);
        if (!list->oldest) continue;
        struct block *b = &p->blocks[list->oldest];
        double rank = rank_at(p, b->class, b->cost, b->last);
        if (!found || rank < *worst || (rank == *worst && b->last < p->blocks[found].last))
            found = list->oldest, *worst = rank;
    }
    return found;
}

static void forget(struct policy *p, uint32_t at) {
    struct block *b = &p->blocks[at];
    take_out(p, at);
    uint32_t *link = bucket_of(p, b->key), parent = b->parent;
    while (*link != at) link = &p->blocks[*link].chain;
    *link = b->chain;
    leave_ghost(p, b->key, b->class, b->last);
    p->num_blocks--;
    b->parent = 0, b->state = GONE;
    if (!b->num_children) b->chain = p->free, p->free = at;
    if (!parent) return;
    struct block *up = &p->blocks[parent];
    if (--up->num_children) return;
    if (up->state == COVERED) put_oldest(p, parent);
    else if (up->state == GONE) up->chain = p->free, p->free = parent;
}

void shoal_policy_free(struct policy *p) {
    if (p) free(p->buckets), free(p->blocks), free(p->ghosts);
    free(p);
}

struct policy *shoal_policy_make(uint32_t num_blocks) {
    struct policy *p = calloc(1, sizeof *p);
    if (!p) return NULL;
    int bits = 4, set_bits = 0;
    while (bits < 31 && 1u << bits < num_blocks) bits++;
    while (WAYS << set_bits < MIN_GHOSTS) set_bits++;
    p->bucket_shift = (uint32_t)(64 - bits), p->set_shift = (uint32_t)(64 - set_bits);
    p->num_room = 1024, p->num_fresh = 1, p->full_at = NEVER;
    p->buckets = calloc((size_t)1 << bits, sizeof *p->buckets);
    p->blocks = malloc(p->num_room * sizeof *p->blocks);
    p->ghosts = calloc((size_t)WAYS << set_bits, sizeof *p->ghosts);
    if (!p->buckets || !p->blocks || !p->ghosts) {
        shoal_policy_free(p);
        return NULL;
    }
    init_rates(&p->rates, num_blocks);
    return p;
}

uint32_t shoal_policy_len(struct policy *p) { return p->num_blocks; }
int shoal_policy_has(struct policy *p, const uint64_t *key) { return find(p, key) != 0; }

/* How many of the n keys are known. */
int64_t shoal_policy_touch(struct policy *p, const uint64_t *keys, int64_t n) {
    int64_t num_known = 0;
    for (int64_t i = 0; i < n; i++) {
        uint32_t at = find(p, keys + 2 * i);
        if (!at) continue;
        struct block *b = &p->blocks[at];
        end_use(&p->rates, b->class, b->last);
        take_out(p, at);
        b->class = (uint8_t)next_class(b->class), b->last = p->rates.now;
        begin_use(&p->rates, b->class);
        put_newest(p, at, LISTED);
        count_access(p);
        num_known++;
    }
    return num_known;
}

int shoal_policy_admit(struct policy *p, const uint64_t *key, double per_byte) {
    uint64_t *ghost = find_ghost(p, key);
    int class = ghost ? next_class(ghost_class(*ghost)) : 0;
    double worst;
    if (p->num_blocks < p->full_at || find(p, key) || !find_worst(p, &worst)) return 1;
    if (rank_at(p, class, cost_level(per_byte, p->mean_cost), p->rates.now) >= worst) return 1;
    if (ghost) {
        end_use(&p->rates, ghost_class(*ghost), ghost_last(*ghost));
        drop_ghost(p, key, ghost);
    }
    begin_use(&p->rates, class);
    leave_ghost(p, key, class, p->rates.now);
    count_access(p);
    return 0;
}

/* 1 when it was inserted, 0 when it is known already, -1 without memory. */
int shoal_policy_insert(struct policy *p, const uint64_t *key, const uint64_t *parent_key, double per_byte) {
    if (find(p, key)) return 0;
    if (!p->free && p->num_fresh == p->num_room && !grow_blocks(p)) return -1;
    uint32_t at = p->free ? p->free : p->num_fresh++, *bucket = bucket_of(p, key);
    struct block *b = &p->blocks[at];
    if (p->free) p->free = b->chain;
    uint64_t *ghost = find_ghost(p, key);
    if (per_byte > 0) p->mean_cost += (per_byte - p->mean_cost) / (p->mean_cost > 0 ? 1024 : 1);
    *b = (struct block){.key = {key[0], key[1]}, .last = p->rates.now, .chain = *bucket};
    b->parent = parent_key ? find(p, parent_key) : 0;
    b->cost = (uint8_t)cost_level(per_byte, p->mean_cost);
    if (ghost) {
        b->class = (uint8_t)next_class(ghost_class(*ghost));
        end_use(&p->rates, ghost_class(*ghost), ghost_last(*ghost));
        drop_ghost(p, key, ghost);
    }
    if (b->parent) p->blocks[b->parent].num_children++;
    *bucket = at;
    p->num_blocks++;
    begin_use(&p->rates, b->class);
    put_newest(p, at, LISTED);
    count_access(p);
    return 1;
}

int shoal_policy_remove(struct policy *p, const uint64_t *key) {
    uint32_t at = find(p, key);
    if (at) forget(p, at);
    return at != 0;
}

static const uint64_t *choose(struct policy *p, uint32_t at) {
    p->current = at;
    return at ? p->blocks[at].key : NULL;
}

/* The next two give a key, or NULL, and make it the current one for the calls after them. */
const uint64_t *shoal_policy_worst(struct policy *p) {
    double worst;
    return choose(p, find_worst(p, &worst));
}

const uint64_t *shoal_policy_oldest_held(struct policy *p) { return choose(p, p->lists[HELD_LIST].oldest); }

void shoal_policy_hold(struct policy *p) {
    take_out(p, p->current);
    put_newest(p, p->current, HELD);
}

void shoal_policy_release(struct policy *p) {
    take_out(p, p->current);
    put_oldest(p, p->current);
}

/* It goes because there is no room, which says how many blocks there is room for. */
void shoal_policy_give_up(struct policy *p) {
    p->full_at = p->num_blocks, p->num_victims++;
    forget(p, p->current);
}

uint64_t shoal_policy_bytes(struct policy *p) {
    uint64_t blocks = p->num_room * sizeof *p->blocks, buckets = sizeof(uint32_t) << (64 - p->bucket_shift);
    return sizeof *p + blocks + buckets + ((uint64_t)WAYS << (64 - p->set_shift)) * sizeof *p->ghosts;
}

double shoal_policy_rank(struct policy *p, int class, int bucket) { return p->rates.ranks[class][bucket]; }
