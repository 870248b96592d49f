/* Parallel regions, on one of two pools.
 *
 * Between torch's operations, a region runs on the OpenMP pool that torch runs: threads of another pool would still spin
 * for the one when the other's are woken, 150 times a step (prefill of 1,024 tokens took 6% longer on two cores). So
 * nothing here links an OpenMP runtime; the caller hands over the address of GOMP_parallel in the one torch has loaded
 * (libgomp has it, and libomp for compatibility).
 *
 * Calls that do much without torch (all layers for a few rows, a product with few rows) use a pool of our own. There a
 * region ends when its work is done, not when every thread has been there: a helper that is late, asleep or not
 * running finds nothing left and is not waited for. Fixed teams (OpenMP) wait for all of their threads at every region,
 * 150 times a decoding step, and so for whatever process has taken the core of one of them: beside one busy process on two
 * cores a step takes 18.5 ms with OpenMP and 10.2 ms here (docs/adr/0003-native-cpu-ops.md).
 */
#ifndef SHOAL_THREADS_H
#define SHOAL_THREADS_H

#include <stdint.h>

typedef void (*shoal_body)(void *data);

/* Whether this thread's regions run on our own pool. Whoever sets it restores it. */
extern _Thread_local int shoal_on_own_pool;

/* Runs body(data) on this thread and on up to num_threads - 1 helpers, and returns when all that began have returned.
 * Bodies take their share by fetching from an atomic counter in `data`, so any number of threads is right, one included:
 * while another thread runs a region, or where no thread can be had, there are no helpers. Bodies must not start regions.
 */
void shoal_parallel(shoal_body body, void *data, int num_threads);

/* Splits [0, count) in pieces of `grain` taken dynamically; serial if there is one piece. */
typedef void (*shoal_range_body)(void *data, int64_t begin, int64_t end);
void shoal_parallel_for(int64_t count, int64_t grain, int num_threads, shoal_range_body body, void *data);

#endif
