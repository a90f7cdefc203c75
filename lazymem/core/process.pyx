"""Which provider process is asked, what if it dies, and when is it given up?

A set has up to PROCESSES_MAX places; a place's word says what is there:

    EMPTY --claim--> STARTING | thread --> number of a ring + 1 --retire--> EMPTY

and in which life of this process (a forked child finds its parent's places EMPTY). Rings stand in a fixed table. Who uses one enters
it, as one enters a region: `users` + 1, then a second look at the place. A ring whose process has ended, or has to, is DEAD: nobody enters it, those
inside notice within a slice, and `rings_attend` unmaps it when they have left. A dead process's ring is never used again.

An attempt ends in one of these ways:

    answered                          the bytes, or an error; some errors may be tried again
    late, past its timeout            the process is killed; this provider is to blame
    the process died in it            this provider is to blame, if the process was running no other
    ... or in another's too           one of them is to blame, and will do it again alone: asked again, not counted
    nothing was answered for so long  the process is killed; those that were running stall it: asked again, not counted
    the process died before it began, or was killed for another's sake     asked again, not counted

What is stored is asked for in the same way, and ends so, with one difference: a process that is at it is never left to itself. It would write
bytes over newer ones, some time later; so it is killed, and has ended before anybody stores again.

A provider that is to blame, or may be, has processes of its own from then on. The attempts of one fetch end at its deadline.

All of it runs on the path of a fault: no malloc, lock, or Python; posix_spawn is prepared (process.h).
"""
from libc.stdint cimport uintptr_t
from libc.string cimport memcpy, memset, strlen

from lazymem.core.native cimport *
from lazymem.core.ring cimport *
from lazymem.core.thread cimport Thread, thread_self, thread_tid, thread_will_wait


cdef extern from "process.h" nogil:
    int lm_spawn_process(lm_spawn *s, int fd)
    int lm_sealed_memory(uint64_t nbytes)
    int lm_open_pidfd(int pid)
    void lm_kill_process(int pidfd, int pid)
    void lm_close_pidfd(int pidfd, int pid)
    bint lm_reap(int pidfd, int pid)
    bint lm_fd_is_ours(const lm_spawn *s, int fd)

cdef extern from "native.h" nogil:
    void *mmap(void *, size_t, int, int, int, long)
    int munmap(void *, size_t)
    int munlock(const void *, size_t)
    int mprotect(void *, size_t, int)
    int madvise(void *, size_t, int)
    int close(int)
    int getpid()
    size_t strnlen(const char *, size_t)
    int PROT_NONE, PROT_READ, PROT_WRITE, MAP_SHARED, MAP_NORESERVE, MADV_DONTFORK, MADV_DONTDUMP, INT_MAX
    void *MAP_FAILED

cdef enum:
    RINGS = 256
    LEVELS_MAX = 4         # of provider processes below one another
    LOST_MAX = 16          # attempts of one fetch that are not counted
    SERVING_MAX = 16       # threads that serve

    EPOCH_SHIFT = 24
    STARTING = 1 << 23
    NUMBER = (1 << 24) - 1

ctypedef struct Waiting:
    uint32_t depth         # 0: nobody
    uint64_t chain[RING_CHAIN]

cdef uint64_t SLICE_NS = 50000000
cdef uint64_t BACKOFF_NS = 20000000

# Why a ring is dead.
cdef uint64_t MOST_PRINTED_NBYTES = <uint64_t>1 << 48

cdef enum Why:
    WHY_DIED = 0           # its process has ended, nobody here knows why
    WHY_BLAMED = 1         # killed, for what the provider of one slot did
    WHY_STALLED = 2        # killed, since it answered nobody any more
    WHY_ENDED = 3          # nobody needs it

cdef uint64_t START_NS = 30000000000  # in which a process is ready, or never will be
cdef uint64_t LEAVE_NS = 30000000000  # in which one that is not needed any more ends by itself
cdef uint64_t END_NS = 1000000000    # in which a killed process ends, unless the kernel holds on to it
cdef uint64_t SLACK_NS = 1000000000  # how late a thread may come back that waited until its deadline

cdef Ring _rings[RINGS]
memset(_rings, 0, sizeof(_rings))
cdef uint32_t _epoch = 0           # forks above this process, modulo 256
cdef uint32_t _level = 0           # 0: a user's process; else a provider process, so many below it
cdef Waiting _waiting[SERVING_MAX]  # for what each of this process's serving threads is at
cdef uint64_t _waiting_moves = 0   # odd while one of them changes
cdef uint64_t _asks = 0            # moves with every request
cdef uint32_t _attending = 0       # 1: a thread is looking after rings
cdef int _attend_next = 0          # at which it looks next
cdef uint32_t _resting = 0         # futex: the attendant sleeps until somebody asks


# ---------------------------------------------------------------------------------------------------------------------------
# Places and rings

cdef uint32_t _held_by(uint32_t word) noexcept nogil:
    """What a place's word means in this process: 0 EMPTY."""
    return word & NUMBER if (word >> EPOCH_SHIFT) == _epoch else 0


