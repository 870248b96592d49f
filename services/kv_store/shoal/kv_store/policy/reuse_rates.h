/* How often blocks used once, twice, ... are used again at each age, learned from every access, and what that makes
   keeping them worth. python_rates.py does the same, to the bit.

   Ages are in units of accesses, a 32nd of the blocks held, so that nothing depends on how many that are. */
#ifndef SHOAL_REUSE_RATES_H
#define SHOAL_REUSE_RATES_H
#include <math.h>
#include <stdint.h>
#include <string.h>

enum {
    CLASSES = 5,     /* used once, twice, ..., five times or more */
    UNITS = 32,      /* in which as many accesses happen as blocks are held */
    COHORTS = 512,   /* units for which blocks are followed: 16 times that */
    BUCKETS = 19,    /* of ages; the last has no end */
    PRIOR = 256,     /* blocks that a class is assumed to have been seen with, at the rates of all classes */
    ALL_PRIOR = 128, /* ... and all classes, at a rate that falls with age as in LRU */
};

static const uint16_t STARTS[BUCKETS + 1] = {0,  1,  2,  3,  4,   6,   8,   12,  16,  24,
                                             32, 48, 64, 96, 128, 192, 256, 384, 512, 1024};

struct rates {
    uint32_t unit, left, now; /* accesses in a unit, those left of this one, units since the start */
    uint8_t buckets[COHORTS + 1]; /* of each age */
    int32_t alive[CLASSES][COHORTS]; /* blocks last used in each of the latest units and not since */
    double reuses[CLASSES][BUCKETS], exposure[CLASSES][BUCKETS]; /* exposure: blocks times units */
    double ranks[CLASSES][BUCKETS];
};

static uint8_t age_bucket(const struct rates *r, uint32_t last) {
    uint32_t age = r->now - last;
    return r->buckets[age < COHORTS ? age : COHORTS];
}

static void begin_use(struct rates *r, int class) { r->alive[class][r->now % COHORTS]++; }

static void end_use(struct rates *r, int class, uint32_t last) {
    if (r->now - last < COHORTS) r->alive[class][last % COHORTS]--;
    r->reuses[class][age_bucket(r, last)] += 1;
}

static double width_of(int bucket) { return STARTS[bucket + 1] - STARTS[bucket]; }

/* The most reuses per unit that keeping a block can bring: up to which age one keeps it is free to choose. */
static void rank_class(struct rates *r, int class, const double *all) {
    double rate[BUCKETS];
    for (int b = 0; b < BUCKETS; b++) {
        double prior = PRIOR * width_of(b);
        rate[b] = (r->reuses[class][b] + prior * all[b]) / (r->exposure[class][b] + prior);
    }
    for (int b = 0; b < BUCKETS; b++) {
        double left = 1, reused = 0, time = 0, best = 0;
        for (int later = b; later < BUCKETS; later++) {
            double width = later == b ? width_of(b) / 2 : width_of(later);
            double gone = -expm1(-rate[later] * width);
            reused += left * gone;
            time += left * gone / rate[later];
            left *= 1 - gone;
            if (reused > best * time) best = reused / time;
        }
        r->ranks[class][b] = best;
    }
    r->ranks[class][BUCKETS - 1] = r->ranks[class][BUCKETS - 2] / 2; /* nothing was learned of these ages */
}

static void rank_all(struct rates *r) {
    double all[BUCKETS];
    for (int b = 0; b < BUCKETS; b++) {
        double exposure = ALL_PRIOR * width_of(b), reuses = exposure * (1.0 / 32) / (STARTS[b] + 1);
        for (int class = 0; class < CLASSES && b < BUCKETS - 1; class ++) {
            reuses += r->reuses[class][b];
            exposure += r->exposure[class][b];
        }
        all[b] = reuses / exposure;
    }
    for (int class = 0; class < CLASSES; class ++) rank_class(r, class, all);
}

/* A unit is over: what was learned loses a 512th of its weight, and everybody followed was at risk for one unit. */
static void next_unit(struct rates *r) {
    for (int class = 0; class < CLASSES; class ++) {
        for (int b = 0; b < BUCKETS; b++) {
            r->reuses[class][b] -= r->reuses[class][b] / COHORTS;
            r->exposure[class][b] -= r->exposure[class][b] / COHORTS;
        }
        for (uint32_t age = 0; age < COHORTS && age <= r->now; age++)
            r->exposure[class][r->buckets[age]] += r->alive[class][(r->now - age) % COHORTS];
        r->alive[class][(r->now + 1) % COHORTS] = 0;
    }
    r->now++;
    r->left = r->unit;
    rank_all(r);
}

static void init_rates(struct rates *r, uint32_t num_blocks) {
    memset(r, 0, sizeof *r);
    r->unit = r->left = num_blocks > UNITS ? num_blocks / UNITS : 1;
    for (int b = 0; b < BUCKETS; b++)
        for (int age = STARTS[b]; age < STARTS[b + 1] && age <= COHORTS; age++) r->buckets[age] = (uint8_t)b;
    rank_all(r);
}
#endif
