/* What do the tests need that must be C: sources that count, delay, fail and touch; threads, readers and signal handlers. */
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "lazymem.h"

struct kit {
    uint64_t calls, at_once, most_at_once;
    uint64_t delay_ns;
    int64_t error;          /* what to answer instead of bytes */
    uint64_t pattern;       /* 0: int64 that count; 1: every byte of a block is its number plus one, modulo 251 */
    uint64_t block_nbytes;
    char *touch;            /* read one byte here, plus touch_step times the offset, before answering */
    uint64_t touch_step;
    uint64_t gate;          /* not 0: wait until it is */
    uint64_t touched;
    uint32_t *per_block;    /* calls for each block, if wanted */
};

static uint64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static void sleep_ns(uint64_t ns)
{
    struct timespec t = {(time_t)(ns / 1000000000u), (long)(ns % 1000000000u)};
    while (nanosleep(&t, &t) && errno == EINTR)
        ;
}

int fetch(void *ctx, void *dst, uint64_t offset, uint64_t nbytes)
{
    struct kit *k = ctx;
    uint64_t i, now = __atomic_add_fetch(&k->at_once, 1, __ATOMIC_SEQ_CST);
    int64_t *out = dst;
    __atomic_add_fetch(&k->calls, 1, __ATOMIC_SEQ_CST);
    if (now > k->most_at_once)
        k->most_at_once = now;
    if (k->per_block)
        __atomic_add_fetch(&k->per_block[offset / k->block_nbytes], 1, __ATOMIC_SEQ_CST);
    while (__atomic_load_n(&k->gate, __ATOMIC_SEQ_CST))
        sleep_ns(100000);
    if (k->delay_ns)
        sleep_ns(k->delay_ns);
    if (k->touch) {
        volatile unsigned char *at = (unsigned char *)k->touch + k->touch_step * offset;
        (void)*at;
        __atomic_add_fetch(&k->touched, 1, __ATOMIC_SEQ_CST);
    }
    if (k->pattern)
        memset(dst, (int)(offset / k->block_nbytes % 251 + 1), nbytes);
    else {
        for (i = 0; i < nbytes / 8; i++)
            out[i] = (int64_t)(offset / 8 + i);
        for (i = nbytes & ~7ull; i < nbytes; i++)
            ((unsigned char *)dst)[i] = (unsigned char)((offset + i) / 8 >> 8 * ((offset + i) % 8));
    }
    __atomic_sub_fetch(&k->at_once, 1, __ATOMIC_SEQ_CST);
    return (int)k->error;
}

/* Says that all is well and writes nothing. */
int fetch_nothing(void *ctx, void *dst, uint64_t offset, uint64_t nbytes) { return 0; }

/* ---------------------------------------------------------------- threads that touch */

struct toucher {
    pthread_barrier_t *start;
    char *base;
    uint64_t first, n, step, rounds, wrong;
};

static void *touching(void *argument)
{
    struct toucher *t = argument;
    uint64_t i, r;
    pthread_barrier_wait(t->start);
    for (r = 0; r < t->rounds; r++)
        for (i = t->first; i < t->first + t->n; i++)
            if (*(volatile int64_t *)(t->base + i * t->step) != (int64_t)(i * t->step / 8))
                t->wrong++;
    return NULL;
}

static int64_t touch(char *base, uint64_t nthreads, uint64_t n, uint64_t step, int together, uint64_t from)
{
    pthread_t threads[256];
    struct toucher t[256];
    pthread_barrier_t start;
    uint64_t i;
    int64_t wrong = 0;
    if (nthreads > 256)
        return -1;
    pthread_barrier_init(&start, NULL, (unsigned)nthreads);
    for (i = 0; i < nthreads; i++) {
        t[i] = (struct toucher){&start, base, together ? from : from + i * n, n, step, 1, 0};
        if (pthread_create(&threads[i], NULL, touching, &t[i]))
            abort();
    }
    for (i = 0; i < nthreads; i++) {
        pthread_join(threads[i], NULL);
        wrong += (int64_t)t[i].wrong;
    }
    pthread_barrier_destroy(&start);
    return wrong;
}

