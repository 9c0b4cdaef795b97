/* What the parts of the preload library share; `hooks.c` says what it is. */
#ifndef HEADSHARE_PRELOAD_H
#define HEADSHARE_PRELOAD_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

/* ---- The plan, as `src/plan.rs` writes it: native integers, 8-aligned. ---- */

#define PLAN_MAGIC "HSHAREX1"
enum { PLAN_REPORT = 1 };
enum { FROM_HEADER = 0, FROM_FILE = 1, FROM_ZEROS = 2 };

struct plan {
  char magic[8];
  uint64_t bytes, files, flags, max_mappings;
};

/* Logical bytes with one origin; together without gaps. */
struct extent {
  uint64_t at, len, kind, from;
};

/* Logical pages that are pages of the stored file; ascending. */
struct run {
  uint64_t at, from, len;
};

/* What is `_at` is an offset in the plan. */
struct file {
  uint64_t device, inode, size, mtime, mtime_ns;
  uint64_t page, len;
  uint64_t header_at, header_len, extents_at, extents, runs_at, runs;
  uint64_t path_at; /* ends with a zero byte */
};

/* As `src/layout.rs` asserts of its own. */
#define HAS_SIZE(type, size)                                                   \
  _Static_assert(sizeof(struct type) == (size) && _Alignof(struct type) == 8, \
                 "struct " #type " is not src/layout.rs's")
#define IS_AT(type, field, at) \
  _Static_assert(offsetof(struct type, field) == (at), #type "." #field " is not src/layout.rs's")

HAS_SIZE(plan, 40);
IS_AT(plan, magic, 0);
IS_AT(plan, bytes, 8);
IS_AT(plan, files, 16);
IS_AT(plan, flags, 24);
IS_AT(plan, max_mappings, 32);

HAS_SIZE(file, 112);
IS_AT(file, device, 0);
IS_AT(file, inode, 8);
IS_AT(file, size, 16);
IS_AT(file, mtime, 24);
IS_AT(file, mtime_ns, 32);
IS_AT(file, page, 40);
IS_AT(file, len, 48);
IS_AT(file, header_at, 56);
IS_AT(file, header_len, 64);
IS_AT(file, extents_at, 72);
IS_AT(file, extents, 80);
IS_AT(file, runs_at, 88);
IS_AT(file, runs, 96);
IS_AT(file, path_at, 104);

HAS_SIZE(extent, 32);
IS_AT(extent, at, 0);
IS_AT(extent, len, 8);
IS_AT(extent, kind, 16);
IS_AT(extent, from, 24);

HAS_SIZE(run, 24);
IS_AT(run, at, 0);
IS_AT(run, from, 8);
IS_AT(run, len, 16);

extern const struct plan *plan; /* NULL: nothing to do in this process */

const struct file *plan_files(void);
const char *path_of(const struct file *f);
const struct extent *extents_of(const struct file *f);
const struct run *runs_of(const struct file *f);

/* The file of the plan that is open as `fd`, or NULL; `changed` if it is not
 * any more what the plan was made from. */
const struct file *planned(int fd, bool *changed);

/* Reads `len` bytes at `at`, all within the logical file. */
bool read_logical(const struct file *f, int fd, uint64_t at, char *out, uint64_t len);

/* How many more mappings this process may make: half of what is left. */
uint64_t mapping_budget(void);

/* One line on stderr. */
__attribute__((format(printf, 1, 2))) void say(const char *format, ...);

/* ---- The functions behind the hooks. ---- */

extern struct real {
  _Atomic(void *) fopen, fileno, mmap, munmap, open, posix_memalign;
} real;

void *resolve(_Atomic(void *) *slot, const char *name);

#define REAL(name) ((__typeof__(&name))resolve(&real.name, #name))

/* ---- Stitching (stitch.c). ---- */

/* A mapping of a file's logical bytes, as far as it still exists. Other threads
 * look at `live_start` and `live_end`: NULL where there is none (any more). */
struct stitched {
  const struct file *file;
  char *start;
  _Atomic(char *) live_start, live_end;
  bool writable;     /* its pages may be the program's own by now */
  uint64_t at;       /* the logical offset of `start` */
  uint64_t smallest; /* runs from this length on are mapped */
  uint64_t mapped, copied;
};

/* Maps `len` bytes at `offset`; MAP_FAILED and errno like mmap. */
void *stitch(struct stitched *m, const struct file *f, int fd, size_t len, int prot, int flags,
             uint64_t offset);

/* Takes notice that `start..end` is being unmapped. */
void stitched_unmapped(struct stitched *m, char *start, char *end);

/* From now on there is no mapping. */
void forget_stitched(struct stitched *m);

/* Gives back the mapped pages; they return from the page cache when used. */
void drop_mapped(const struct stitched *m);

/* ---- Folding (fold.c). ---- */

/* Allocates like posix_memalign and remembers the buffer for `fold`. */
int allocate_remembered(void **out, size_t alignment, size_t len);

/* Makes equal pages of this thread's remembered buffers one page each, and
 * forgets the buffers; returns the bytes that this saves. */
uint64_t fold(void);

#endif