cdef Ring *_take_record() noexcept nogil:
    """Return: NULL when there is none."""
    cdef int i
    for i in range(RINGS):
        if lm_cas32(&_rings[i].life, RING_NONE, RING_MAKING):
            return &_rings[i]
    return NULL


cdef void *_map_ring(int fd, uint64_t nbytes) noexcept nogil:
    """Under mlockall(MCL_FUTURE) memory that may be accessed would be filled and locked at once. Return: MAP_FAILED and errno."""
    cdef void *memory = mmap(NULL, nbytes, PROT_NONE, MAP_SHARED | MAP_NORESERVE, fd, 0)
    cdef int error
    if memory != MAP_FAILED:
        munlock(memory, nbytes)
        if mprotect(memory, nbytes, PROT_READ | PROT_WRITE):
            error = errno
            munmap(memory, nbytes)
            lm_errno_set(error)
            return MAP_FAILED
    return memory


cdef Ring *_make_ring(lm_spawn *spawn, uint64_t block_nbytes, uint64_t spin_ns, int *error) noexcept nogil:
    """A ring with a process behind it that has been started. Return: NULL and -errno."""
    cdef uint64_t nbytes = RING_BLOCKS_AT + RING_SLOTS * block_nbytes
    cdef Ring *ring = _take_record()
    cdef void *memory
    cdef int fd, pid
    if ring == NULL:
        _clear_all_away()
        ring = _take_record()
    if ring == NULL:
        error[0] = -EAGAIN
        return NULL
    fd = lm_sealed_memory(nbytes)
    memory = MAP_FAILED
    error[0] = fd
    if fd >= 0:
        memory = _map_ring(fd, nbytes)
        error[0] = -errno
    if memory != MAP_FAILED:
        madvise(memory, nbytes, MADV_DONTFORK)
        madvise(memory, nbytes, MADV_DONTDUMP)
        ring.head = <lm_head *>memory
        ring.head.layout = RING_LAYOUT
        ring.head.block_nbytes = block_nbytes
        ring.head.spin_ns = spin_ns
        ring.head.server_of = <uint32_t>getpid()
        ring.head.level = _level + 1
        ring.nbytes = nbytes
        ring.block_nbytes = block_nbytes
        ring.spin_ns = spin_ns
        ring.started_ns = lm_now_ns()
        ring.ready = 0
        ring.busy = 0
        memset(ring.claims, 0, sizeof(ring.claims))
        memset(ring.debtors, 0, sizeof(ring.debtors))
        memset(ring.dropped, 0, sizeof(ring.dropped))
        memset(ring.dropped_seen, 0, sizeof(ring.dropped_seen))
        pid = lm_spawn_process(spawn, fd)
        error[0] = pid
        if pid > 0:
            close(fd)
            ring.pid = pid
            ring.pidfd = lm_open_pidfd(pid)
            lm_store32(&ring.life, RING_LIVE)
            return ring
        ring.head = NULL
        munmap(memory, nbytes)
    if fd >= 0:
        close(fd)
    lm_store32(&ring.life, RING_NONE)
    return NULL


cdef int process_start(lm_spawn *spawn, uint64_t block_nbytes, uint64_t spin_ns, Place *place) noexcept nogil:
    """Start a process in an empty place, unless somebody else is at it.

    Return: 0 there is one, or will be; -errno. GIL: kept if held. Blocks: for the vfork (about a millisecond).
    """
    cdef uint32_t word = lm_load32(place), starting = _epoch << EPOCH_SHIFT | STARTING | lm_gettid()
    cdef sigset_t before
    cdef Ring *ring
    cdef int error = 0
    if _held_by(word):
        return 0
    lm_no_signals(&before)  # so that no handler leaves from here by siglongjmp
    if lm_cas32(place, word, starting):
        ring = _make_ring(spawn, block_nbytes, spin_ns, &error)
        word = _epoch << EPOCH_SHIFT
        if ring != NULL:
            word |= <uint32_t>(ring - &_rings[0]) + 1
        lm_store32(place, word)
        lm_futex_wake(place, INT_MAX)
        if ring != NULL:
            error = 0
        _alert()
    lm_signals_again(&before)
    return error


cdef void _retire(Place *place, Ring *ring, uint32_t why, int slot) noexcept nogil:
    """Nobody enters this ring any more; its process is killed. `slot`: whose provider is to blame, with WHY_BLAMED."""
    cdef uint32_t number = <uint32_t>(ring - &_rings[0]) + 1
    if lm_cas32(&ring.life, RING_LIVE, RING_DEAD | why << RING_WHY_SHIFT | <uint32_t>slot << RING_SLOT_SHIFT):
        lm_kill_process(ring.pidfd, ring.pid)
    if lm_cas32(place, _epoch << EPOCH_SHIFT | number, _epoch << EPOCH_SHIFT):
        lm_futex_wake(place, INT_MAX)
    _alert()