/* Every thread reads one word in each of the same n steps / of n steps of its own. Return: how many words were wrong. */
int64_t touch_together(char *base, uint64_t nthreads, uint64_t n, uint64_t step) { return touch(base, nthreads, n, step, 1, 0); }
int64_t touch_apart(char *base, uint64_t nthreads, uint64_t n, uint64_t step, uint64_t from)
{
    return touch(base, nthreads, n, step, 0, from);
}

int64_t touch_one(volatile int64_t *p) { return *p; }

/* One thread: read a word of each of n steps, drop them all, and again. Return: how many words were wrong. */
int64_t touch_rounds(char *base, uint64_t n, uint64_t step, uint64_t rounds)
{
    uint64_t i, r;
    int64_t wrong = 0;
    for (r = 0; r < rounds; r++) {
        for (i = 0; i < n; i++)
            wrong += *(volatile int64_t *)(base + i * step) != (int64_t)(i * step / 8);
        if (madvise(base, n * step, MADV_DONTNEED))
            return -errno;
    }
    return wrong;
}

static void *touch_and_say(void *p)
{
    int64_t value = *(volatile int64_t *)p;
    fprintf(stderr, "read %lld\n", (long long)value);
    return NULL;
}

/* A thread that reads one word and says what it read; nobody waits for it. */
void start_toucher(void *p)
{
    pthread_t thread;
    if (pthread_create(&thread, NULL, touch_and_say, p))
        abort();
    pthread_detach(thread);
}

void poke(volatile char *p, long value) { *p = (char)value; }

int64_t omp_sum(const int64_t *p, uint64_t n, int threads)
{
    int64_t sum = 0;
    int64_t i;
#pragma omp parallel for num_threads(threads) reduction(+ : sum) schedule(dynamic, 512)
    for (i = 0; i < (int64_t)n; i++)
        sum += p[i];
    return sum;
}

/* ---------------------------------------------------------------- readers that spin while blocks come and go */

struct spinner {
    char *base;
    uint64_t nblocks, block_nbytes, seed, bad, reads;
    int *stop;
    uint64_t *target;       /* the block that was dropped last */
};

static uint64_t next_random(uint64_t *s)
{
    *s ^= *s << 13;
    *s ^= *s >> 7;
    *s ^= *s << 17;
    return *s;
}

static void *spinning(void *argument)
{
    struct spinner *s = argument;
    while (!__atomic_load_n(s->stop, __ATOMIC_RELAXED)) {
        uint64_t i, block = s->reads % 8 ? __atomic_load_n(s->target, __ATOMIC_RELAXED) : next_random(&s->seed) % s->nblocks;
        volatile uint64_t *word = (uint64_t *)(s->base + block * s->block_nbytes);
        uint64_t right = 0x0101010101010101ull * (block % 251 + 1);
        for (i = 0; i < s->block_nbytes / 8; i++)
            s->bad += word[i] != right;
        s->reads++;
    }
    return NULL;
}

/* Readers read every word of random blocks (pattern 1) while this thread drops blocks, until `fills` (a counter that somebody moves, such
 * as a kit's calls) has reached `wanted`. out: words that were wrong, blocks read, blocks dropped. */
