/*
 * The preload library: lets an unmodified llama.cpp program read converted
 * files, with each shared block in physical memory once.
 *
 * The parent, `headshare-gguf exec`, has read and validated the files. It hands
 * over what is needed here as one sealed memory file, the plan: for each file
 * its identity, its logical header, the extents its logical bytes come from,
 * and the runs of whole pages that can be mapped. The library parses nothing
 * else, depends on libc only, and does nothing until a file of the plan is
 * opened for reading with fopen:
 *
 *   fopen           gives a stream over the logical bytes (a cookie). Until it
 *                   is closed it is registered:
 *   fileno, mmap    a mapping of the stream's descriptor is stitched together
 *                   from pages of the file; what no page has is copied.
 *   munmap          keeps track of how much of that mapping is left.
 *   posix_memalign  remembers the large buffers that the same thread allocates
 *                   meanwhile: weights in a layout of the program's own.
 *   fclose          (the cookie's close) ends loading: equal pages of those
 *                   buffers become one page, the mapping's pages are dropped
 *                   until they are used again, and the stream is forgotten.
 *   open            refuses O_DIRECT on such a file, so that llama.cpp falls
 *                   back to fopen; every other open sees the file as stored.
 *
 * It has to be harmless in any process: there are no locks (threads, fork), the
 * hooks allocate nothing, and the first test of each fails in a process that
 * has no such stream open.
 */
#include "preload.h"

#include <fcntl.h>
#include <stdarg.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define EXPORT __attribute__((visibility("default")))

/* ---- Streams: registered from fopen to fclose. ---- */

enum { MAX_STREAMS = 64 };

struct stream {
  atomic_bool used;
  _Atomic(FILE *) handle;
  atomic_int fd; /* of the stored file */
  const struct file *file;
  _Atomic(const void *) owner; /* the thread that opened it */
  uint64_t pos;
  struct stitched map; /* the mapping made through it, if any */
};

static struct stream streams[MAX_STREAMS];
static atomic_int open_streams;
/* Its address names the thread. */
static __thread char this_thread;

/* Whether this thread has opened one that is still open. */
static bool has_stream(void) {
  for (int i = 0; atomic_load(&open_streams) != 0 && i < MAX_STREAMS; i++)
    if (atomic_load(&streams[i].owner) == &this_thread) return true;
  return false;
}

static void forget(struct stream *s) {
  atomic_store(&s->owner, NULL);
  atomic_store(&s->handle, NULL);
  atomic_store(&s->fd, -1);
  atomic_fetch_sub(&open_streams, 1);
  atomic_store(&s->used, false);
}

static ssize_t cookie_read(void *cookie, char *out, size_t len) {
  struct stream *s = cookie;
  uint64_t left = s->pos < s->file->len ? s->file->len - s->pos : 0;
  if (len > left) len = left;
  if (len > 0 && !read_logical(s->file, atomic_load(&s->fd), s->pos, out, len)) return -1;
  s->pos += len;
  return (ssize_t)len;
}

static int cookie_seek(void *cookie, off64_t *offset, int whence) {
  struct stream *s = cookie;
  uint64_t from = whence == SEEK_SET ? 0 : whence == SEEK_CUR ? s->pos : s->file->len;
  int64_t target;
  if (whence < SEEK_SET || whence > SEEK_END ||
      __builtin_add_overflow((int64_t)from, *offset, &target) || target < 0)
    return errno = EINVAL, -1;
  s->pos = (uint64_t)target;
  *offset = target;
  return 0;
}

/* The program has loaded what it wanted. */
static int cookie_close(void *cookie) {
  struct stream *s = cookie;
  int fd = atomic_load(&s->fd);
  uint64_t folded = 0;
  drop_mapped(&s->map);
  if (atomic_exchange(&s->owner, NULL) == &this_thread && !has_stream()) folded = fold();
  if ((plan->flags & PLAN_REPORT) && (s->map.start || folded))
    say("%s: %llu bytes mapped, %llu copied, %llu saved in the program's own buffers",
        path_of(s->file), (unsigned long long)s->map.mapped, (unsigned long long)s->map.copied,
        (unsigned long long)folded);
  forget(s);
  return close(fd);
}

