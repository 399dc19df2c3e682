// Preloaded into a Python process: from the n-th write below a folder on the disk is full, or the n-th write fails.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

static char root[4096];
static long count, fails_at;
static int fault;

// n = 0 only counts
void fault_arm(const char *folder, long n, int error) {
    strncpy(root, folder, sizeof root - 1);
    count = 0;
    fails_at = n;
    fault = error;
}

long fault_count(void) { return count; }

static int fails(int fd) {
    struct stat found;
    char link[64], path[4096];
    if (!root[0] || fstat(fd, &found) || !S_ISREG(found.st_mode)) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0) return 0;
    path[length] = 0;
    if (strncmp(path, root, strlen(root))) return 0;
    count++;
    if (!fails_at || (fault == ENOSPC ? count < fails_at : count != fails_at)) return 0;
    errno = fault;
    return 1;
}

#define REAL(name) __typeof__(&name) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)

ssize_t write(int fd, const void *data, size_t size) { REAL(write); return fails(fd) ? -1 : real(fd, data, size); }
ssize_t pwrite(int fd, const void *data, size_t size, off_t at) { REAL(pwrite); return fails(fd) ? -1 : real(fd, data, size, at); }
ssize_t pwrite64(int fd, const void *data, size_t size, off64_t at) { REAL(pwrite64); return fails(fd) ? -1 : real(fd, data, size, at); }
ssize_t writev(int fd, const struct iovec *parts, int parts_count) { REAL(writev); return fails(fd) ? -1 : real(fd, parts, parts_count); }
