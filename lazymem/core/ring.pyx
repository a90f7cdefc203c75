"""How is a provider process asked for a block, and how does it answer?

Through memory that both map (ring.h). Asking, on the path of a fault:

    claim a slot (one compare-and-swap) -> write the request -> post: the slot's bit in `asked`, the bell if nobody looks
    -> wait on the slot's word: awake for a moment, then asleep -> the bytes lie in the slot's block -> release

Serving: at most one thread of the process looks at `asked` all the time, and that not for long; the others sleep on the bell. No
request is lost between the two, since each side writes first and reads then (all of it sequentially consistent):

    asker:    (1) its bit in `asked`     (2) reads `spinning` and `sleepers`: somebody looks, or the bell is rung
    spinner:  (1) `spinning` = 0         (2) reads `asked` once more, before it takes anything or sleeps
    sleeper:  (1) `sleepers` + 1         (2) reads `asked` once more, then sleeps unless the bell was rung since
    taker:    takes, then rings for whatever else is in `asked`, if nobody looks

Nothing here allocates, locks, or needs Python. A process that scribbles over the ring harms the bytes it would have answered, and
no others: the served side takes no address, length or count from it, and keeps who uses a slot in memory of its own.
"""
from lazymem.core.native cimport *
from lazymem.core.thread cimport Thread, thread_self, thread_will_wait


cdef extern from "native.h" nogil:
    int INT_MAX

cdef extern from *:
    """
    #include <poll.h>
    #include <sched.h>
    #include <stdint.h>
    #include <stdlib.h>
    #include <sys/wait.h>
    #include <linux/futex.h>
    static inline uint32_t lm_cpu(void) { return (uint32_t)sched_getcpu(); }
    /* Has the process of this descriptor ended, reaped or not? Without a descriptor that works: ask by its number. */
    static inline int lm_process_ended(int pidfd, int pid)
    {
        struct pollfd p = {pidfd, POLLIN, 0};
        siginfo_t info;
        info.si_pid = 0;
        if (pidfd >= 0 && poll(&p, 1, 0) >= 0 && !(p.revents & POLLNVAL))
            return (p.revents & POLLIN) != 0;
        if (waitid(P_PID, (id_t)pid, &info, WEXITED | WNOHANG | WNOWAIT))
            return errno == ECHILD;
        return info.si_pid == pid;
    }
    """
    uint32_t FUTEX_OWNER_DIED
    uint32_t lm_cpu() noexcept nogil
    bint lm_process_ended(int pidfd, int pid) noexcept nogil

# No sleep is longer: the death of the process and a deadline are seen at the latest then.
cdef uint64_t SLICE_NS = 50000000
cdef uint64_t HOUR_NS = 3600000000000


cdef lm_slot *slot_at(lm_head *head, int slot) noexcept nogil:
    """GIL: never. Blocks: no."""
    return <lm_slot *>(<char *>head + RING_HEAD_NBYTES + slot * RING_SLOT_NBYTES)


cdef void *block_at(lm_head *head, uint64_t block_nbytes, int slot) noexcept nogil:
    """Where a slot's block begins. Units: block_nbytes of the ring, as the caller knows it. GIL: never. Blocks: no."""
    return <char *>head + RING_BLOCKS_AT + <uint64_t>slot * block_nbytes


# ---------------------------------------------------------------------------------------------------------------------------
# Claims

cdef void _free_claim(Ring *ring, Claim *c, uint32_t word) noexcept nogil:
    """Make a claim that was seen as `word` free again, unless somebody else has. Thread: the claimer, or its heir."""
    if lm_cas32(&c.word, word, CLAIM_FREE | ((word & SLOT_GENERATION) + (1 << SLOT_GENERATION_SHIFT) & SLOT_GENERATION)):
        if lm_load32(&ring.wanting):
            lm_store32(&ring.wanting, 0)
            lm_add32(&ring.freed, 1)
            lm_futex_wake(&ring.freed, INT_MAX)