cdef void process_end(Place *place) noexcept nogil:
    """Let the process of a place end by itself; if it is not ready yet, or cannot (it is stopped), by force, now or after LEAVE_NS.

    GIL: any. Blocks: no. Thread: nobody asks for it any more."""
    cdef Ring *ring = _enter(place)
    if ring == NULL:
        return
    lm_store32(place, _epoch << EPOCH_SHIFT)
    ring.ended_ns = lm_now_ns()
    if lm_cas32(&ring.life, RING_LIVE, RING_DEAD | WHY_ENDED << RING_WHY_SHIFT):
        if not ring_is_ready(ring):
            lm_kill_process(ring.pidfd, ring.pid)
        lm_store32(&ring.head.quit, 1)
        lm_add32(&ring.head.bell, 1)
        lm_futex_wake_shared(&ring.head.bell, INT_MAX)
    _leave(ring)
    _alert()


cdef Ring *_enter(Place *place) noexcept nogil:
    """Return: NULL when there is none in it."""
    cdef uint32_t word, held
    cdef Ring *ring
    while True:
        word = lm_load32(place)
        held = _held_by(word)
        if held == 0 or held & STARTING:
            return NULL
        ring = &_rings[held - 1]
        lm_add32(&ring.users, 1)
        if lm_load32(place) == word:
            return ring
        lm_sub32(&ring.users, 1)


cdef void _leave(Ring *ring) noexcept nogil:
    lm_sub32(&ring.users, 1)


cdef Ring *_pick(Asking *a, uint64_t deadline_ns, Place **where, int *error) noexcept nogil:
    """Enter the least busy process of the set; start one where all are busy and there is an empty place.

    Return: NULL and -errno.
    """
    cdef Place *places
    cdef Place *best
    cdef Place *empty
    cdef Place *coming
    cdef uint32_t held, load, least
    cdef uint64_t now_ns
    cdef Ring *ring
    cdef uint32_t i
    while True:
        places = a.shared
        if lm_load32(&a.has_own):
            places = &a.own[0]
        best = empty = coming = NULL
        least = 0
        for i in range(a.processes):
            held = _held_by(lm_load32(&places[i]))
            if held == 0:
                if empty == NULL:
                    empty = &places[i]
            elif held & STARTING:
                coming = &places[i]
            else:
                load = lm_load32(&_rings[held - 1].busy)
                if best == NULL or load < least:
                    best = &places[i]
                    least = load
        if empty != NULL and (best == NULL or least):
            thread_will_wait()
            error[0] = process_start(a.spawn, a.block_nbytes, a.spin_ns, empty)
            if error[0] == 0:
                continue
            if best == NULL and coming == NULL:
                return NULL
        if best != NULL:
            ring = _enter(best)
            if ring == NULL:
                continue
            if ring_is_dead(ring) and ring_is_ready(ring):
                _retire(best, ring, WHY_DIED, 0)
                _leave(ring)
                continue
            where[0] = best
            return ring
        held = lm_load32(coming)
        now_ns = lm_now_ns()
        if now_ns >= deadline_ns:
            error[0] = -ETIMEDOUT
            return NULL
        if _held_by(held) & STARTING:
            thread_will_wait()
            lm_futex_wait(coming, held, min(SLICE_NS, deadline_ns - now_ns))
            if lm_thread_is_gone(_held_by(held) & ~<uint32_t>STARTING):
                lm_cas32(coming, held, _epoch << EPOCH_SHIFT)


# ---------------------------------------------------------------------------------------------------------------------------
# One attempt

cdef void _say(Asking *a, uint64_t offset, const char *text, uint64_t nbytes) noexcept nogil:
    """Keep what is known of a failure, for whoever raises."""
    cdef uint64_t sequence = lm_add64(&a.said, 1) + 1
    cdef Text *t = &a.texts[sequence % TEXTS]
    lm_store64(&t.sequence, 0)
    if nbytes > sizeof(t.text) - 1:
        nbytes = sizeof(t.text) - 1
    memcpy(t.text, text, nbytes)
    t.text[nbytes] = 0
    t.offset = offset
    lm_store64(&t.sequence, sequence)


cdef void _say_text(Asking *a, uint64_t offset, const char *text) noexcept nogil:
    _say(a, offset, text, strlen(text))


cdef void _say_last_words(Asking *a, uint64_t offset, const Request *request, Ring *ring, bint ready) noexcept nogil:
    if ready and request.ask in (ASK_STORE, ASK_SYNC):
        _say_text(a, offset, b"the provider process ended while it was writing (os._exit, a crash, a kill?)")
    elif ready:
        _say_text(a, offset, b"the provider process ended while it was fetching this block (os._exit, a crash, a kill?)")
    elif ring.head.last_words[0]:
        _say(a, offset, ring.head.last_words, strnlen(ring.head.last_words, RING_TEXT_NBYTES))
    else:
        _say_text(a, offset, b"the provider process ended before it was ready: can the interpreter start? "
                             b"(lazymem.set_executable says which one is used)")


