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
no others: the served side takes no address, length or count from it.
"""
from lazymem.core.native cimport *
from lazymem.core.thread cimport Thread, thread_self


cdef extern from "native.h" nogil:
    int INT_MAX

cdef extern from *:
    """
    #include <poll.h>
    #include <stdint.h>
    #include <stdlib.h>
    #include <sys/wait.h>
    #include <linux/futex.h>
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


cdef uint32_t _free_word(uint32_t word) noexcept nogil:
    """The word of the same slot when it is free again: of the next generation."""
    return SLOT_FREE | (((word >> SLOT_GENERATION_SHIFT) + 1) & 63) << SLOT_GENERATION_SHIFT


# ---------------------------------------------------------------------------------------------------------------------------
# Asking

cdef void _note_free(lm_head *head) noexcept nogil:
    lm_add32(&head.freed, 1)
    if lm_load32(&head.wanting):
        lm_futex_wake_shared(&head.freed, INT_MAX)


cdef void _take_over(Ring *ring) noexcept nogil:
    """Free the slots of threads that have ended with a request under way. One that is being answered is freed by the process."""
    cdef uint32_t word, state
    cdef int i
    cdef lm_slot *s
    for i in range(RING_SLOTS):
        s = slot_at(ring.head, i)
        word = lm_load32(&s.word)
        state = word & SLOT_STATE
        if state == SLOT_FREE or state == SLOT_LEFT or not lm_thread_is_gone(word >> SLOT_THREAD_SHIFT):
            continue
        if lm_cas32(&s.word, word, _free_word(word) if state != SLOT_TAKEN else (word & ~<uint32_t>SLOT_STATE) | SLOT_LEFT):
            lm_sub32(&ring.busy, 1)
            lm_sub32(&ring.users, 1)  # it had entered the ring
            if state != SLOT_TAKEN:
                _note_free(ring.head)


cdef int ring_claim(Ring *ring, uint32_t tid) noexcept nogil:
    """Claim a slot for thread `tid`, the lowest that is free: its pages have been used.

    Return: its number; -EAGAIN none is free. GIL: never. Blocks: no. Thread: one that has entered the ring.
    """
    cdef uint32_t word
    cdef int i, turn
    cdef lm_slot *s
    for turn in range(2):
        for i in range(RING_SLOTS):
            s = slot_at(ring.head, i)
            word = lm_load32(&s.word)
            if (word & SLOT_STATE) == SLOT_FREE and lm_cas32(
                    &s.word, word, SLOT_HELD | (word & (63 << SLOT_GENERATION_SHIFT)) | tid << SLOT_THREAD_SHIFT):
                lm_add32(&ring.busy, 1)
                return i
        if turn == 0:
            _take_over(ring)
    return -EAGAIN


cdef bint ring_wait_for_slot(Ring *ring, uint64_t deadline_ns) noexcept nogil:
    """Wait until a slot may be free. Return: False at the deadline. GIL: kept if held. Blocks: a slice at most."""
    cdef uint32_t seen = lm_load32(&ring.head.freed)
    cdef uint64_t now_ns = lm_now_ns()
    cdef int i
    if now_ns >= deadline_ns:
        return False
    lm_add32(&ring.head.wanting, 1)
    for i in range(RING_SLOTS):
        if (lm_load32(&slot_at(ring.head, i).word) & SLOT_STATE) == SLOT_FREE:
            break
    else:
        lm_futex_wait_shared(&ring.head.freed, seen, min(SLICE_NS, deadline_ns - now_ns))
    lm_sub32(&ring.head.wanting, 1)
    return True


cdef void ring_post(Ring *ring, int slot) noexcept nogil:
    """Hand a claimed slot, its request written, to the process. GIL: never. Blocks: no. Thread: the claimer."""
    cdef lm_head *head = ring.head
    cdef lm_slot *s = slot_at(head, slot)
    lm_store32(&s.word, (lm_load32(&s.word) & ~<uint32_t>(SLOT_STATE | SLOT_SLEEPS)) | SLOT_ASKED)
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
    return lm_load32(&ring.head.ready) == 0 and lm_process_ended(ring.pidfd, ring.pid)


