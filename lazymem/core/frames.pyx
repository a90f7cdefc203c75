"""In whose memory does a block lie?

A frame is memory for one block, wherever that memory is just now: in the region, where the block is resident, or in the frame's own
slot beside it, where the block waits. The word of such a block holds its frame's number, and the frame its block's, so either leads
to the other, and what may be resident is what frames there are. Frames are 16 bytes each, made as they are first used.

Each kind of a region's frames is a clock with two hands. The one that evicts goes ahead: it moves blocks out to their slots. The one that
recycles follows some way behind, and takes the slots of blocks that nobody wanted meanwhile: a touch between the two puts the block
back without a fetch, and both hands then pass it by for a whole turn. So there is a second chance without an access bit. The word
of the block is what both hands and every touch agree by; the hands may be moved by anybody at any time.
"""
from lazymem.core.native cimport *


cdef enum:
    COUNT_SHIFT = 32


cdef uint32_t clock_most(uint64_t nblocks, uint64_t blocks, uint64_t nbytes, uint64_t most_nbytes) noexcept nogil:
    """How many frames a region of so many blocks may need, `blocks` in each, in so much memory. GIL: any. Blocks: no."""
    cdef uint64_t most = nblocks // blocks, fit = most_nbytes // nbytes + 1
    most = fit if fit < most else most
    return <uint32_t>(most if most < FRAMES_MOST else FRAMES_MOST)


cdef void clock_make(Clock *c, Frame *frames, uint64_t nbytes, uint64_t blocks, uint32_t most) noexcept nogil:
    """All frames empty. Units: `frames` zeros for most + 1; `nbytes` of a frame. GIL: any. Blocks: no."""
    c.frames = frames
    c.slots = 0
    c.nbytes = nbytes
    c.blocks = blocks
    c.most = most
    c.top = 1
    c.empty = 0
    c.evicting = 1
    c.recycling = 1
    c.used = 0
    c.waiting = 0
    c.opening = 0


cdef uint32_t frame_take(Clock *c) noexcept nogil:
    """An empty frame, BUSY from now on. Return: its number; 0: there is none. GIL: never. Blocks: no. Thread: any, in a signal
    handler too."""
    cdef uint64_t head
    cdef uint32_t i
    while True:
        head = lm_load64(&c.empty)
        i = <uint32_t>head
        if i == 0:
            break
        if lm_cas64(&c.empty, head, (((head >> COUNT_SHIFT) + 1) << COUNT_SHIFT) | <uint32_t>lm_load64(&c.frames[i].block)):
            lm_store32(&c.frames[i].state, BUSY)
            lm_add32(&c.used, 1)
            return i
    while True:
        i = lm_load32(&c.top)
        if i > c.most:
            return 0
        if lm_cas32(&c.top, i, i + 1):
            lm_store32(&c.frames[i].state, BUSY)
            lm_add32(&c.used, 1)
            return i


cdef void frame_empty(Clock *c, uint32_t i) noexcept nogil:
    """Give a frame back that has no memory. GIL: never. Blocks: no. Thread: whose it is, BUSY."""
    cdef uint64_t head
    lm_sub32(&c.used, 1)
    lm_store32(&c.frames[i].state, EMPTY)
    while True:
        head = lm_load64(&c.empty)
        lm_store64(&c.frames[i].block, <uint32_t>head)
        if lm_cas64(&c.empty, head, (((head >> COUNT_SHIFT) + 1) << COUNT_SHIFT) | i):
            return


cdef void frame_use(Clock *c, uint32_t i, uint64_t block) noexcept nogil:
    """`block` lies in it: hands that pass look at the block's word from now on. GIL: never. Blocks: no. Thread: whose it is, BUSY;
    the word is not published yet, or says so already."""
    lm_store64(&c.frames[i].block, block)
    lm_store32(&c.frames[i].state, USED)


cdef uint32_t hand_next(Clock *c, uint32_t *hand) noexcept nogil:
    """Where a hand points, and move it on. Return: 0: there are no frames. GIL: never. Blocks: no."""
    cdef uint32_t at, top
    while True:
        at = lm_load32(hand)
        top = lm_load32(&c.top)
        if top <= 1:
            return 0
        if lm_cas32(hand, at, at + 1 if at + 1 < top else 1):
            return at if at < top else 1


cdef uint64_t frame_slot(Clock *c, uint32_t i) noexcept nogil:
    """Address of a frame's slot; only where there are slots. GIL: never. Blocks: no."""
    return c.slots + (i - 1) * c.nbytes


# ---------------------------------------------------------------------------------------------------------------------------
# Forks: a block that is between region and slot, half here and half there, would be so for ever in a child. Who moves one enters, for
# microseconds; a fork waits until nobody is in, and nobody gets in before it is over.

cdef uint32_t _moving = 0
cdef uint32_t _held = 0


cdef void moves_enter(sigset_t *before) noexcept nogil:
    """About to move bytes between a region and a slot. No signal's handler runs on this thread until `moves_leave`: it might touch
    the block. Faults are delivered. GIL: never. Blocks: while a fork is under way."""
    lm_no_signals_but_faults(before)
    while True:
        lm_add32(&_moving, 1)
        if lm_load32(&_held) == 0:
            return
        lm_sub32(&_moving, 1)
        lm_sleep_ns(20000)


cdef void moves_leave(const sigset_t *before) noexcept nogil:
    """What `moves_enter` began is over. GIL: never. Blocks: no."""
    lm_sub32(&_moving, 1)
    lm_signals_again(before)


cdef void moves_not_copied() noexcept nogil:
    """Of a change that one store has made, which a child may have or not: from here on no fork is copying what was before it. No signal
    need be kept away for that. GIL: never. Blocks: while a fork is under way."""
    while lm_load32(&_held):
        lm_sleep_ns(20000)


cdef void moves_hold() noexcept nogil:
    """Before a fork. GIL: any. Blocks: for microseconds. Thread: one that is not in."""
    lm_store32(&_held, 1)
    while lm_load32(&_moving) != 0:
        lm_pause()


cdef void moves_let_go() noexcept nogil:
    """After it, in the parent and in the child. GIL: any. Blocks: no."""
    lm_store32(&_held, 0)


cdef void moves_forget() noexcept nogil:
    """In a forked child: who knocked meanwhile is the parent's. GIL: any. Blocks: no. Thread: the only one."""
    lm_store32(&_moving, 0)
