/* Folding: equal pages of the program's own buffers become one page. */
#include "preload.h"

#include <dlfcn.h>
#include <gnu/libc-version.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ 22 /* Linux 5.14 */
#endif

#define NONE UINT32_MAX
#define MARK 0x6865616473686172u
/* Smaller buffers are none of a model's weights. */
#define MIN_BUFFER ((size_t)1 << 20)
/* How much is copied before the memory it was in is given back. */
#define FOLD_STEP ((size_t)4 << 20)

enum { MAX_BUFFERS = 32, SAMPLES = 8, MAX_COMPARED = 8 };

struct buffer {
  char *start;
  size_t len;
};

/* What this thread has allocated since it opened a file of the plan. */
static __thread struct {
  int buffers;
  struct buffer buffer[MAX_BUFFERS];
} thread;

/* A buffer is followed by a page with this mark, which is unmapped with the
 * buffer: while it is there, the buffer has not been freed. */
static void make_mark(const struct buffer *b, uint64_t out[2]) {
  out[0] = MARK ^ (uintptr_t)b->start;
  out[1] = b->len;
}

static bool overlap(const struct buffer *a, const struct buffer *b, size_t page) {
  return a->start < b->start + b->len + page && b->start < a->start + a->len + page;
}

int allocate_remembered(void **out, size_t alignment, size_t len) {
  Dl_info allocator, libc;
  /* Only glibc's memory with a mapping of its own is known to be unmapped when
   * it is freed; other allocators use it again, and may take it for zeros. */
  if (len < MIN_BUFFER || len > SIZE_MAX / 2 || thread.buffers == MAX_BUFFERS ||
      !dladdr((void *)REAL(posix_memalign), &allocator) ||
      !dladdr((void *)gnu_get_libc_version, &libc) || allocator.dli_fbase != libc.dli_fbase)
    return REAL(posix_memalign)(out, alignment, len);
  size_t page = (size_t)sysconf(_SC_PAGESIZE);
  size_t whole = (len + page - 1) & ~(page - 1);
  if (alignment < page) alignment = page;
  int error = REAL(posix_memalign)(out, alignment, whole + page);
  if (error == 0 && (((const size_t *)*out)[-1] & 2)) { /* glibc's IS_MMAPPED */
    struct buffer b = {.start = *out, .len = len};
    /* What lay here has been freed: twice in the list, it would be its own copy. */
    for (int i = thread.buffers; i-- > 0;)
      if (overlap(&thread.buffer[i], &b, page))
        thread.buffer[i] = thread.buffer[--thread.buffers];
    make_mark(&b, (uint64_t *)(void *)(b.start + whole));
    thread.buffer[thread.buffers++] = b;
  }
  return error;
}

/* Keeps the buffers that are still allocated; the kernel does the reading, so
 * that memory that is gone is an error and no crash. */
static uint64_t keep_allocated(int fd, size_t page) {
  uint64_t want[2], got[2], pages = 0;
  int kept = 0;
  for (int i = 0; i < thread.buffers; i++) {
    struct buffer b = thread.buffer[i];
    size_t whole = (b.len + page - 1) & ~(page - 1);
    make_mark(&b, want);
    if (pwrite(fd, b.start + whole, sizeof got, 0) != sizeof got ||
        pread(fd, got, sizeof got, 0) != sizeof got || memcmp(got, want, sizeof got) != 0)
      continue;
    thread.buffer[kept++] = b;
    pages += b.len / page;
  }
  thread.buffers = kept;
  return pages;
}

struct fold {
  int fd; /* holds the pages that are used more than once */
  size_t page;
  uint32_t pages; /* whole pages, counted through all buffers */
  uint32_t *first; /* of each page: the first one equal to it; NONE if all zero */
  uint32_t *place; /* of each first page: its place in `fd`, from 1; 0 if it has none */
  uint64_t smallest; /* pages of a run from which it is folded */
};

static char *page_address(const struct fold *f, uint32_t index) {
  const struct buffer *b = thread.buffer;
  for (; index >= b->len / f->page; b++) index -= (uint32_t)(b->len / f->page);
  return b->start + index * f->page;
}

/* A hash of a few words from all over the page; 0 if the page is all zero. */
static uint64_t hash_page(const char *page, size_t len) {
  uint64_t hash = 0, word, any = 0;
  for (size_t i = 0; i < SAMPLES; i++) {
    memcpy(&word, page + i * (len / SAMPLES) + i * sizeof word, sizeof word);
    any |= word;
    hash = (hash ^ word) * 0x9e3779b97f4a7c15u;
    hash ^= hash >> 32;
  }
  if (any == 0 && page[0] == 0 && memcmp(page, page + 1, len - 1) == 0) return 0;
  return hash | 1;
}

/* Weights differ early or not at all; what resembles too many other pages
 * counts as unique. */
static void find_equal(struct fold *f, uint64_t *hashes, uint32_t *table, uint64_t slots) {
  for (uint32_t p = 0; p < f->pages; p++) {
    const char *page = page_address(f, p);
    hashes[p] = hash_page(page, f->page);
    f->first[p] = hashes[p] == 0 ? NONE : p;
    if (hashes[p] == 0) continue;
    uint64_t slot = (hashes[p] >> 1) & (slots - 1);
    for (int compared = 0; table[slot] != 0; slot = (slot + 1) & (slots - 1)) {
      uint32_t other = table[slot] - 1;
      if (hashes[other] != hashes[p]) continue;
      if (compared++ == MAX_COMPARED) break;
      if (memcmp(page_address(f, other), page, f->page) != 0) continue;
      f->first[p] = other;
      break;
    }
    if (table[slot] == 0) table[slot] = p + 1;
  }
}

