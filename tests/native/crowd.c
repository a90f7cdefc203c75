/* What does a crowd of native threads do to memory that is being evicted: count, gather, copy? */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdint.h>
#include <string.h>
#include <time.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

static uint64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static uint64_t dice(uint64_t *seed)
{
    *seed ^= *seed << 13;
    *seed ^= *seed >> 7;
    *seed ^= *seed << 17;
    return *seed;
}

/* Plain ++ on counter `slot` of one page after the other, by the dice, for so long; `mine` keeps count beside the memory.
   Return: how many. */
int64_t count_up(char *base, uint64_t npages, uint64_t page, uint64_t slot, uint64_t ns, int64_t *mine)
{
    uint64_t end = now_ns() + ns, seed = slot * 2654435761u + 88172645463325252u, i, at, k;
    int64_t n = 0;
    while (now_ns() < end)
        for (i = 0; i < 16; i++) {
            at = dice(&seed) % npages;
            for (k = 0; k < 1 + seed % 64; k++, n++) {     /* long enough for an eviction to come in between */
                ++*(volatile int64_t *)(base + at * page + slot * 8);
                ++mine[at];
            }
        }
    return n;
}

/* Sum of one int64 at each offset, eight touches an instruction where the processor can: 8, 4 or 1. */
int can_gather(void)
{
#if defined(__x86_64__)
    return __builtin_cpu_supports("avx512f") ? 8 : __builtin_cpu_supports("avx2") ? 4 : 1;
#else
    return 1;
#endif
}

#if defined(__x86_64__)
__attribute__((target("avx512f"))) static int64_t gather_8(const char *base, const int64_t *at, uint64_t n)
{
    __m512i sum = _mm512_setzero_si512();
    uint64_t i;
    for (i = 0; i + 8 <= n; i += 8)
        sum = _mm512_add_epi64(sum, _mm512_i64gather_epi64(_mm512_loadu_si512(at + i), base, 1));
    return _mm512_reduce_add_epi64(sum);
}

__attribute__((target("avx2"))) static int64_t gather_4(const char *base, const int64_t *at, uint64_t n)
{
    __m256i sum = _mm256_setzero_si256();
    int64_t parts[4];
    uint64_t i;
    for (i = 0; i + 4 <= n; i += 4)
        sum = _mm256_add_epi64(sum, _mm256_i64gather_epi64((const long long *)base, _mm256_loadu_si256((const void *)(at + i)), 1));
    _mm256_storeu_si256((void *)parts, sum);
    return parts[0] + parts[1] + parts[2] + parts[3];
}
#endif

/* n a multiple of 8. */
int64_t gather(const char *base, const int64_t *at, uint64_t n)
{
    int64_t sum = 0;
    uint64_t i;
#if defined(__x86_64__)
    if (can_gather() == 8)
        return gather_8(base, at, n);
    if (can_gather() == 4)
        return gather_4(base, at, n);
#endif
    for (i = 0; i < n; i++)
        sum += *(const volatile int64_t *)(base + at[i]);
    return sum;
}

/* One instruction for all of it, where there is one. */
void copy_in_one(char *dst, const char *src, uint64_t nbytes)
{
#if defined(__x86_64__)
    __asm__ volatile("rep movsb" : "+D"(dst), "+S"(src), "+c"(nbytes) : : "memory");
#else
    memcpy(dst, src, nbytes);
#endif
}
