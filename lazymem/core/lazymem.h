/* How does C code give bytes to a lazy array, and take them back?
 *
 * Write one function of this type, compile it into a shared object, and pass it to Python:
 *
 *     lib = ctypes.CDLL("./source.so")
 *     a = lazymem.from_provider(lazymem.CFunction(lib.fetch, nbytes), dtype="f8")
 *
 * It is called on whichever thread touched the array, or on one of lazymem's: possibly inside a signal handler, possibly on
 * several threads at once, with or without the GIL held. It must not use Python, must not longjmp, and should not take a lock that
 * a touching thread may hold, malloc's included.
 *
 * ctx     the user_data given to CFunction
 * dst     where to write; page aligned, private to this call
 * offset  of the block's first byte in the array, bytes
 * nbytes  how many to write, exactly; the array's last block may be shorter than the others
 *
 * Returns 0, or -errno. -EAGAIN, -EBUSY, -EINTR and -ETIMEDOUT are asked again (the array's `retries`); anything else fails the
 * block, and so does a positive number.
 *
 * For mode "r+" there is a second function, which takes the bytes that were changed:
 *
 *     lazymem.CFunction(lib.fetch, nbytes, store=lib.store)
 *
 * It is called as the first is, with the same ctx, by whoever flushes; src is to be read only, and only during the call.
 * It returns 0 when fetch would give these bytes from now on, or -errno: the block stays changed, and is offered again.
 */
#ifndef LAZYMEM_H
#define LAZYMEM_H

#include <errno.h>
#include <stdint.h>

typedef int (*lazymem_fetch)(void *ctx, void *dst, uint64_t offset, uint64_t nbytes);

typedef int (*lazymem_store)(void *ctx, const void *src, uint64_t offset, uint64_t nbytes);

#define LAZYMEM_FETCH_SIGNATURE "int (void *, void *, uint64_t, uint64_t)"

#endif
