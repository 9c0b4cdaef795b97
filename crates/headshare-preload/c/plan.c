/* The plan: taking it over from `exec`, and the logical bytes it describes. */
#include "preload.h"

#include <dlfcn.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

const struct plan *plan;
struct real real;

void *resolve(_Atomic(void *) *slot, const char *name) {
  void *function = atomic_load_explicit(slot, memory_order_relaxed);
  if (!function) {
    function = dlsym(RTLD_NEXT, name);
    if (!function) abort(); /* a C library without its own functions */
    atomic_store_explicit(slot, function, memory_order_relaxed);
  }
  return function;
}

void say(const char *format, ...) {
  char text[1024] = "headshare-gguf: ";
  size_t prefix = strlen(text);
  va_list args;
  va_start(args, format);
  int n = vsnprintf(text + prefix, sizeof text - prefix - 1, format, args);
  va_end(args);
  if (n < 0) return;
  size_t len = strlen(text);
  text[len++] = '\n';
  if (write(STDERR_FILENO, text, len) < 0) return; /* nobody listens */
}

static const void *plan_at(uint64_t at) { return (const char *)plan + at; }
const struct file *plan_files(void) { return (const struct file *)(plan + 1); }
const char *path_of(const struct file *f) { return plan_at(f->path_at); }
const struct extent *extents_of(const struct file *f) { return plan_at(f->extents_at); }
const struct run *runs_of(const struct file *f) { return plan_at(f->runs_at); }

const struct file *planned(int fd, bool *changed) {
  struct stat st;
  if (!plan || fstat(fd, &st) != 0 || !S_ISREG(st.st_mode)) return NULL;
  for (uint64_t i = 0; i < plan->files; i++) {
    const struct file *f = &plan_files()[i];
    if (f->device != st.st_dev || f->inode != st.st_ino) continue;
    *changed = f->size != (uint64_t)st.st_size || f->mtime != (uint64_t)st.st_mtim.tv_sec ||
               f->mtime_ns != (uint64_t)st.st_mtim.tv_nsec;
    return f;
  }
  return NULL;
}

bool read_logical(const struct file *f, int fd, uint64_t at, char *out, uint64_t len) {
  const struct extent *extents = extents_of(f);
  uint64_t low = 0, high = f->extents; /* the last extent that begins at or before `at` */
  while (high - low > 1) {
    uint64_t middle = (low + high) / 2;
    if (extents[middle].at <= at) low = middle;
    else high = middle;
  }
  for (; len > 0; low++) {
    const struct extent *e = &extents[low];
    uint64_t skip = at - e->at, n = e->len - skip;
    if (n > len) n = len;
    at += n;
    len -= n;
    if (e->kind == FROM_HEADER) memcpy(out, (const char *)plan_at(f->header_at) + skip, n);
    else if (e->kind == FROM_ZEROS) memset(out, 0, n);
    for (uint64_t done = 0; e->kind == FROM_FILE && done < n;) {
      ssize_t got = pread(fd, out + done, n - done, (off_t)(e->from + skip + done));
      if (got > 0) done += (uint64_t)got;
      else if (got == 0) return errno = EIO, false; /* truncated meanwhile */
      else if (errno != EINTR) return false;
    }
    out += n;
  }
  return true;
}

uint64_t mapping_budget(void) {
  char text[4096];
  uint64_t mappings = 0;
  ssize_t n;
  int fd = REAL(open)("/proc/self/maps", O_RDONLY | O_CLOEXEC);
  if (fd < 0) return 1024;
  while ((n = read(fd, text, sizeof text)) > 0)
    for (ssize_t i = 0; i < n; i++) mappings += text[i] == '\n';
  close(fd);
  return mappings < plan->max_mappings ? (plan->max_mappings - mappings) / 2 : 0;
}

/* ---- Taking over the plan. ---- */

static bool within(const struct plan *p, uint64_t at, uint64_t count, uint64_t size) {
  return at % 8 == 0 && at <= p->bytes && count <= (p->bytes - at) / size;
}

static bool is_sound(const struct plan *p, const struct file *f) {
  const char *base = (const char *)p;
  uint64_t page = f->page, pos = 0;
  if (page != (uint64_t)sysconf(_SC_PAGESIZE) || !within(p, f->header_at, f->header_len, 1) ||
      !within(p, f->extents_at, f->extents, sizeof(struct extent)) || f->extents == 0 ||
      !within(p, f->runs_at, f->runs, sizeof(struct run)) || f->path_at >= p->bytes)
    return false;
  const struct extent *e = (const void *)(base + f->extents_at);
  for (uint64_t i = 0; i < f->extents; i++, e++) {
    if (e->at != pos || e->len == 0 || __builtin_add_overflow(pos, e->len, &pos)) return false;
    uint64_t end = e->kind == FROM_HEADER ? f->header_len
                   : e->kind == FROM_FILE ? f->size
                                          : INT64_MAX;
    if (e->kind > FROM_ZEROS || e->from > end || e->len > end - e->from ||
        (e->kind == FROM_HEADER && e->from != 0))
      return false;
  }
  if (pos != f->len || pos > INT64_MAX) return false;
  const struct run *r = (const void *)(base + f->runs_at);
  for (uint64_t i = 0, end = 0; i < f->runs; i++, end = r->at + r->len, r++)
    if ((r->at | r->from | r->len) % page != 0 || r->len == 0 || r->at < end || r->at > f->len ||
        r->len > f->len - r->at || r->from > f->size || r->len > f->size - r->from)
      return false;
  return true;
}

/* HEADSHARE_EXEC=FD:PID:DEVICE:INODE. A child that was started with the
 * descriptor closed finds it in the process that `exec` became. */
__attribute__((constructor)) static void take_over_plan(void) {
  /* Now, so that no hook has to look them up at a bad moment. */
  (void)(REAL(fopen), REAL(fileno), REAL(mmap), REAL(munmap), REAL(open), REAL(posix_memalign));
  const char *text = getenv("HEADSHARE_EXEC");
  unsigned long long number[4];
  char path[64];
  struct stat st;
  if (!text || sscanf(text, "%llu:%llu:%llu:%llu", &number[0], &number[1], &number[2],
                      &number[3]) != 4)
    return;
  snprintf(path, sizeof path, "/proc/%llu/fd/%llu", number[1], number[0]);
  int fd = (int)number[0], opened = -1;
  for (;;) {
    if (fd >= 0 && fstat(fd, &st) == 0 && st.st_dev == number[2] && st.st_ino == number[3]) break;
    if (opened >= 0) close(opened);
    if (opened >= 0 || (fd = opened = REAL(open)(path, O_RDONLY | O_CLOEXEC)) < 0) return;
  }
  const struct plan *p = (size_t)st.st_size < sizeof *p
                             ? MAP_FAILED
                             : REAL(mmap)(NULL, (size_t)st.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
  if (opened >= 0) close(opened);
  if (p == MAP_FAILED) return;
  const struct file *files = (const struct file *)(p + 1);
  bool sound = memcmp(p->magic, PLAN_MAGIC, sizeof p->magic) == 0 &&
               p->bytes == (uint64_t)st.st_size &&
               within(p, sizeof *p, p->files, sizeof *files) &&
               ((const char *)p)[p->bytes - 1] == 0;
  for (uint64_t i = 0; sound && i < p->files; i++) sound = is_sound(p, &files[i]);
  if (sound) plan = p;
}
