/* Loaded in front of libc: of all calls of the kinds that were asked for, the n-th fails. Files count where they lie in one folder,
   allocations where they are large. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/types.h>
#include <unistd.h>

enum { OPEN = 1, READ = 2, WRITE = 4, MAP = 8, RENAME = 16, ALLOCATE = 32 };

static atomic_long seen;
static long failing;   /* which of them; 0: none */
static unsigned kinds; /* 0: not armed */
static size_t large = SIZE_MAX;
static char folder[PATH_MAX];

void faults_arm(const char *of, unsigned which, long number, size_t bytes) {
    strncpy(folder, of, sizeof folder - 1);
    seen = 0;
    failing = number;
    large = bytes;
    kinds = which;
}

long faults_seen(void) { return seen; }

static int strikes(unsigned kind) { return (kinds & kind) && ++seen == failing; }

static int ours(const char *path) { return kinds && path && !strncmp(path, folder, strlen(folder)); }

static int our_file(int file) {
    char link[64], path[PATH_MAX];
    if (!kinds || file < 0) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0) return 0;
    path[length] = 0;
    return ours(path);
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))
#define FAIL(error, value) return errno = (error), (value)

static mode_t mode_of(int flags, va_list more) { return flags & (O_CREAT | O_TMPFILE) ? va_arg(more, mode_t) : 0; }

#define OPENS(name)                                                             \
    int name(const char *path, int flags, ...) {                                \
        va_list more;                                                           \
        va_start(more, flags);                                                  \
        mode_t mode = mode_of(flags, more);                                     \
        va_end(more);                                                           \
        if (ours(path) && strikes(OPEN)) FAIL(EMFILE, -1);                      \
        return REAL(name)(path, flags, mode);                                   \
    }
#define OPENS_AT(name)                                                          \
    int name(int at, const char *path, int flags, ...) {                        \
        va_list more;                                                           \
        va_start(more, flags);                                                  \
        mode_t mode = mode_of(flags, more);                                     \
        va_end(more);                                                           \
        if (ours(path) && strikes(OPEN)) FAIL(EMFILE, -1);                      \
        return REAL(name)(at, path, flags, mode);                               \
    }
OPENS(open)
OPENS(open64)
OPENS_AT(openat)
OPENS_AT(openat64)

ssize_t read(int file, void *to, size_t size) {
    if (our_file(file) && strikes(READ)) FAIL(EIO, -1);
    return REAL(read)(file, to, size);
}
ssize_t pread64(int file, void *to, size_t size, off64_t at) {
    if (our_file(file) && strikes(READ)) FAIL(EIO, -1);
    return REAL(pread64)(file, to, size, at);
}
ssize_t write(int file, const void *from, size_t size) {
    if (our_file(file) && strikes(WRITE)) FAIL(ENOSPC, -1);
    return REAL(write)(file, from, size);
}
ssize_t pwrite64(int file, const void *from, size_t size, off64_t at) {
    if (our_file(file) && strikes(WRITE)) FAIL(ENOSPC, -1);
    return REAL(pwrite64)(file, from, size, at);
}
int rename(const char *from, const char *to) {
    if (ours(to) && strikes(RENAME)) FAIL(EIO, -1);
    return REAL(rename)(from, to);
}

#define MAPS(name, offset)                                                                        \
    void *name(void *at, size_t size, int protection, int flags, int file, offset from) {         \
        int counts = file < 0 ? size >= large && strikes(ALLOCATE) : our_file(file) && strikes(MAP); \
        if (counts) FAIL(ENOMEM, MAP_FAILED);                                                     \
        return REAL(name)(at, size, protection, flags, file, from);                               \
    }
MAPS(mmap, off_t)
MAPS(mmap64, off64_t)

/* glibc's own names: dlsym itself allocates. */
extern void *__libc_malloc(size_t);
extern void *__libc_calloc(size_t, size_t);
extern void *__libc_realloc(void *, size_t);
extern void *__libc_memalign(size_t, size_t);

static int no_memory(size_t size) { return size >= large && strikes(ALLOCATE); }

void *malloc(size_t size) {
    if (no_memory(size)) FAIL(ENOMEM, NULL);
    return __libc_malloc(size);
}
void *calloc(size_t count, size_t size) {
    if (no_memory(count * size)) FAIL(ENOMEM, NULL);
    return __libc_calloc(count, size);
}
void *realloc(void *old, size_t size) {
    if (no_memory(size)) FAIL(ENOMEM, NULL);
    return __libc_realloc(old, size);
}
void *memalign(size_t alignment, size_t size) {
    if (no_memory(size)) FAIL(ENOMEM, NULL);
    return __libc_memalign(alignment, size);
}
void *aligned_alloc(size_t alignment, size_t size) { return memalign(alignment, size); }
int posix_memalign(void **to, size_t alignment, size_t size) {
    void *found = memalign(alignment, size);
    if (!found) return ENOMEM;
    *to = found;
    return 0;
}