cdef void _free_left(Ring *ring, int i, uint32_t word) noexcept nogil:
    """A claim that nobody waits for is free as soon as the process does not write to its block."""
    cdef lm_slot *s = slot_at(ring.head, i)
    cdef uint32_t tag = word & <uint32_t>SLOT_TAG, seen = lm_load32(&s.word)
    if (seen & ~<uint32_t>SLOT_SLEEPS) == (SLOT_ASKED | tag) and word >> SLOT_THREAD_SHIFT:
        if not lm_cas32(&s.word, seen, SLOT_FREE):  # no thread asked: what was asked for is to be done all the same
            return
    elif (seen & ~<uint32_t>SLOT_SLEEPS) != (SLOT_DONE | tag) or s.answer == ANSWER_KEPT:
        return  # kept: what still looks at the block would look at the next request's
    _free_claim(ring, &ring.claims[i], word)


cdef bint _claim_is_left(Ring *ring, Claim *c, uint32_t word, bint *gone) noexcept nogil:
    """Has its thread ended, or jumped out of its wait?"""
    cdef uint32_t state = word & SLOT_STATE, tid = word >> SLOT_THREAD_SHIFT
    if state == CLAIM_FREE or state == CLAIM_LEFT or tid == 0:
        return False
    gone[0] = lm_thread_is_gone(tid)
    return gone[0] or (state == CLAIM_POSTED and lm_load32(&c.until_of) == word & <uint32_t>SLOT_TAG
                       and lm_now_ns() > lm_load64(&c.until_ns))


cdef void _take_over(Ring *ring, int i) noexcept nogil:
    """Free the slot of a thread that does not come back; if it is being answered, as soon as it has been."""
    cdef Claim *c = &ring.claims[i]
    cdef uint32_t word = lm_load32(&c.word), left = (word & <uint32_t>SLOT_TAG) | CLAIM_LEFT
    cdef bint gone = False
    cdef int k
    if (word & SLOT_STATE) == CLAIM_LEFT:
        _free_left(ring, i, word)
    if not _claim_is_left(ring, c, word, &gone) or not lm_cas32(&c.word, word, left):
        return
    lm_sub32(&ring.busy, 1)
    if gone:
        lm_sub32(&ring.users, 1)  # it had entered the ring
    else:
        for k in range(RING_SLOTS):  # perhaps it is only late, and looks at the ring once more
            if lm_cas32(&ring.debtors[k], 0, word >> SLOT_THREAD_SHIFT):
                break
    if (word & SLOT_STATE) == CLAIM_POSTED:
        _free_left(ring, i, left)
    else:
        _free_claim(ring, c, left)


cdef void ring_settle_debts(Ring *ring) noexcept nogil:
    """Threads that have ended are no users of a dead ring. GIL: never. Blocks: no."""
    cdef uint32_t word, tid
    cdef Claim *c
    cdef bint gone = False
    cdef int i
    for i in range(RING_SLOTS):
        c = &ring.claims[i]
        word = lm_load32(&c.word)
        if _claim_is_left(ring, c, word, &gone) and gone and lm_cas32(&c.word, word, (word & <uint32_t>SLOT_TAG) | CLAIM_LEFT):
            lm_sub32(&ring.users, 1)
        tid = lm_load32(&ring.debtors[i])
        if tid and lm_thread_is_gone(tid) and lm_cas32(&ring.debtors[i], tid, 0):
            lm_sub32(&ring.users, 1)


cdef int ring_claim(Ring *ring, uint32_t tid, uint64_t until_ns, uint64_t provider) noexcept nogil:
    """Claim a slot for thread `tid` (0: nobody will wait), the lowest that is free: its pages have been used.

    Units: until_ns of the clock; if the thread has not come back by then, it has jumped out. Return: its number; -EAGAIN none is free.
    GIL: never. Blocks: no. Thread: one that has entered the ring.
    """
    cdef uint32_t word, held
    cdef Claim *c
    cdef int i, turn
    for turn in range(2):
        for i in range(RING_SLOTS):
            c = &ring.claims[i]
            if turn or (lm_load32(&c.word) & SLOT_STATE) == CLAIM_LEFT:
                _take_over(ring, i)
            word = lm_load32(&c.word)
            held = CLAIM_HELD | (word & SLOT_GENERATION) | tid << SLOT_THREAD_SHIFT
            if (word & SLOT_STATE) == CLAIM_FREE and lm_cas32(&c.word, word, held):
                c.provider = provider
                lm_store64(&c.until_ns, until_ns)
                lm_store32(&c.until_of, held & <uint32_t>SLOT_TAG)
                lm_add32(&ring.busy, 1)
                return i
    return -EAGAIN