cdef enum Outcome:
    ANSWERED = 0
    TRY_AGAIN = 1        # it counts
    GIVE_UP = 2
    LOST = 3             # it does not count
    NO_SLOT = 4          # nothing was asked

cdef int _exchange(Asking *a, Place *place, Ring *ring, int slot, uint32_t tag, const Request *request, uint64_t block_offset,
                   uint64_t deadline_ns, uint32_t *answer, int *error) noexcept nogil:
    """Post a request and wait for its answer. Return: Outcome: ANSWERED, or what its failing to come means."""
    cdef bint begun = False, ready = ring_is_ready(ring)
    cdef uint64_t began_ns = lm_now_ns()
    cdef uint64_t spin_ns = ring.spin_ns if ready and a.typical_ns < 2 * ring.spin_ns else 0
    cdef int waited
    ring_post(ring, slot, request)
    waited = ring_wait(ring, slot, tag, spin_ns, a.timeout_ns, deadline_ns, &begun)
    if waited == WAITED_DONE:
        if ready:
            a.typical_ns = (7 * a.typical_ns + min(lm_now_ns() - began_ns, 4 * ring.spin_ns)) // 8
        if ring_answered(ring, slot, request, answer):
            return ANSWERED
        begun = True
        waited = WAITED_BROKEN
    ready = ring_is_ready(ring)
    error[0] = -ETIMEDOUT
    if waited == WAITED_INTERRUPTED:
        error[0] = -EINTR
        return GIVE_UP
    if waited == WAITED_QUEUED or waited == WAITED_DISOWNED:
        _say_text(a, block_offset, b"the provider process was busy with other requests until the deadline")
        return GIVE_UP
    if waited == WAITED_LATE and not begun and ready:
        _say_text(a, block_offset, b"the provider process took no request for as long as the timeout; it was killed")
        _retire(place, ring, WHY_STALLED, slot)
        return LOST
    if waited == WAITED_LATE:
        _say_text(a, block_offset, b"the provider did not return before its timeout; its process was killed" if begun else
                             b"the provider process was not ready before the deadline")
        if begun:
            lm_store32(&a.has_own, 1)
        if begun or lm_now_ns() - ring.started_ns >= START_NS:  # where deadlines are short, the next touch finds it ready
            _retire(place, ring, WHY_BLAMED if begun else WHY_DIED, slot)
        return TRY_AGAIN
    error[0] = -EPIPE
    _retire(place, ring, WHY_DIED, slot)
    return _outcome_of_death(a, ring, request, block_offset, begun, ready, waited == WAITED_BROKEN)


cdef int _outcome_of_death(Asking *a, Ring *ring, const Request *request, uint64_t offset, bint begun, bint ready,
                           bint broken) noexcept nogil:
    """Whose fault is it that a process is dead? Return: Outcome."""
    cdef uint32_t life = lm_load32(&ring.life), why = life >> RING_WHY_SHIFT & 255
    cdef bint ours = why == WHY_BLAMED and ring.claims[life >> RING_SLOT_SHIFT].provider == a.id
    if not begun and ready:
        return LOST
    if why == WHY_BLAMED and not ours:
        return LOST
    if begun:
        lm_store32(&a.has_own, 1)
        if not ours and (why == WHY_STALLED or ring_others_had_begun(ring, a.id)):
            return LOST
    if broken:
        _say_text(a, offset, b"the provider wrote over memory that its process shares with this one; the process was killed")
    else:
        _say_last_words(a, offset, request, ring, ready)
    return TRY_AGAIN


cdef int _load(Asking *a, Place *place, Ring *ring, int slot, uint32_t tag, uint64_t block_offset, uint64_t deadline_ns,
               uint32_t *answer, int *error) noexcept nogil:
    """Send the pickle, a piece after the other, through the slot's block. Return: Outcome."""
    cdef Request piece
    cdef int outcome
    piece.src = NULL
    piece.ask = ASK_LOAD
    piece.total = a.pickle_nbytes
    piece.offset = 0
    while True:
        piece.nbytes = min(ring.block_nbytes, a.pickle_nbytes - piece.offset)
        memcpy(block_at(ring.head, ring.block_nbytes, slot), a.pickle + piece.offset, piece.nbytes)
        outcome = _exchange(a, place, ring, slot, tag, &piece, block_offset, deadline_ns, answer, error)
        piece.offset += piece.nbytes
        if outcome != ANSWERED or answer[0] != ANSWER_FILLED or piece.offset == a.pickle_nbytes:
            return outcome


