#include "threads.h"

#include <stddef.h>

typedef void (*gomp_parallel_fn)(void (*)(void *), void *, unsigned, unsigned);

static gomp_parallel_fn gomp_parallel = NULL;

/* Called once, right after loading. */
void shoal_use_pool(void *address) { gomp_parallel = (gomp_parallel_fn)address; }

void shoal_parallel(shoal_body body, void *data, int num_threads) {
    if (num_threads > 1 && gomp_parallel)
        gomp_parallel(body, data, (unsigned)num_threads, 0);
    else
        body(data);
}

typedef struct {
    int64_t count, grain, next;
    shoal_range_body body;
    void *data;
} range_job;

static void run_range(void *pointer) {
    range_job *job = pointer;
    for (;;) {
        int64_t begin = __atomic_fetch_add(&job->next, job->grain, __ATOMIC_RELAXED);
        if (begin >= job->count) return;
        int64_t end = begin + job->grain;
        job->body(job->data, begin, end < job->count ? end : job->count);
    }
}

void shoal_parallel_for(int64_t count, int64_t grain, int num_threads, shoal_range_body body, void *data) {
    if (grain < 1) grain = 1;
    if (count <= grain || num_threads < 2) {
        if (count > 0) body(data, 0, count);
        return;
    }
    range_job job = {count, grain, 0, body, data};
    shoal_parallel(run_range, &job, num_threads);
}