cdef bint ring_wait_for_slot(Ring *ring, uint64_t deadline_ns) noexcept nogil:
    """Wait until a slot may be free. Return: False at the deadline. GIL: kept if held. Blocks: a slice at most. Thread: any; it is
    in no need of having entered the ring."""
    cdef uint32_t seen = lm_load32(&ring.freed)
    cdef uint64_t now_ns = lm_now_ns()
    cdef int i
    if now_ns >= deadline_ns:
        return False
    lm_store32(&ring.wanting, 1)
    for i in range(RING_SLOTS):
        if (lm_load32(&ring.claims[i].word) & SLOT_STATE) == CLAIM_FREE:
            return True
    lm_futex_wait(&ring.freed, seen, min(SLICE_NS, deadline_ns - now_ns))
    return True


cdef void ring_abandon(Ring *ring, int slot, uint32_t tag) noexcept nogil:
    """Wait no more for a slot posted by claim `tag`: it is free now, or when the process has answered. Of a dead ring too.

    GIL: never. Blocks: no. Thread: the claimer.
    """
    cdef int k
    if lm_cas32(&ring.claims[slot].word, CLAIM_POSTED | tag, CLAIM_LEFT | tag):
        lm_sub32(&ring.busy, 1)
        _free_left(ring, slot, CLAIM_LEFT | tag)
        return
    for k in range(RING_SLOTS):  # it was taken over, but the thread has not jumped out: it leaves the ring by itself
        if lm_cas32(&ring.debtors[k], tag >> SLOT_THREAD_SHIFT, 0):
            return


cdef bint ring_take_back(Ring *ring, int slot, uint32_t tag) noexcept nogil:
    """Keep the process from beginning with what claim `tag` posted. Return: False it is at it.

    GIL: never. Blocks: no. Thread: the claimer, its claim taken over perhaps.
    """
    cdef lm_slot *s = slot_at(ring.head, slot)
    cdef uint32_t word
    while True:
        word = lm_load32(&s.word)
        if (word & <uint32_t>SLOT_TAG) != tag:
            return True  # whoever took the claim over has seen to it
        if (word & SLOT_STATE) != SLOT_ASKED:
            return (word & SLOT_STATE) != SLOT_TAKEN
        if lm_cas32(&s.word, word, SLOT_DONE | tag):
            return True


cdef void ring_await_end(Ring *ring, uint64_t deadline_ns) noexcept nogil:
    """Wait until the process that was killed has ended, all its threads: one may be in the middle of a system call.

    GIL: kept if held. Blocks: until the deadline. Thread: one that has entered the ring.
    """
    while ring.pid and not lm_process_ended(ring.pidfd, ring.pid) and lm_now_ns() < deadline_ns:
        lm_sleep_ns(200000)


cdef void ring_release(Ring *ring, int slot) noexcept nogil:
    """Give a slot back. GIL: never. Blocks: no. Thread: the claimer, when it was answered or never posted."""
    lm_sub32(&ring.busy, 1)
    _free_claim(ring, &ring.claims[slot], lm_load32(&ring.claims[slot].word))


cdef bint ring_others_had_begun(Ring *ring, uint64_t provider) noexcept nogil:
    """Was a dead process running another provider too? GIL: never. Blocks: no. Thread: one that has entered the ring."""
    cdef Claim *c
    cdef lm_slot *s
    cdef uint32_t word
    cdef int i
    for i in range(RING_SLOTS):
        c = &ring.claims[i]
        s = slot_at(ring.head, i)
        word = lm_load32(&c.word)
        if (word & SLOT_STATE) in (CLAIM_POSTED, CLAIM_LEFT) and c.provider != provider and lm_load32(&s.begun) \
                and (lm_load32(&s.word) & ~<uint32_t>SLOT_SLEEPS) == (SLOT_TAKEN | word & <uint32_t>SLOT_TAG):
            return True
    return False


# ---------------------------------------------------------------------------------------------------------------------------
# Asking

cdef void ring_post(Ring *ring, int slot, const Request *request) noexcept nogil:
    """Hand a request to the process, in a claimed slot. GIL: never. Blocks: no. Thread: the claimer."""
    cdef lm_head *head = ring.head
    cdef lm_slot *s = slot_at(head, slot)
    cdef uint32_t tag = lm_load32(&ring.claims[slot].word) & <uint32_t>SLOT_TAG, cpu
    s.begun = 0
    s.answer = ANSWER_FAILED
    s.ask = request.ask
    s.provider = ring.claims[slot].provider
    s.offset = request.offset
    s.nbytes = request.nbytes
    s.total = request.total
    lm_store32(&ring.claims[slot].word, CLAIM_POSTED | tag)
    lm_store32(&s.word, SLOT_ASKED | tag)
    cpu = lm_cpu()
    if head.asker_cpu != cpu:
        head.asker_cpu = cpu
    lm_or64(&head.asked, <uint64_t>1 << slot)
    _ring_bell(head)


