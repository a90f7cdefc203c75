/* Memory that is a file's which has no name, and only this process has (memfd). */
#ifndef LAZYMEM_MEMORY_FILE_H
#define LAZYMEM_MEMORY_FILE_H

#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#ifndef MFD_NOEXEC_SEAL
#define MFD_NOEXEC_SEAL 8U
#endif
#ifndef FALLOC_FL_KEEP_SIZE
#define FALLOC_FL_KEEP_SIZE 1
#endif
#ifndef FALLOC_FL_PUNCH_HOLE
#define FALLOC_FL_PUNCH_HOLE 2
#endif
enum { LM_MEMORY_FD = 48 };   /* ours are kept above what programs name by number */

/* A file of memory, every byte a hole; what tells it from others. Its descriptor, or -errno. */
static inline int lm_memory_file(uint64_t nbytes, uint64_t *device, uint64_t *inode)
{
    struct stat st;
    int high, error, fd = memfd_create("lazymem", MFD_CLOEXEC | MFD_NOEXEC_SEAL);
    if (fd < 0 && errno == EINVAL)
        fd = memfd_create("lazymem", MFD_CLOEXEC);
    if (fd < 0)
        return -errno;
    if (ftruncate(fd, (off_t)nbytes) || fstat(fd, &st)) {
        error = errno;
        close(fd);
        return -error;
    }
    *device = st.st_dev;
    *inode = st.st_ino;
    high = fcntl(fd, F_DUPFD_CLOEXEC, LM_MEMORY_FD);
    if (high >= 0) {   /* EINVAL where RLIMIT_NOFILE is lower: stay where we are */
        close(fd);
        fd = high;
    }
    return fd;
}
static inline int lm_is_file(int fd, uint64_t device, uint64_t inode)
{
    struct stat st;
    return fd >= 0 && fstat(fd, &st) == 0 && st.st_dev == device && st.st_ino == inode;
}

static inline int64_t lm_write_at(int fd, const void *src, uint64_t n, uint64_t at)
{
    return pwrite(fd, src, n, (off_t)at);
}
static inline int64_t lm_read_at(int fd, void *dst, uint64_t n, uint64_t at) { return pread(fd, dst, n, (off_t)at); }
static inline int64_t lm_bytes_from(int fd, uint64_t at) { return lseek(fd, (off_t)at, SEEK_DATA); }
static inline int64_t lm_hole_from(int fd, uint64_t at) { return lseek(fd, (off_t)at, SEEK_HOLE); }

/* Its bytes are gone, wherever they are mapped. 0 / -errno. */
static inline int lm_make_hole(int fd, uint64_t at, uint64_t n)
{
    return fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)at, (off_t)n) ? -errno : 0;
}
static inline void lm_make_empty(int fd) { int ignored = ftruncate(fd, 0); (void)ignored; }

#endif
