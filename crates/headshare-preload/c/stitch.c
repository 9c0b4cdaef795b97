/* A mapping of the logical bytes, put together from pages of the stored file. */
#include "preload.h"

#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

/* A file that is truncated under a mapping ends the process with SIGBUS: say
 * which file it was, and let it. */
static void on_bus_error(int signal_number) {
  static const char before[] = "headshare-gguf: error: ";
  static const char after[] = " was truncated while it was in use\n";
  for (uint64_t i = 0; i < plan->files; i++) {
    const struct file *f = &plan_files()[i];
    struct stat st;
    if (stat(path_of(f), &st) != 0 || f->inode != st.st_ino || f->device != st.st_dev ||
        (uint64_t)st.st_size >= f->size)
      continue;
    if (write(STDERR_FILENO, before, sizeof before - 1) < 0 ||
        write(STDERR_FILENO, path_of(f), strlen(path_of(f))) < 0 ||
        write(STDERR_FILENO, after, sizeof after - 1) < 0)
      break;
  }
  signal(signal_number, SIG_DFL); /* the access is repeated, now fatally */
}

static void watch_for_truncation(void) {
  struct sigaction action;
  if (sigaction(SIGBUS, NULL, &action) != 0 || (action.sa_flags & SA_SIGINFO) ||
      action.sa_handler != SIG_DFL)
    return; /* the program has its own way */
  memset(&action, 0, sizeof action);
  action.sa_handler = on_bus_error;
  sigaction(SIGBUS, &action, NULL);
}

/* The length from which runs are mapped, so that the mappings suffice. */
static uint64_t smallest_mapped(const struct file *f, uint64_t budget) {
  const struct run *runs = runs_of(f);
  for (uint64_t smallest = f->page;; smallest *= 2) {
    uint64_t mapped = 0;
    for (uint64_t i = 0; i < f->runs; i++) mapped += runs[i].len >= smallest;
    /* Each may have a copied range before it. */
    if (mapped > budget / 2) continue;
    if (mapped < f->runs)
      say("warning: %s: %llu of %llu runs of pages, the smallest, are copied instead of mapped: "
          "%llu mappings (vm.max_map_count) are too few",
          path_of(f), (unsigned long long)(f->runs - mapped), (unsigned long long)f->runs,
          (unsigned long long)plan->max_mappings);
    return smallest;
  }
}

/* Copies the logical bytes `from..to`, from a page's start on. */
static bool copy_range(struct stitched *m, int fd, uint64_t from, uint64_t to, int prot) {
  if (from >= to) return true;
  m->copied += to - from;
  char *out = m->start + (from - m->at);
  return read_logical(m->file, fd, from, out, to - from) && mprotect(out, to - from, prot) == 0;
}

void *stitch(struct stitched *m, const struct file *f, int fd, size_t len, int prot, int flags,
             uint64_t offset) {
  const struct run *runs = runs_of(f);
  uint64_t end, pos = offset;
  if (len == 0 || offset % f->page != 0 || __builtin_add_overflow(offset, len, &end))
    return errno = EINVAL, MAP_FAILED;
  bool private = (flags & MAP_TYPE) == MAP_PRIVATE;
  if ((prot & PROT_WRITE) && !private) return errno = EACCES, MAP_FAILED;
  char *start = REAL(mmap)(NULL, len, PROT_READ | PROT_WRITE,
                           MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (start == MAP_FAILED) return MAP_FAILED;
  forget_stitched(m);
  m->file = f;
  m->start = start;
  m->at = offset;
  m->writable = prot & PROT_WRITE;
  m->mapped = m->copied = 0;
  m->smallest = smallest_mapped(f, mapping_budget());
  if (end > f->len) end = f->len;
  bool done = true;
  for (uint64_t i = 0; done && i < f->runs && runs[i].at < end; i++) {
    uint64_t from = runs[i].at, to = from + runs[i].len;
    if (runs[i].len < m->smallest || to <= pos) continue;
    if (from < pos) from = pos;
    if (to > end) to = end;
    /* Without MAP_POPULATE: it would read what is only going to be repacked. */
    done = copy_range(m, fd, pos, from, prot) &&
           REAL(mmap)(start + (from - offset), to - from, prot,
                      (private ? MAP_PRIVATE : MAP_SHARED) | MAP_FIXED, fd,
                      (off_t)(runs[i].from + (from - runs[i].at))) != MAP_FAILED;
    m->mapped += to - from;
    pos = to;
  }
  if (!done || !copy_range(m, fd, pos, end, prot)) {
    int error = errno;
    REAL(munmap)(start, len);
    m->start = NULL;
    return errno = error, MAP_FAILED;
  }
  atomic_store(&m->live_end, start + len);
  atomic_store(&m->live_start, start);
  watch_for_truncation();
  return start;
}

void stitched_unmapped(struct stitched *m, char *start, char *end) {
  char *live_start = atomic_load(&m->live_start), *live_end = atomic_load(&m->live_end);
  if (!live_start || end <= live_start || start >= live_end) return;
  if (start > live_start) atomic_store(&m->live_end, start);
  else if (end < live_end) atomic_store(&m->live_start, end);
  else forget_stitched(m);
  /* What lies behind a hole counts as gone. */
}

void forget_stitched(struct stitched *m) {
  atomic_store(&m->live_start, NULL);
  atomic_store(&m->live_end, NULL);
}

void drop_mapped(const struct stitched *m) {
  char *live_start = atomic_load(&m->live_start), *live_end = atomic_load(&m->live_end);
  if (!live_start || live_start >= live_end || m->writable) return;
  uint64_t live_from = m->at + (uint64_t)(live_start - m->start);
  uint64_t live_to = m->at + (uint64_t)(live_end - m->start);
  const struct run *runs = runs_of(m->file);
  for (uint64_t i = 0; i < m->file->runs && runs[i].at < live_to; i++) {
    uint64_t from = runs[i].at, to = from + runs[i].len;
    if (runs[i].len < m->smallest || to <= live_from) continue; /* copies are private: they stay */
    if (from < live_from) from = live_from;
    if (to > live_to) to = live_to;
    madvise(m->start + (from - m->at), to - from, MADV_DONTNEED);
  }
}