cdef void _ring_bell(lm_head *head) noexcept nogil:
    if lm_load32(&head.spinning) == 0 and lm_load32(&head.sleepers) != 0:
        lm_add32(&head.bell, 1)
        lm_futex_wake_shared(&head.bell, 1)


cdef bint ring_is_dead(Ring *ring) noexcept nogil:
    """Has its process ended? Before it is ready it holds no lock, and is asked after by descriptor. GIL: never. Blocks: no."""
    if lm_load32(&ring.life) != RING_LIVE or lm_load32(&ring.head.alive) & FUTEX_OWNER_DIED:
        return True
    return not ring_is_ready(ring) and lm_process_ended(ring.pidfd, ring.pid)


cdef bint ring_is_ready(Ring *ring) noexcept nogil:
    """Does its process take requests, or has it? GIL: never. Blocks: no."""
    if ring.ready == 0 and lm_load32(&ring.head.ready):
        lm_store32(&ring.ready, 1)
    return lm_load32(&ring.ready) != 0


cdef int _accept(Ring *ring, int slot, uint32_t tag) noexcept nogil:
    """The answer is there: the block is this thread's to read, and nobody takes it over. Return: Waited."""
    if not lm_cas32(&ring.claims[slot].word, CLAIM_POSTED | tag, CLAIM_LENT | tag):
        return WAITED_DISOWNED
    lm_add32(&ring.answered, 1)
    return WAITED_DONE


