/* What lies in the memory that a provider process shares with the process it serves?
 *
 *   Head | 64 Slots | text of a process that could not start | what it printed | 64 blocks
 *
 * One sealed memfd, one per life of a process.  Both sides are compiled from this file; `layout` says whether they were compiled from the
 * same one.  The process is not trusted to keep it in order: whoever is served reads every word once, checks it, and knows the
 * shape of the ring by itself.  Units: bytes and ns in the names.
 */
#ifndef LAZYMEM_RING_H
#define LAZYMEM_RING_H

#include <stdint.h>

#define LM_LINE __attribute__((aligned(64)))

enum {
    RING_SLOTS = 64,
    RING_CHAIN = 4,              /* arrays whose providers wait for one another, the asked one included */
    RING_TEXT_NBYTES = 1 << 12,
    RING_SLOT_NBYTES = 1 << 13,
    RING_OUTPUT_NBYTES = 1 << 15,
    RING_REVISION = 1,           /* of what is asked and answered, where the layout alone does not tell */
};

/* Slot.word: state | SLEEPS | generation << 4 | thread << 10
 *
 *   FREE -post-> ASKED -take-> TAKEN -answer-> DONE
 *
 * post: the asking thread; take, answer: the process.  Who may use a slot is not said here: the asking side knows it by itself (ring.pxd:
 * Claim), and takes for an answer to its request only what says back which request that was (lm_receipt).
 */
enum {
    SLOT_FREE, SLOT_ASKED, SLOT_TAKEN, SLOT_DONE,
    SLOT_STATE = 7,
    SLOT_SLEEPS = 8,             /* the asker sleeps on the word */
    SLOT_TAG = ~15,              /* generation and thread */
    SLOT_GENERATION_SHIFT = 4,
    SLOT_GENERATION = 63 << 4,
    SLOT_THREAD_SHIFT = 10,
};

enum {
    ASK_FETCH,                   /* fill the slot's block: bytes [offset, offset + nbytes) of `provider` */
    ASK_LOAD,                    /* the block holds bytes [offset, offset + nbytes) of its pickle of `total` */
    ASK_FORGET,                  /* it is needed no more; nobody waits for the answer */
    ASK_FLUSH,                   /* answer when what was printed is in the ring */
    ASK_STORE,                   /* the block holds bytes [offset, offset + nbytes) for `provider` to take back */
    ASK_SYNC,                    /* what it took back is to be safe */
};

enum {
    ANSWER_FILLED,
    ANSWER_AGAIN,                /* it failed, and may succeed later; `text` says how */
    ANSWER_FAILED,
    ANSWER_UNKNOWN,              /* this process has not loaded that provider */
    ANSWER_KEPT,                 /* failed, and something there still refers to the block: it must not be used again */
    ANSWER_CYCLE,                /* an array already asked for along the chain was touched */
};

typedef struct {
    uint32_t word;
    uint32_t ask;
    uint32_t begun;              /* the provider is running: what is late, or dies, from then on is its doing */
    uint32_t answer;
    uint64_t receipt;
    uint32_t text_nbytes;
    uint64_t provider;
    uint64_t offset;
    uint64_t nbytes;
    uint64_t total;
    uint64_t chain[RING_CHAIN];  /* identities of the arrays that wait, the asked one last */
    uint32_t depth;
    char text[RING_TEXT_NBYTES];
} lm_slot;

typedef struct {
    LM_LINE uint64_t written;    /* bytes ever, by the process */
    uint64_t dropped;
    LM_LINE uint64_t read;       /* by the process that is served */
    char bytes[RING_OUTPUT_NBYTES];
} lm_output;

typedef struct {
    uint64_t layout;
    uint64_t block_nbytes;       /* room in each slot */
    uint64_t spin_ns;            /* how long to wait awake */
    uint32_t server_of;          /* the pid that is served */
    uint32_t level;              /* 1: served is a user's process; 2: a provider process of that, ... */
    LM_LINE uint32_t alive;      /* futex of a robust list: the kernel sets FUTEX_OWNER_DIED */
    uint32_t ready;              /* 1: it takes requests */
    uint32_t quit;               /* it is asked to end */
    LM_LINE uint64_t asked;      /* a bit per slot that waits to be taken */
    LM_LINE uint32_t bell;       /* futex of threads of the process that sleep */
    uint32_t sleepers;
    uint32_t spinning;           /* threads of the process that look at `asked` all the time: 0 or 1 */
    uint32_t server_cpu;         /* on which each side was last awake: on one, neither waits awake for the other */
    uint32_t asker_cpu;
    LM_LINE char last_words[RING_TEXT_NBYTES];   /* of a process that cannot start */
    lm_output output[2];
} lm_head;

#define RING_HEAD_NBYTES (((sizeof(lm_head) + 65535) >> 16) << 16)
#define RING_BLOCKS_AT (RING_HEAD_NBYTES + RING_SLOTS * RING_SLOT_NBYTES)
#define RING_LAYOUT ((uint64_t)sizeof(lm_head) << 32 | RING_REVISION << 24 | sizeof(lm_slot))
#define RING_LAST_WORDS_AT offsetof(lm_head, last_words)

/* What an answer answers. A process that wrote over its ring by mistake has not written this. */
static inline uint64_t lm_receipt(uint32_t tag, uint32_t ask, uint32_t answer, uint64_t provider, uint64_t offset, uint64_t nbytes)
{
    uint64_t h = 0x9e3779b97f4a7c15u ^ ((uint64_t)tag << 32 | ask << 8 | answer);
    h = (h ^ h >> 29 ^ provider) * 0xbf58476d1ce4e5b9u;
    h = (h ^ h >> 32 ^ offset) * 0x94d049bb133111ebu;
    h = (h ^ h >> 29 ^ nbytes) * 0xbf58476d1ce4e5b9u;
    return h ^ h >> 32;
}

_Static_assert(sizeof(lm_slot) <= RING_SLOT_NBYTES, "a slot fits its place");

#endif