void read_and_drop(char *base, uint64_t nblocks, uint64_t block_nbytes, uint64_t readers, uint64_t wanted, uint64_t seed,
                   const uint64_t *fills_and_out)
{
    pthread_t threads[32];
    struct spinner s[32];
    int stop = 0;
    uint64_t i, target = 0, dropped = 0, *out = (uint64_t *)fills_and_out, *fills = (uint64_t *)(uintptr_t)out[0];
    for (i = 0; i < readers; i++) {
        s[i] = (struct spinner){base, nblocks, block_nbytes, seed + i * 7919 + 1, 0, 0, &stop, &target};
        if (pthread_create(&threads[i], NULL, spinning, &s[i]))
            abort();
    }
    while (__atomic_load_n(fills, __ATOMIC_RELAXED) < wanted) {
        uint64_t before = __atomic_load_n(fills, __ATOMIC_RELAXED), block = next_random(&seed) % nblocks;
        madvise(base + block * block_nbytes, block_nbytes, MADV_DONTNEED);
        __atomic_store_n(&target, block, __ATOMIC_RELAXED);
        dropped++;
        /* mostly wait until somebody has asked for it; now and then drop the next while this one is on its way */
        for (i = 0; i < dropped % 64 && __atomic_load_n(fills, __ATOMIC_RELAXED) == before; i++)
            sleep_ns(1000);
    }
    __atomic_store_n(&stop, 1, __ATOMIC_RELAXED);
    out[0] = out[1] = 0;
    for (i = 0; i < readers; i++) {
        pthread_join(threads[i], NULL);
        out[0] += s[i].bad;
        out[1] += s[i].reads;
    }
    out[2] = dropped;
}

/* ---------------------------------------------------------------- signals */

static volatile char *handler_base;
static uint64_t handler_n, handler_step, handler_calls, handler_wrong;

static void touch_in_handler(int sig)
{
    uint64_t i = __atomic_fetch_add(&handler_calls, 1, __ATOMIC_SEQ_CST) % handler_n;
    if (handler_base && *(volatile int64_t *)(handler_base + i * handler_step) != (int64_t)(i * handler_step / 8))
        __atomic_fetch_add(&handler_wrong, 1, __ATOMIC_SEQ_CST);
}

/* From now on the signal's handler reads a word of the next of n steps each time (base NULL: only counts). */
void handle_by_touching(int sig, void *base, uint64_t n, uint64_t step)
{
    struct sigaction action;
    memset(&action, 0, sizeof action);
    action.sa_handler = touch_in_handler;
    action.sa_flags = SA_RESTART;
    handler_base = base;
    handler_n = n ? n : 1;
    handler_step = step;
    handler_calls = handler_wrong = 0;
    sigaction(sig, &action, NULL);
}

int64_t handled(int wrong) { return (int64_t)(wrong ? handler_wrong : handler_calls); }

static struct { char *base; uint64_t step, at, marks; unsigned char *marked; } marking;

static void mark_in_handler(int sig)
{
    uint64_t i = __atomic_load_n(&marking.at, __ATOMIC_SEQ_CST);
    ((volatile int64_t *)(marking.base + i * marking.step))[1] = -1 - (int64_t)i;
    marking.marks += !marking.marked[i];
    marking.marked[i] = 1;
}

/* Touch n steps one after another, while SIGALRM's handler writes beside the word that is being touched, each so many us. How many of
 * its writes were lost; -1: there were fewer than 20. */
int64_t touch_and_mark(char *base, uint64_t n, uint64_t step, uint64_t every_us)
{
    struct sigaction action;
    struct itimerval timer = {{0, (long)every_us}, {0, (long)every_us}}, off = {{0, 0}, {0, 0}};
    uint64_t i, lost = 0;
    memset(&action, 0, sizeof action);
    action.sa_handler = mark_in_handler;
    action.sa_flags = SA_RESTART;
    marking.base = base;
    marking.step = step;
    marking.marks = 0;
    marking.marked = calloc(n, 1);
    sigaction(SIGALRM, &action, NULL);
    setitimer(ITIMER_REAL, &timer, NULL);
    for (i = 0; i < n; i++) {
        __atomic_store_n(&marking.at, i, __ATOMIC_SEQ_CST);
        (void)*(volatile int64_t *)(base + i * step);
    }
    setitimer(ITIMER_REAL, &off, NULL);
    for (i = 0; i < n; i++)
        lost += marking.marked[i] && ((int64_t *)(base + i * step))[1] != -1 - (int64_t)i;
    free(marking.marked);
    return marking.marks < 20 ? -1 : (int64_t)lost;
}