/* The next run of pages, from `*p` on, that repeat consecutive earlier pages;
 * its length, 0 after the last. Only runs of the smallest length and more. */
static uint32_t next_run(const struct fold *f, uint32_t *p) {
  for (uint32_t n; *p < f->pages; *p += n) {
    n = 1;
    if (f->first[*p] == NONE || f->first[*p] == *p) continue;
    char *start = page_address(f, *p), *other = page_address(f, f->first[*p]);
    while (*p + n < f->pages && f->first[*p + n] == f->first[*p] + n &&
           page_address(f, *p + n) == start + n * f->page &&
           page_address(f, f->first[*p] + n) == other + n * f->page)
      n++;
    if (n >= f->smallest) return n;
  }
  return 0;
}

/* Puts pages of `fd` in place of equal ones. Private: a write stays private. */
static void replace(const struct fold *f, char *start, size_t len, uint32_t place) {
  if (REAL(mmap)(start, len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_FIXED, f->fd,
                 (off_t)((place - 1) * f->page)) == MAP_FAILED) {
    say("error: cannot map shared weights: %m");
    abort(); /* what was there may be gone */
  }
  /* As present as what was there; without it, or on an older kernel, the first
   * prompt takes the faults. */
  madvise(start, len, MADV_POPULATE_READ);
}

/* Moves the pages that have a place to `fd`; returns how many are there. */
static uint32_t move_first_pages(const struct fold *f) {
  uint32_t placed = 0;
  for (uint32_t p = 0, n; p < f->pages; p += n) {
    n = 1;
    if (f->place[p] == 0) continue;
    char *start = page_address(f, p);
    while (p + n < f->pages && f->place[p + n] != 0 && (n + 1) * f->page <= FOLD_STEP &&
           page_address(f, p + n) == start + n * f->page)
      n++;
    for (size_t done = 0; done < n * f->page;) {
      ssize_t put = pwrite(f->fd, start + done, n * f->page - done,
                           (off_t)((f->place[p] - 1) * f->page + done));
      if (put > 0) done += (size_t)put;
      else if (put == 0 || errno != EINTR) return placed; /* no memory left: share less */
    }
    replace(f, start, n * f->page, f->place[p]);
    placed += n;
  }
  return placed;
}

/* Shares what is equal; returns the bytes that are saved. */
static uint64_t share_equal(struct fold *f) {
  uint64_t runs, all = 0, budget = mapping_budget(), saved = 0;
  uint32_t p, n, places = 0;
  for (f->smallest = 1;; f->smallest *= 2) {
    runs = 0;
    for (p = 0; (n = next_run(f, &p)) != 0; p += n) runs++;
    if (f->smallest == 1) all = runs;
    if (runs <= budget / 4) break; /* each cuts two ranges in three */
  }
  if (runs < all)
    say("warning: %llu runs of equal pages, the smallest, are not shared: %llu mappings "
        "(vm.max_map_count) are too few",
        (unsigned long long)(all - runs), (unsigned long long)plan->max_mappings);
  for (p = 0; (n = next_run(f, &p)) != 0; p += n)
    for (uint32_t i = 0; i < n; i++) f->place[f->first[p + i]] = 1;
  for (p = 0; p < f->pages; p++)
    if (f->place[p] != 0) f->place[p] = ++places;
  uint32_t placed = move_first_pages(f);
  for (p = 0; (n = next_run(f, &p)) != 0; p += n) {
    uint32_t place = f->place[f->first[p]];
    if (place + n - 1 > placed) continue;
    replace(f, page_address(f, p), n * f->page, place);
    saved += n * f->page;
  }
  return saved;
}

uint64_t fold(void) {
  struct fold f = {.page = (size_t)sysconf(_SC_PAGESIZE)};
  if (thread.buffers == 0) return 0;
  f.fd = memfd_create("headshare-folded", MFD_CLOEXEC);
  if (f.fd < 0) {
    say("warning: the program's own copy of the weights is not shared: memfd_create: %m");
    thread.buffers = 0;
    return 0;
  }
  struct rlimit limit = {0}; /* writing beyond it would be a signal */
  uint64_t pages = 0, slots = 1, saved = 0;
  if (getrlimit(RLIMIT_FSIZE, &limit) == 0 && limit.rlim_cur >= f.page)
    pages = keep_allocated(f.fd, f.page);
  if (limit.rlim_cur / f.page < pages) pages = 0;
  while (slots < 2 * pages) slots *= 2;
  size_t len = pages * (sizeof(uint64_t) + 2 * sizeof(uint32_t)) + slots * sizeof(uint32_t);
  uint64_t *hashes = pages == 0 || pages >= NONE
                         ? MAP_FAILED
                         : REAL(mmap)(NULL, len, PROT_READ | PROT_WRITE,
                                      MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (hashes != MAP_FAILED) {
    f.pages = (uint32_t)pages;
    f.first = (uint32_t *)(hashes + pages);
    f.place = f.first + pages;
    find_equal(&f, hashes, f.place + pages, slots);
    saved = share_equal(&f);
    REAL(munmap)(hashes, len);
  }
  close(f.fd); /* the mappings keep it */
  thread.buffers = 0;
  return saved;
}

