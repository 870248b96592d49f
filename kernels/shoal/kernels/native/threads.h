/* Parallel regions on the OpenMP pool that torch already runs.
 *
 * A second pool would fight the first: an idle OpenMP thread spins for a while, and on two cores its spinning takes the
 * core of the other pool's worker. So nothing here links an OpenMP runtime; the caller hands over the address of
 * GOMP_parallel in the one torch has loaded (libgomp has it, and libomp for compatibility).
 */
#ifndef SHOAL_THREADS_H
#define SHOAL_THREADS_H

#include <stdint.h>

typedef void (*shoal_body)(void *data);

/* Runs body(data) on `num_threads` threads, or once on this one where no pool was handed over. Bodies take their share
 * by fetching from an atomic counter in `data`, so any number of threads is right. */
void shoal_parallel(shoal_body body, void *data, int num_threads);

/* Splits [0, count) in pieces of `grain` taken dynamically; serial if there is one piece. */
typedef void (*shoal_range_body)(void *data, int64_t begin, int64_t end);
void shoal_parallel_for(int64_t count, int64_t grain, int num_threads, shoal_range_body body, void *data);

#endif