cdef int _attempt(Asking *a, Place *place, Ring *ring, const uint64_t *chain, uint32_t depth, const Request *request,
                  uint64_t block_offset, uint64_t deadline_ns, int *slot, int *error) noexcept nogil:
    """Ask one process once. Return: Outcome; with ANSWERED the bytes lie in the block of `slot`, which is kept."""
    cdef lm_slot *s
    cdef uint32_t answer = ANSWER_FAILED, tag, i
    cdef uint32_t tid = thread_tid()
    cdef uint64_t said
    cdef int outcome, turn
    slot[0] = ring_claim(ring, tid, deadline_ns + SLACK_NS, a.id)
    if slot[0] < 0:
        return NO_SLOT
    lm_count(&a.attempts, 1)
    tag = lm_load32(&ring.claims[slot[0]].word) & <uint32_t>SLOT_TAG
    s = slot_at(ring.head, slot[0])
    s.depth = depth
    for i in range(depth):
        s.chain[i] = chain[i]
    for turn in range(3):
        if request.src != NULL:
            error[0] = lm_copy_from(block_at(ring.head, ring.block_nbytes, slot[0]), request.src, request.nbytes)
            if error[0]:
                ring_release(ring, slot[0])
                return GIVE_UP
        outcome = _exchange(a, place, ring, slot[0], tag, request, block_offset, deadline_ns, &answer, error)
        if outcome == ANSWERED and answer == ANSWER_UNKNOWN:
            outcome = _load(a, place, ring, slot[0], tag, block_offset, deadline_ns, &answer, error)
            if outcome == ANSWERED and answer == ANSWER_FILLED:
                continue
        if outcome != ANSWERED:
            if request.ask == ASK_STORE and not ring_take_back(ring, slot[0], tag):
                _retire(place, ring, WHY_BLAMED, slot[0])
                ring_await_end(ring, lm_now_ns() + END_NS)
            ring_abandon(ring, slot[0], tag)
            return outcome
        if answer == ANSWER_FILLED:
            return ANSWERED
        said = s.text_nbytes
        _say(a, block_offset, s.text, min(said, <uint64_t>RING_TEXT_NBYTES))
        error[0] = -EDEADLK if answer == ANSWER_CYCLE else -EREMOTEIO
        if answer == ANSWER_KEPT:
            lm_store32(&a.has_own, 1)
            _retire(place, ring, WHY_BLAMED, slot[0])
        ring_release(ring, slot[0])
        return TRY_AGAIN if answer == ANSWER_AGAIN else GIVE_UP
    ring_release(ring, slot[0])
    error[0] = -EPROTO
    return GIVE_UP


# ---------------------------------------------------------------------------------------------------------------------------
# A fetch, a store

cdef uint32_t _chain_in_common(uint64_t *chain) noexcept nogil:
    """Which arrays wait for a thread that a provider has started? Nothing says for which request: those that wait for all that are
    under way. A cycle that this does not see is seen one process further down. Return: how many."""
    cdef uint64_t before
    cdef uint32_t depth, k
    cdef int i
    cdef bint found
    cdef Waiting *w
    while True:
        before = lm_load64(&_waiting_moves)
        depth = 0
        found = False
        for i in range(SERVING_MAX):
            w = &_waiting[i]
            if w.depth == 0:
                continue
            if not found:
                depth = w.depth
                memcpy(chain, w.chain, sizeof(w.chain))
            k = 0
            while k < depth and k < w.depth and chain[k] == w.chain[k]:
                k += 1
            depth = k
            found = True
        lm_loads_done()
        if not before & 1 and lm_load64(&_waiting_moves) == before:
            return depth
        lm_pause()


cdef int _chain_of(Asking *a, uint64_t *chain) noexcept nogil:
    """Which arrays wait for this fetch, itself last. Return: how many; -EDEADLK it waits for itself; -ELOOP too many."""
    cdef Thread *me = thread_self()
    cdef uint32_t depth = 0, i
    if me != NULL and me.around_depth:
        depth = me.around_depth
        memcpy(chain, me.around, depth * sizeof(uint64_t))
    elif _level:
        depth = _chain_in_common(chain)
    for i in range(depth):
        if chain[i] == a.identity:
            return -EDEADLK
    if depth >= <uint32_t>RING_CHAIN or _level >= LEVELS_MAX:
        return -ELOOP
    chain[depth] = a.identity
    return <int>depth + 1


cdef uint64_t _jitter(uint64_t pause_ns) noexcept nogil:
    """Half to one and a half of it: those that failed together do not come back together."""
    cdef uint64_t dice = lm_now_ns() * <uint64_t>6364136223846793005ULL + <uint64_t>lm_gettid() * <uint64_t>1442695040888963407ULL
    return pause_ns // 2 + (dice >> 33) % (pause_ns + 1)


