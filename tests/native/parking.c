/* How is a thread held up at a point of the core, until a test lets it go?
 *
 * The hook of a debug build (core/parking.h).  It runs wherever the core does, in a signal handler too: atomics and nanosleep alone.  A spot is
 * armed for the n-th thread that comes by a point; that one stays until it is released, or until its time is over: no wait is without a
 * deadline.  A forked child has no spots.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum { FREE, ARMED, PARKED, RELEASED, OVER, SPOTS = 16 };

static struct spot {
    char point[32];
    uint32_t state, nth, hits, tid;
    uint64_t for_ns;              /* how long, if nobody releases it */
} spots[SPOTS];
static uint64_t passed[64];       /* how often each point was come by, by a hash of its name */

static uint64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static unsigned hash(const char *name)
{
    unsigned h = 5381;
    while (*name)
        h = h * 33 + (unsigned char)*name++;
    return h % 64;
}

void parking_hook(const char *point)
{
    struct timespec pause = {0, 200000};
    uint64_t until;
    uint32_t armed;
    int i;
    __atomic_fetch_add(&passed[hash(point)], 1, __ATOMIC_SEQ_CST);
    for (i = 0; i < SPOTS; i++) {
        struct spot *s = &spots[i];
        armed = ARMED;
        if (__atomic_load_n(&s->state, __ATOMIC_SEQ_CST) != ARMED || strcmp(s->point, point))
            continue;
        if (__atomic_add_fetch(&s->hits, 1, __ATOMIC_SEQ_CST) != s->nth)
            continue;
        s->tid = (uint32_t)syscall(SYS_gettid);
        if (!__atomic_compare_exchange_n(&s->state, &armed, PARKED, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST))
            continue;
        until = now_ns() + s->for_ns;
        while (__atomic_load_n(&s->state, __ATOMIC_SEQ_CST) == PARKED && now_ns() < until)
            nanosleep(&pause, NULL);
        armed = PARKED;
        __atomic_compare_exchange_n(&s->state, &armed, OVER, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
        return;
    }
}

static void in_child(void) { memset(spots, 0, sizeof spots); }
__attribute__((constructor)) static void begin(void) { pthread_atfork(NULL, NULL, in_child); }

int parking_arm(const char *point, uint32_t nth, uint64_t for_ns)
{
    int i;
    for (i = 0; i < SPOTS; i++)
        if (spots[i].state == FREE) {
            memset(&spots[i], 0, sizeof spots[i]);
            strncpy(spots[i].point, point, sizeof spots[i].point - 1);
            spots[i].nth = nth;
            spots[i].for_ns = for_ns;
            __atomic_store_n(&spots[i].state, ARMED, __ATOMIC_SEQ_CST);
            return i;
        }
    return -1;
}

uint32_t parking_state(int i) { return __atomic_load_n(&spots[i].state, __ATOMIC_SEQ_CST); }
uint32_t parking_tid(int i) { return spots[i].tid; }
void parking_release(int i) { __atomic_store_n(&spots[i].state, RELEASED, __ATOMIC_SEQ_CST); }
uint64_t parking_passed(const char *point) { return __atomic_load_n(&passed[hash(point)], __ATOMIC_SEQ_CST); }

/* ---------------------------------------------------------------- threads that touch one word, and a handler that does */

static struct touch { volatile int64_t *at; int64_t got; uint32_t done; uint32_t tid; } touches[64];
static uint32_t touch_count;

static void *touching(void *argument)
{
    struct touch *t = argument;
    t->tid = (uint32_t)syscall(SYS_gettid);
    t->got = *t->at;
    __atomic_store_n(&t->done, 1, __ATOMIC_SEQ_CST);
    return NULL;
}

int parking_touch(volatile int64_t *at)
{
    pthread_t thread;
    struct touch *t = &touches[touch_count % 64];
    memset(t, 0, sizeof *t);
    t->at = at;
    if (pthread_create(&thread, NULL, touching, t))
        return -1;
    pthread_detach(thread);
    return (int)(touch_count++ % 64);
}

int parking_touched(int i, int64_t *got)
{
    *got = touches[i].got;
    return (int)__atomic_load_n(&touches[i].done, __ATOMIC_SEQ_CST);
}

static volatile int64_t *handler_at;
static int64_t handler_got;
static uint32_t handler_done;

static void handler(int sig)
{
    handler_got = *handler_at;
    __atomic_store_n(&handler_done, 1, __ATOMIC_SEQ_CST);
}

/* Have a thread run a handler that touches a word. */
int parking_signal(uint32_t tid, volatile int64_t *at)
{
    struct sigaction act;
    memset(&act, 0, sizeof act);
    act.sa_handler = handler;
    handler_at = at;
    handler_done = 0;
    sigaction(SIGUSR2, &act, NULL);
    return (int)syscall(SYS_tgkill, getpid(), tid, SIGUSR2);
}

int parking_handled(int64_t *got)
{
    *got = handler_got;
    return (int)__atomic_load_n(&handler_done, __ATOMIC_SEQ_CST);
}