cdef int ring_wait(Ring *ring, int slot, uint64_t spin_ns, uint64_t patience_ns, uint64_t deadline_ns,
                   bint *taken) noexcept nogil:
    """Wait for the answer to a posted slot: awake for `spin_ns`, then asleep.

    Units: patience_ns from when the process is ready and asked; deadline_ns of the clock. `taken`: had the process begun?
    Return: Waited. GIL: kept if held. Blocks: until then. Thread: the claimer.
    """
    cdef lm_slot *s = slot_at(ring.head, slot)
    cdef uint64_t now_ns = lm_now_ns(), until_ns = deadline_ns, spin_until_ns = now_ns + spin_ns
    cdef uint32_t word
    cdef Thread *me = thread_self()
    cdef bint ready = False
    cdef int i
    while now_ns < spin_until_ns:
        for i in range(64):
            if (lm_load32(&s.word) & SLOT_STATE) == SLOT_DONE:
                taken[0] = True
                return WAITED_DONE
            lm_pause()
        now_ns = lm_now_ns()
    while True:
        word = lm_load32(&s.word)
        taken[0] = (word & SLOT_STATE) == SLOT_TAKEN
        if (word & SLOT_STATE) == SLOT_DONE:
            return WAITED_DONE
        if ring_is_dead(ring):
            return WAITED_DEAD
        now_ns = lm_now_ns()
        if not ready and lm_load32(&ring.head.ready):
            ready = True
            until_ns = min(deadline_ns, now_ns + patience_ns)
        if now_ns >= until_ns:
            return WAITED_LATE
        if me != NULL and me.interrupted != NULL and me.interrupted():
            return WAITED_INTERRUPTED
        if not word & SLOT_SLEEPS and not lm_cas32(&s.word, word, word | SLOT_SLEEPS):
            continue
        lm_futex_wait_shared(&s.word, word | SLOT_SLEEPS, min(SLICE_NS, until_ns - now_ns))


cdef void ring_abandon(Ring *ring, int slot) noexcept nogil:
    """Wait no more for a posted slot: it is free now, or when the process has answered. GIL: never. Blocks: no. Thread: the claimer."""
    cdef lm_slot *s = slot_at(ring.head, slot)
    cdef uint32_t word, left
    while True:
        word = lm_load32(&s.word)
        left = (word & ~<uint32_t>(SLOT_STATE | SLOT_SLEEPS)) | SLOT_LEFT if (word & SLOT_STATE) == SLOT_TAKEN else _free_word(word)
        if lm_cas32(&s.word, word, left):
            break
    lm_sub32(&ring.busy, 1)
    if (left & SLOT_STATE) == SLOT_FREE:
        _note_free(ring.head)


cdef void ring_release(Ring *ring, int slot) noexcept nogil:
    """Give a slot back. GIL: never. Blocks: no. Thread: the claimer, when it is DONE or was never posted."""
    cdef lm_slot *s = slot_at(ring.head, slot)
    lm_store32(&s.word, _free_word(lm_load32(&s.word)))
    lm_sub32(&ring.busy, 1)
    _note_free(ring.head)


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
    cdef int i
    if head.spin_ns == 0 or not lm_cas32(&head.spinning, 0, 1):
        return False
    while not found and lm_now_ns() < until_ns:
        for i in range(64):
            if lm_load64(&head.asked):
                found = True
                break
            lm_pause()
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


cdef void ring_answer(lm_head *head, int slot, uint32_t answer) noexcept nogil:
    """Answer a taken slot. GIL: never. Blocks: no. Thread: the one that took it."""
    cdef lm_slot *s = slot_at(head, slot)
    cdef uint32_t word
    s.answer = answer
    while True:
        word = lm_load32(&s.word)
        if (word & SLOT_STATE) != SLOT_TAKEN:
            ring_forget(head, slot)  # nobody waits for it any more
            return
        if lm_cas32(&s.word, word, (word & ~<uint32_t>(SLOT_STATE | SLOT_SLEEPS)) | SLOT_DONE):
            break
    if word & SLOT_SLEEPS:
        lm_futex_wake_shared(&s.word, 1)


cdef void ring_forget(lm_head *head, int slot) noexcept nogil:
    """Free a slot whose answer nobody waits for. GIL: never. Blocks: no. Thread: the one that took it."""
    cdef lm_slot *s = slot_at(head, slot)
    lm_store32(&s.word, _free_word(lm_load32(&s.word)))
    _note_free(head)