cdef int _ask(Asking *a, const Request *request, uint64_t block_offset, Ring **where, int *slot) noexcept nogil:
    """Ask until it is answered. `block_offset`: what texts about it are found by.

    Return: 0, and the ring that was entered and its slot, which are the caller's; -ETIMEDOUT; -EPIPE its process died; -EREMOTEIO it
    raised, or answered wrongly; -EDEADLK; -ELOOP; -EFAULT there is nothing to read at `src`; -errno of starting a process.
    GIL: kept if held; not needed. Blocks: until the deadline at most. Thread: any, in a signal handler too.
    """
    cdef uint64_t deadline_ns = lm_now_ns() + a.deadline_ns, pause_ns = BACKOFF_NS, now_ns
    cdef uint64_t chain[RING_CHAIN]
    cdef int depth = _chain_of(a, chain), outcome, error = 0
    cdef uint32_t failed = 0, lost = 0, answered = 0
    cdef uint64_t full_since_ns = 0
    cdef Place *place = NULL
    cdef Ring *ring
    cdef Ring *full = NULL
    cdef Thread *me = thread_self()
    if me != NULL:
        me.attempts = 1
    if depth < 0:
        return depth
    while True:
        lm_add64(&_asks, 1)
        if lm_load32(&_resting):
            _alert()
        ring = _pick(a, deadline_ns, &place, &error)
        outcome = TRY_AGAIN
        if ring != NULL:
            outcome = _attempt(a, place, ring, chain, <uint32_t>depth, request, block_offset, deadline_ns, slot, &error)
            if outcome == ANSWERED:
                where[0] = ring
                return 0
            if outcome == NO_SLOT and (ring != full or lm_load32(&ring.answered) != answered):
                full = ring
                answered = lm_load32(&ring.answered)
                full_since_ns = lm_now_ns()
            elif outcome == NO_SLOT and lm_now_ns() - full_since_ns >= a.timeout_ns:
                _retire(place, ring, WHY_STALLED, 0)
            _leave(ring)
        if outcome == NO_SLOT:
            if me != NULL and me.interrupted != NULL and me.interrupted():
                return -EINTR
            thread_will_wait()
            if ring_wait_for_slot(ring, deadline_ns):
                continue
            _say_text(a, block_offset, b"all 64 places of the provider process were taken until the deadline")
            return -ETIMEDOUT
        if outcome == LOST:
            lm_count(&a.lost, 1)
            lost += 1
            if lost <= LOST_MAX and lm_now_ns() < deadline_ns:
                continue
        failed += 1
        if me != NULL:
            me.attempts = failed + lost
        now_ns = lm_now_ns()
        pause_ns = _jitter(BACKOFF_NS << min(failed - 1, <uint32_t>8))
        if outcome == GIVE_UP or failed > a.retries or now_ns + pause_ns >= deadline_ns:
            return error
        thread_will_wait()
        lm_sleep_ns(pause_ns)


cdef int asking_borrow(void *ctx, uint64_t offset, uint64_t nbytes, void **bytes, uint64_t *loan) noexcept nogil:
    """Source.borrow of a provider: its bytes, where they lie in a ring, until `asking_give_back`. Return, GIL, Blocks, Thread: as `_ask`."""
    cdef Ring *ring = NULL
    cdef int slot = 0, error
    cdef Request request
    request.ask = ASK_FETCH
    request.offset = offset
    request.nbytes = nbytes
    request.total = nbytes
    request.src = NULL
    error = _ask(<Asking *>ctx, &request, offset, &ring, &slot)
    if error == 0:
        bytes[0] = block_at(ring.head, ring.block_nbytes, slot)
        loan[0] = <uint64_t>(ring - &_rings[0]) << 8 | <uint64_t>slot
    return error


cdef int asking_store(void *ctx, const void *src, uint64_t offset, uint64_t nbytes) noexcept nogil:
    """Source.store of a provider: in pieces that find room in a ring, each with a deadline of its own.

    Return: as `_ask`, some pieces may have been taken then; -EINVAL bytes that are not the provider's. GIL, Thread: as `_ask`.
    Blocks: until the deadline of each piece at most.
    """
    cdef Asking *a = <Asking *>ctx
    cdef Ring *ring = NULL
    cdef uint64_t done = 0
    cdef int slot = 0, error
    cdef Request request
    if offset > a.nbytes or nbytes > a.nbytes - offset:
        return -EINVAL
    request.ask = ASK_STORE
    while done < nbytes:
        request.offset = offset + done
        request.nbytes = min(a.block_nbytes, nbytes - done)
        request.total = request.nbytes
        request.src = <const char *>src + done
        error = _ask(a, &request, offset, &ring, &slot)
        if error:
            return error
        ring_release(ring, slot)
        _leave(ring)
        done += request.nbytes
    return 0


cdef int asking_sync(void *ctx) noexcept nogil:
    """Source.sync of a provider: its flush(), in one process. Return, GIL, Blocks, Thread: as `_ask`."""
    cdef Ring *ring = NULL
    cdef int slot = 0, error
    cdef Request request
    memset(&request, 0, sizeof(request))
    request.ask = ASK_SYNC
    error = _ask(<Asking *>ctx, &request, ABOUT_ALL, &ring, &slot)
    if error == 0:
        ring_release(ring, slot)
        _leave(ring)
    return error