/* A stream over the logical bytes of `f`, whose stored file is open as `fd`. */
static FILE *open_logical(const struct file *f, int fd) {
  struct stream *s = streams;
  for (bool unused = false; !atomic_compare_exchange_strong(&s->used, &unused, true);
       unused = false)
    if (++s == streams + MAX_STREAMS) return errno = EMFILE, NULL;
  s->file = f;
  s->pos = 0;
  s->map.start = NULL;
  forget_stitched(&s->map);
  atomic_store(&s->owner, &this_thread);
  atomic_store(&s->fd, fd);
  atomic_fetch_add(&open_streams, 1);
  cookie_io_functions_t functions = {
      .read = cookie_read, .seek = cookie_seek, .close = cookie_close};
  FILE *handle = fopencookie(s, "r", functions);
  if (!handle) return forget(s), NULL;
  atomic_store(&s->handle, handle);
  return handle;
}

/* ---- The hooks. ---- */

EXPORT FILE *fopen(const char *path, const char *mode) {
  FILE *stored = REAL(fopen)(path, mode);
  bool changed;
  if (!plan || !stored || mode[0] != 'r' || strchr(mode, '+')) return stored;
  const struct file *f = planned(REAL(fileno)(stored), &changed);
  if (!f) return stored;
  if (changed) {
    say("warning: %s has changed since the program was started: it is left as it is", path_of(f));
    return stored;
  }
  int fd = fcntl(REAL(fileno)(stored), F_DUPFD_CLOEXEC, 3);
  FILE *logical = fd < 0 ? NULL : open_logical(f, fd);
  int error = errno;
  if (!logical && fd >= 0) close(fd);
  fclose(stored);
  if (!logical) errno = error;
  return logical;
}

EXPORT int fileno(FILE *handle) {
  for (int i = 0; atomic_load(&open_streams) != 0 && i < MAX_STREAMS; i++)
    if (atomic_load(&streams[i].handle) == handle) return atomic_load(&streams[i].fd);
  return REAL(fileno)(handle);
}

EXPORT void *mmap(void *address, size_t len, int prot, int flags, int fd, off_t offset) {
  for (int i = 0; fd >= 0 && atomic_load(&open_streams) != 0 && i < MAX_STREAMS; i++) {
    struct stream *s = &streams[i];
    if (!atomic_load(&s->used) || atomic_load(&s->fd) != fd) continue;
    if (offset < 0 || (flags & (MAP_FIXED | MAP_FIXED_NOREPLACE)))
      return errno = EINVAL, MAP_FAILED;
    return stitch(&s->map, s->file, fd, len, prot, flags, (uint64_t)offset);
  }
  return REAL(mmap)(address, len, prot, flags, fd, offset);
}

EXPORT int munmap(void *address, size_t len) {
  for (int i = 0; atomic_load(&open_streams) != 0 && i < MAX_STREAMS; i++)
    if (atomic_load(&streams[i].used))
      stitched_unmapped(&streams[i].map, address, (char *)address + len);
  return REAL(munmap)(address, len);
}

EXPORT int posix_memalign(void **out, size_t alignment, size_t len) {
  if (has_stream()) return allocate_remembered(out, alignment, len);
  return REAL(posix_memalign)(out, alignment, len);
}

EXPORT int open(const char *path, int flags, ...) {
  mode_t mode = 0;
  bool changed;
  if ((flags & O_CREAT) || (flags & O_TMPFILE) == O_TMPFILE) {
    va_list args;
    va_start(args, flags);
    mode = va_arg(args, mode_t);
    va_end(args);
  }
  int fd = REAL(open)(path, flags, mode);
  if (fd < 0 || !(flags & O_DIRECT) || !planned(fd, &changed)) return fd;
  close(fd);
  return errno = EINVAL, -1;
}

/* On 64-bit systems these are the same functions. */
EXPORT FILE *fopen64(const char *, const char *) __attribute__((alias("fopen")));
EXPORT void *mmap64(void *, size_t, int, int, int, off64_t) __attribute__((alias("mmap")));
EXPORT int open64(const char *, int, ...) __attribute__((alias("open")));
