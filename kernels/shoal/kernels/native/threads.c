/* Our own pool: helpers that look for an open region, spin for a while, then sleep.
 *
 * One region is open at a time. A helper enters by counting itself in and then looking for the region; the caller closes
 * the region and then looks at the count. Both orders are sequentially consistent, so either the helper sees that it is
 * closed or the caller sees the helper, and waits for it.
 */
#include "threads.h"

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stddef.h>
#include <time.h>

/* The gaps between regions of one call are below 20 us, those between steps below 1 ms. In the first a waiting thread
 * spins; in the second it spins but lets others have the core. To sleep at once would be cheaper for nobody: waking a
 * virtual machine's halted core takes 50 us, and over 2 ms where the host is busy. */
enum { MAX_HELPERS = 255, SPIN_NS = 50000, YIELD_NS = 2000000, PAUSES_PER_LOOK_AT_THE_CLOCK = 32 };

typedef void (*gomp_parallel_fn)(void (*)(void *), void *, unsigned, unsigned);
static gomp_parallel_fn gomp_parallel = NULL;
_Thread_local int shoal_on_own_pool = 0;

/* Called once, right after loading; NULL where torch has no such pool. */
void shoal_use_pool(void *address) { gomp_parallel = (gomp_parallel_fn)address; }

typedef struct {
    shoal_body body;
    void *data;
    int num_helpers;
} region;

/* A word that threads wait on. `sleepers` is changed under the lock only, and read without it. */
typedef struct {
    _Alignas(64) atomic_uint value; /* a cache line of its own: both words change at every region */
    atomic_uint sleepers;
    pthread_mutex_t lock;
    pthread_cond_t changed;
} word;

#define WORD {0, 0, PTHREAD_MUTEX_INITIALIZER, PTHREAD_COND_INITIALIZER}
static word opened = WORD; /* counts regions */
static word inside = WORD; /* helpers that may be in the open region */
static _Atomic(region *) open_region = NULL;
static atomic_flag busy = ATOMIC_FLAG_INIT; /* a thread runs a region */
static pthread_once_t forks_watched = PTHREAD_ONCE_INIT;
static int num_helpers = 0;                 /* started so far; guarded by `busy` */

static void relax(void) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

static int64_t now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * INT64_C(1000000000) + now.tv_nsec;
}

/* Returns when w->value is no longer `value`. */
static void wait_while(word *w, unsigned value) {
    const int64_t start_ns = now_ns();
    for (int64_t waited_ns = 0; waited_ns < SPIN_NS + YIELD_NS; waited_ns = now_ns() - start_ns) {
        if (waited_ns > SPIN_NS) sched_yield();
        for (int i = 0; i < PAUSES_PER_LOOK_AT_THE_CLOCK; i++) {
            if (atomic_load(&w->value) != value) return;
            relax();
        }
    }
    pthread_mutex_lock(&w->lock);
    atomic_fetch_add(&w->sleepers, 1);
    while (atomic_load(&w->value) == value) pthread_cond_wait(&w->changed, &w->lock);
    atomic_fetch_sub(&w->sleepers, 1);
    pthread_mutex_unlock(&w->lock);
}

/* To be called after a change of w->value. */
static void wake(word *w) {
    if (!atomic_load(&w->sleepers)) return;
    pthread_mutex_lock(&w->lock);
    pthread_cond_broadcast(&w->changed);
    pthread_mutex_unlock(&w->lock);
}

static void *help(void *argument) {
    const int index = (int)(intptr_t)argument;
    unsigned seen = atomic_load(&opened.value) - 1; /* one may have been opened while this thread started */
    for (;;) {
        wait_while(&opened, seen);
        seen = atomic_load(&opened.value);
        atomic_fetch_add(&inside.value, 1);
        region *current = atomic_load(&open_region);
        if (current && index < current->num_helpers) current->body(current->data);
        atomic_fetch_sub(&inside.value, 1);
        wake(&inside);
    }
    return NULL;
}

/* A forked child has none of the helpers, and no region is open in it. */
static void forget_helpers(void) {
    num_helpers = 0;
    opened = inside = (word)WORD;
}

static void watch_forks(void) { pthread_atfork(NULL, NULL, forget_helpers); }

/* Signals are for the threads that the program made. */
static int start_helper(int index) {
    sigset_t all, before;
    pthread_t thread;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    const int failed = pthread_create(&thread, NULL, help, (void *)(intptr_t)index);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (!failed) pthread_detach(thread);
    return !failed;
}

static void run_on_own_pool(shoal_body body, void *data, int num_threads) {
    if (atomic_flag_test_and_set_explicit(&busy, memory_order_acquire)) {
        body(data);
        return;
    }
    const int wanted = num_threads - 1 < MAX_HELPERS ? num_threads - 1 : MAX_HELPERS;
    pthread_once(&forks_watched, watch_forks);
    while (num_helpers < wanted && start_helper(num_helpers)) num_helpers++;
    region mine = {body, data, wanted};
    atomic_store(&open_region, &mine);
    atomic_fetch_add(&opened.value, 1);
    wake(&opened);
    body(data);
    atomic_store(&open_region, NULL);
    for (unsigned count; (count = atomic_load(&inside.value)) != 0;) wait_while(&inside, count);
    atomic_flag_clear_explicit(&busy, memory_order_release);
}

void shoal_parallel(shoal_body body, void *data, int num_threads) {
    if (num_threads < 2)
        body(data);
    else if (shoal_on_own_pool || !gomp_parallel)
        run_on_own_pool(body, data, num_threads);
    else
        gomp_parallel(body, data, (unsigned)num_threads, 0);
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