cdef void asking_give_back(void *ctx, uint64_t loan) noexcept nogil:
    """Source.give_back. GIL: never. Blocks: no. Thread: the borrower."""
    cdef Ring *ring = &_rings[loan >> 8]
    ring_release(ring, <int>(loan & 255))
    _leave(ring)


cdef void provider_forget(Asking *a) noexcept nogil:
    """Tell the processes that may have loaded it that it is not needed any more. GIL: any. Blocks: no."""
    cdef Ring *ring
    cdef Request request
    cdef uint32_t i, tag
    cdef int slot
    memset(&request, 0, sizeof(request))
    request.ask = ASK_FORGET
    for i in range(a.processes):
        process_end(&a.own[i])
    for i in range(a.processes):
        ring = _enter(&a.shared[i])
        if ring == NULL:
            continue
        if not ring_is_dead(ring):
            slot = ring_claim(ring, 0, 0, a.id)
            if slot >= 0:
                tag = lm_load32(&ring.claims[slot].word) & <uint32_t>SLOT_TAG
                ring_post(ring, slot, &request)
                ring_abandon(ring, slot, tag)
        _leave(ring)


# ---------------------------------------------------------------------------------------------------------------------------
# Looking after rings

cdef void _alert() noexcept nogil:
    lm_add64(&_asks, 1)  # before it is asked whether the attendant rests
    if lm_load32(&_resting) and lm_cas32(&_resting, 1, 0):
        lm_futex_wake(&_resting, 1)


cdef uint64_t _read_output(lm_output *o, char *text) noexcept nogil:
    """Move what a process printed out of its ring. Return: bytes, at most RING_OUTPUT_NBYTES."""
    cdef uint64_t written = lm_load64(&o.written), read = lm_load64(&o.read), n = written - read, first
    cdef uint64_t at = read % RING_OUTPUT_NBYTES
    if n > RING_OUTPUT_NBYTES:
        n = 0  # no honest process wrote that
    first = min(n, RING_OUTPUT_NBYTES - at)
    memcpy(text, &o.bytes[0] + at, first)
    memcpy(text + first, &o.bytes[0], n - first)
    lm_store64(&o.read, written)
    return n


cdef uint32_t _life(Ring *ring) noexcept nogil:
    return lm_load32(&ring.life) & RING_LIFE


cdef void _clear_away(Ring *ring) noexcept nogil:
    """Reap a dead ring's process, and unmap the ring when nobody is in it. Thread: the one that attends."""
    if ring.pid and lm_load32(&ring.life) >> RING_WHY_SHIFT & 255 == WHY_ENDED and lm_now_ns() - ring.ended_ns > LEAVE_NS:
        lm_kill_process(ring.pidfd, ring.pid)
    if ring.pid and lm_reap(ring.pidfd, ring.pid):
        lm_close_pidfd(ring.pidfd, -1)
        ring.pid = 0
    if ring.pid == 0 and lm_load32(&ring.users):
        ring_settle_debts(ring)
    if ring.pid == 0 and lm_load32(&ring.users) == 0:
        munmap(ring.head, ring.nbytes)
        ring.head = NULL
        lm_store32(&ring.life, RING_NONE)


cdef void _clear_all_away() noexcept nogil:
    """In place of an attendant that does not come to it."""
    cdef int i
    if lm_cas32(&_attending, 0, 1):
        for i in range(RINGS):
            if _life(&_rings[i]) == RING_DEAD:
                _clear_away(&_rings[i])
        lm_store32(&_attending, 0)


cdef bint _attend_some(uint64_t *said, uint64_t *dropped, char *text, uint32_t *stream) noexcept nogil:
    """`rings_attend`, on one thread at a time."""
    global _attend_next
    cdef Ring *ring
    cdef uint64_t lost
    cdef int i, k
    said[0] = 0
    dropped[0] = 0
    for i in range(RINGS):
        ring = &_rings[_attend_next]
        _attend_next = (_attend_next + 1) % RINGS  # in turn, so that none that prints all the time hides another
        if _life(ring) != RING_LIVE and _life(ring) != RING_DEAD:
            continue
        if ring.head != NULL:
            for k in range(2):
                if _unread(&ring.head.output[k]):
                    said[0] = _read_output(&ring.head.output[k], text)
                    stream[0] = k
                    return True
                lost = lm_load64(&ring.head.output[k].dropped)
                if lost != ring.dropped_seen[k]:
                    ring.dropped_seen[k] = lost  # and more to come, perhaps: said when it is quiet
                elif lost - ring.dropped[k] > MOST_PRINTED_NBYTES:
                    ring.dropped[k] = lost  # no honest process counted that
                elif lost != ring.dropped[k]:
                    dropped[0] = lost - ring.dropped[k]
                    ring.dropped[k] = lost
                    stream[0] = k
                    return True
        if _life(ring) == RING_DEAD:
            _clear_away(ring)
    return False