cdef int ring_wait(Ring *ring, int slot, uint32_t tag, uint64_t spin_ns, uint64_t patience_ns, uint64_t deadline_ns,
                   bint *begun) noexcept nogil:
    """Wait for the answer to a slot posted by claim `tag`: awake for `spin_ns`, then asleep.

    Units: patience_ns from when the provider began; before that, from when the process last answered anybody; deadline_ns of the
    clock. `begun`: had it? Return: Waited. GIL: kept if held. Blocks: until then. Thread: the claimer.
    """
    cdef lm_slot *s = slot_at(ring.head, slot)
    cdef uint32_t done = SLOT_DONE | tag, word, answered = 0
    cdef uint64_t now_ns = lm_now_ns(), moved_ns = 0, until_ns, spin_until_ns = now_ns + spin_ns
    cdef Thread *me = thread_self()
    cdef int i
    while now_ns < spin_until_ns:
        for i in range(64):
            if (lm_load32(&s.word) & ~<uint32_t>SLOT_SLEEPS) == done:
                return _accept(ring, slot, tag)
            lm_pause()
        if lm_load32(&ring.head.server_cpu) == lm_cpu():
            break  # it can only answer if we let it run
        now_ns = lm_now_ns()
    begun[0] = False
    thread_will_wait()
    while True:
        word = lm_load32(&s.word)
        if (word & ~<uint32_t>SLOT_SLEEPS) == done or lm_load32(&ring.claims[slot].word) != (CLAIM_POSTED | tag):
            return _accept(ring, slot, tag)
        now_ns = lm_now_ns()
        if not begun[0]:
            begun[0] = lm_load32(&s.begun) != 0
            if begun[0] or lm_load32(&ring.answered) != answered or (moved_ns == 0 and ring_is_ready(ring)):
                answered = lm_load32(&ring.answered)
                moved_ns = now_ns
        if ring_is_dead(ring):
            begun[0] = lm_load32(&s.begun) != 0
            return _accept(ring, slot, tag) if (lm_load32(&s.word) & ~<uint32_t>SLOT_SLEEPS) == done else WAITED_DEAD
        if (word & ~<uint32_t>SLOT_SLEEPS) not in (SLOT_ASKED | tag, SLOT_TAKEN | tag):
            return WAITED_BROKEN
        until_ns = min(deadline_ns, moved_ns + patience_ns) if moved_ns else deadline_ns
        if now_ns >= until_ns:
            # A provider that the deadline hardly left any time to is not killed for it.
            return WAITED_QUEUED if moved_ns and now_ns < moved_ns + (patience_ns // 2 if begun[0] else patience_ns) else WAITED_LATE
        if me != NULL and me.interrupted != NULL and me.interrupted():
            return WAITED_INTERRUPTED
        if not word & SLOT_SLEEPS and not lm_cas32(&s.word, word, word | SLOT_SLEEPS):
            continue
        lm_futex_wait_shared(&s.word, word | SLOT_SLEEPS, min(SLICE_NS, until_ns - now_ns))


cdef bint ring_answered(Ring *ring, int slot, const Request *request, uint32_t *answer) noexcept nogil:
    """Is what lies in the slot an answer to this request, and which? GIL: never. Blocks: no. Thread: the claimer."""
    cdef lm_slot *s = slot_at(ring.head, slot)
    cdef Claim *c = &ring.claims[slot]
    answer[0] = lm_load32(&s.answer)
    return lm_load64(&s.receipt) == lm_receipt(c.word & <uint32_t>SLOT_TAG, request.ask, answer[0], c.provider, request.offset,
                                               request.nbytes)


# ---------------------------------------------------------------------------------------------------------------------------
# Serving

cdef int _take(lm_head *head) noexcept nogil:
    """Return: a slot that is TAKEN from now on; -EAGAIN none."""
    cdef uint64_t asked
    cdef uint32_t word
    cdef lm_slot *s
    cdef int i
    while True:
        asked = lm_load64(&head.asked)
        if asked == 0:
            return -EAGAIN
        i = lm_low_bit(asked)
        if not lm_take_bits64(&head.asked, <uint64_t>1 << i):
            continue
        if lm_load64(&head.asked):
            _ring_bell(head)  # this thread is busy from now on
        s = slot_at(head, i)
        word = lm_load32(&s.word)
        while (word & SLOT_STATE) == SLOT_ASKED:
            if lm_cas32(&s.word, word, (word & ~<uint32_t>SLOT_STATE) | SLOT_TAKEN):
                return i
            word = lm_load32(&s.word)


cdef bint _look(lm_head *head) noexcept nogil:
    """Look at `asked` for a moment. Return: is there anything?"""
    cdef uint64_t until_ns = lm_now_ns() + head.spin_ns
    cdef bint found = False
    cdef uint64_t now_ns
    cdef uint32_t cpu
    cdef int i
    if head.spin_ns == 0 or not lm_cas32(&head.spinning, 0, 1):
        return False
    while not found:
        now_ns = lm_now_ns()
        if now_ns >= until_ns:
            break
        for i in range(64):
            if lm_load64(&head.asked):
                found = True
                break
            lm_pause()
        cpu = lm_cpu()
        if head.server_cpu != cpu:
            head.server_cpu = cpu
        if head.asker_cpu == cpu:
            break
    lm_store32(&head.spinning, 0)
    return found


cdef int ring_next(lm_head *head) noexcept nogil:
    """Wait for a request. Return: its slot; -ESHUTDOWN the process is asked to end. GIL: must not be held. Blocks: yes."""
    cdef uint32_t heard
    cdef int slot
    while True:
        slot = _take(head)
        if slot >= 0:
            return slot
        if lm_load32(&head.quit):
            return -ESHUTDOWN
        if _look(head):
            continue
        heard = lm_load32(&head.bell)
        lm_add32(&head.sleepers, 1)
        if lm_load64(&head.asked) == 0 and lm_load32(&head.quit) == 0:
            lm_futex_wait_shared(&head.bell, heard, HOUR_NS)
        lm_sub32(&head.sleepers, 1)


cdef void ring_answer(lm_head *head, int slot, uint32_t answer, uint64_t receipt) noexcept nogil:
    """Answer a taken slot. GIL: never. Blocks: no. Thread: the one that took it."""
    cdef lm_slot *s = slot_at(head, slot)
    cdef uint32_t word
    s.answer = answer
    lm_store64(&s.receipt, receipt)
    while True:
        word = lm_load32(&s.word)
        if (word & SLOT_STATE) != SLOT_TAKEN:
            return  # a provider has written over it
        if lm_cas32(&s.word, word, (word & ~<uint32_t>(SLOT_STATE | SLOT_SLEEPS)) | SLOT_DONE):
            break
    if word & SLOT_SLEEPS:
        lm_futex_wake_shared(&s.word, 1)