static void exit_in_handler(int sig, siginfo_t *info, void *ucontext)
{
    static const char text[] = "the owner before was called\n";
    (void)!write(2, text, sizeof text - 1);
    _exit(info->si_code > 0 ? 77 : 78);
}

/* Own a signal as any program might: exit 77 for the kernel's, 78 for a sent one. */
void own_signal(int sig)
{
    struct sigaction action;
    memset(&action, 0, sizeof action);
    action.sa_sigaction = exit_in_handler;
    action.sa_flags = SA_SIGINFO;
    sigaction(sig, &action, NULL);
}

/* ---------------------------------------------------------------- odds and ends */

/* Map and unmap a page until told to stop. Return: the longest that took, ns. */
int64_t map_latency(volatile int *stop)
{
    uint64_t worst = 0;
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    while (!*stop) {
        uint64_t began = now_ns(), took;
        void *p = mmap(NULL, page, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        munmap(p, page);
        took = now_ns() - began;
        if (took > worst)
            worst = took;
        sched_yield();
    }
    return (int64_t)worst;
}

/* fork() without Python's hooks: the child reads a word and exits with its low byte. Return: its wait status. */
int fork_and_touch(volatile int64_t *p)
{
    int status = -1;
    pid_t pid = fork();
    if (pid == 0)
        _exit((int)(*p & 0x7f));
    waitpid(pid, &status, 0);
    return status;
}

/* ---------------------------------------------------------------- touches as something ends */

static volatile int64_t *read_last;
static pthread_key_t read_as_a_thread_ends;

static void read_and_say(const char *who, volatile int64_t *p)
{
    char text[64];
    int n = snprintf(text, sizeof text, "%s %lld\n", who, (long long)*p);
    (void)!write(1, text, (size_t)n);
}

int threads_ended;

static void at_a_threads_end(void *p)
{
    read_and_say("thread's end", p);
    threads_ended++;
}

__attribute__((destructor)) static void at_the_end(void)
{
    if (read_last)
        read_and_say("destructor", read_last);
}

void touch_at_the_end(void *p) { read_last = p; }

void touch_as_this_thread_ends(void *p)
{
    pthread_key_create(&read_as_a_thread_ends, at_a_threads_end);
    pthread_setspecific(read_as_a_thread_ends, p);
}

/* ---------------------------------------------------------------- processes that Python does not make */

/* vfork(): a child in our own memory reads a word and exits with its low byte. Return: its wait status. */

/* The same by vfork(), which shares the memory. */
int vfork_and_touch(volatile int64_t *p)
{
    int status = -1;
    pid_t pid = vfork();
    if (pid == 0)
        _exit((int)(*p & 0x7f));
    waitpid(pid, &status, 0);
    return status;
}

/* fork() twice, without Python's hooks: the grandchild reads n words and exits with how many were wrong, and so does its parent. */
int fork_twice_and_touch(const char *base, uint64_t n, uint64_t step)
{
    int status = -1;
    uint64_t i, wrong = 0;
    pid_t pid = fork();
    if (pid == 0) {
        pid_t below = fork();
        if (below == 0) {
            for (i = 0; i < n; i++)
                wrong += *(const volatile int64_t *)(base + i * step) != (int64_t)(i * step / 8);
            _exit(wrong != 0);
        }
        for (i = 0; i < n; i++)
            wrong += *(const volatile int64_t *)(base + i * step) != (int64_t)(i * step / 8);
        waitpid(below, &status, 0);
        _exit(wrong != 0 ? 2 : status != 0 ? 3 : 0);
    }
    waitpid(pid, &status, 0);
    return status;
}