cdef bint rings_attend(uint64_t *said, uint64_t *dropped, char *text, uint32_t *stream) noexcept nogil:
    """Read what some process printed, and clear away what is dead.

    Units: `text` has room for RING_OUTPUT_NBYTES; `said` of them were filled, for stream 0 (standard output) or 1; or `dropped` bytes
    found no room in the ring.
    Return: False when there is nothing to do now. GIL: not needed. Blocks: no. Thread: any; while one is at it, others have nothing
    to do.
    """
    cdef bint found
    if not lm_cas32(&_attending, 0, 1):
        return False
    found = _attend_some(said, dropped, text, stream)
    lm_store32(&_attending, 0)
    return found


cdef void rings_rest() noexcept nogil:
    """Sleep for a moment, or, when nobody has asked for a second, until somebody does or there is something to do, which is looked for
    once a second then. GIL: must not be held."""
    cdef uint64_t seen = lm_load64(&_asks), waited_ns = 0
    while waited_ns < 1000000000:
        lm_sleep_ns(20000000)
        waited_ns += 20000000
        if _is_something_to_do() or lm_load64(&_asks) != seen:
            return
    lm_store32(&_resting, 1)
    while lm_load64(&_asks) == seen and not _is_something_to_do():
        lm_futex_wait(&_resting, 1, 1000000000)
    lm_store32(&_resting, 0)


cdef void rings_flush(uint64_t deadline_ns) noexcept nogil:
    """Have every process put what it has printed into its ring, as this one is about to end. One that does not answer is killed: it may
    have been stopped (SIGSTOP), and would not notice that we are gone. GIL: must not be held. Blocks: until then; until the deadline."""
    cdef Request request
    cdef Ring *ring
    cdef uint32_t tag
    cdef bint begun
    cdef int i, slot
    memset(&request, 0, sizeof(request))
    request.ask = ASK_FLUSH
    for i in range(RINGS):
        ring = &_rings[i]
        if _life(ring) != RING_LIVE:
            continue
        lm_add32(&ring.users, 1)
        if _life(ring) == RING_LIVE and ring_is_ready(ring):
            slot = ring_claim(ring, lm_gettid(), deadline_ns + SLACK_NS, 0)
            if slot >= 0:
                tag = lm_load32(&ring.claims[slot].word) & <uint32_t>SLOT_TAG
                ring_post(ring, slot, &request)
                if ring_wait(ring, slot, tag, 0, deadline_ns, deadline_ns, &begun) == WAITED_DONE:
                    ring_release(ring, slot)
                else:
                    lm_kill_process(ring.pidfd, ring.pid)
                    ring_abandon(ring, slot, tag)
        _leave(ring)


cdef bint _is_something_to_do() noexcept nogil:
    cdef Ring *ring
    cdef bint found = False
    cdef int i, k
    if not lm_cas32(&_attending, 0, 1):
        return True  # somebody is at it; it may unmap what would be looked at here
    for i in range(RINGS):
        ring = &_rings[i]
        if _life(ring) == RING_DEAD and (ring.pid or lm_load32(&ring.users) == 0):
            found = True
        elif _life(ring) == RING_LIVE:
            for k in range(2):
                if _unread(&ring.head.output[k]) or lm_load64(&ring.head.output[k].dropped) != ring.dropped[k]:
                    found = True
    lm_store32(&_attending, 0)
    return found


cdef bint _unread(lm_output *o) noexcept nogil:
    return lm_load64(&o.written) != lm_load64(&o.read)


cdef int rings_count(int *pids, int most) noexcept nogil:
    """Return: how many processes there are, their numbers in `pids`. GIL: any. Blocks: no."""
    cdef int i, n = 0
    for i in range(RINGS):
        if lm_load32(&_rings[i].life) == RING_LIVE and n < most:
            pids[n] = _rings[i].pid
            n += 1
    return n


cdef void rings_forget() noexcept nogil:
    """In a forked child: rings and processes are the parent's. GIL: any. Blocks: no."""
    global _epoch, _resting, _attending, _waiting_moves
    cdef int i
    _epoch = (_epoch + 1) & 255
    _resting = 0
    _attending = 0
    _waiting_moves = 0
    memset(_waiting, 0, sizeof(_waiting))
    for i in range(RINGS):
        if _rings[i].life != RING_NONE:
            lm_close_pidfd(_rings[i].pidfd, _rings[i].pid)
    memset(_rings, 0, sizeof(_rings))


cdef void process_serves(uint32_t level) noexcept nogil:
    """This process is a provider process. GIL: any."""
    global _level
    _level = level


cdef void process_serving(uint32_t server, const uint64_t *chain, uint32_t depth) noexcept nogil:
    """One of its threads has taken a request that so many arrays wait for; 0: has answered it. GIL: held."""
    cdef Waiting *w = &_waiting[server % <uint32_t>SERVING_MAX]
    lm_add64(&_waiting_moves, 1)
    w.depth = depth
    if depth:
        memcpy(w.chain, chain, depth * sizeof(uint64_t))
    lm_add64(&_waiting_moves, 1)


cdef bint process_is_provider() noexcept nogil:
    """GIL: any."""
    return _level != 0
