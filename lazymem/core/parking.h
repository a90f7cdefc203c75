/* Where may a test hold a thread up?
 *
 * At each transition of a block's word, and each step that an order is a proof of.  A release build has nothing of it.  In a debug build
 * (LAZYMEM_DEBUG=1, see setup.py) every module of the core has a hook that a test can set: it is called with the point's name, on the thread
 * that comes by, in a signal handler too, and returns when the thread may go on (tests/native/parking.c).
 */
#ifndef LAZYMEM_PARKING_H
#define LAZYMEM_PARKING_H

#ifdef LAZYMEM_DEBUG
__attribute__((visibility("default"))) void (*lm_parking_hook)(const char *point);
static inline void lm_park(const char *point)
{
    if (lm_parking_hook)
        lm_parking_hook(point);
}
#else
#define lm_park(point) ((void)(point))   /* its name is mentioned, so that no compiler finds it unused */
#endif

#endif
