/* A library to be loaded before the C library (LD_PRELOAD): of the calls that the port's C core makes, and nobody else, one fails when it is
 * told to.
 *
 *     fail(call, error, after)    the next call of this name fails with this errno, after so many that do not; for epoll_ctl the operation
 *                                 may follow the name, as in "epoll_ctl 3"
 *     failed()                    how many have failed since
 */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/syscall.h>
#include <sys/types.h>

static char chosen[32];
static int chosen_error, countdown = -1, failures;

void fail(const char *call, int error, int after) {
    countdown = -1;
    strncpy(chosen, call, sizeof chosen - 1);
    chosen_error = error;
    failures = 0;
    countdown = after;
}

int failed(void) {
    return failures;
}

static bool is_the_ports(void *caller) {
    Dl_info found;
    return dladdr(caller, &found) && found.dli_fname && strstr(found.dli_fname, "_epoll.");
}

static bool fails(const char *call, void *caller) {
    if (countdown < 0 || strcmp(call, chosen) || !is_the_ports(caller) || countdown-- > 0)
        return false;
    failures++;
    errno = chosen_error;
    return true;
}

#define REAL(name) ((__typeof__(name) *)dlsym(RTLD_NEXT, #name))
#define CALLER __builtin_return_address(0)

int epoll_create1(int flags) {
    return fails("epoll_create1", CALLER) ? -1 : REAL(epoll_create1)(flags);
}

int epoll_ctl(int epoll, int operation, int descriptor, struct epoll_event *event) {
    char call[] = "epoll_ctl 0";
    call[sizeof call - 2] = (char)('0' + operation);
    return fails("epoll_ctl", CALLER) || fails(call, CALLER) ? -1 : REAL(epoll_ctl)(epoll, operation, descriptor, event);
}

int epoll_wait(int epoll, struct epoll_event *events, int room, int timeout) {
    return fails("epoll_wait", CALLER) ? -1 : REAL(epoll_wait)(epoll, events, room, timeout);
}

long syscall(long number, ...) {
    long argument[6];
    va_list arguments;
    va_start(arguments, number);
    for (int i = 0; i < 6; i++)
        argument[i] = va_arg(arguments, long);
    va_end(arguments);
    if (number == SYS_epoll_pwait2 && fails("epoll_pwait2", CALLER))
        return -1;
    return REAL(syscall)(number, argument[0], argument[1], argument[2], argument[3], argument[4], argument[5]);
}

int eventfd(unsigned value, int flags) {
    int (*real)(unsigned, int) = (int (*)(unsigned, int))dlsym(RTLD_NEXT, "eventfd");
    return fails("eventfd", CALLER) ? -1 : real(value, flags);
}

int dup3(int from, int to, int flags) {
    int (*real)(int, int, int) = (int (*)(int, int, int))dlsym(RTLD_NEXT, "dup3");
    return fails("dup3", CALLER) ? -1 : real(from, to, flags);
}

/* With 64-bit offsets, the C library calls these otherwise. */
int fcntl(int descriptor, int command, ...) __attribute__((alias("fcntl64")));
FILE *fopen(const char *path, const char *mode) __attribute__((alias("fopen64")));

int fcntl64(int descriptor, int command, ...) {
    va_list arguments;
    va_start(arguments, command);
    void *argument = va_arg(arguments, void *);
    va_end(arguments);
    int (*real)(int, int, ...) = (int (*)(int, int, ...))dlsym(RTLD_NEXT, "fcntl");
    return fails("fcntl", CALLER) ? -1 : real(descriptor, command, argument);
}

ssize_t write(int descriptor, const void *data, size_t size) {
    ssize_t (*real)(int, const void *, size_t) = (ssize_t (*)(int, const void *, size_t))dlsym(RTLD_NEXT, "write");
    return fails("write", CALLER) ? -1 : real(descriptor, data, size);
}

FILE *fopen64(const char *path, const char *mode) {
    return fails("fopen", CALLER) ? NULL : REAL(fopen)(path, mode);
}

/* dlsym may allocate: the C library's own names for these need no looking up. */
void *__libc_malloc(size_t size);
void *__libc_calloc(size_t count, size_t size);
void *__libc_realloc(void *memory, size_t size);

void *malloc(size_t size) {
    return fails("malloc", CALLER) ? NULL : __libc_malloc(size);
}

void *calloc(size_t count, size_t size) {
    return fails("calloc", CALLER) ? NULL : __libc_calloc(count, size);
}

void *realloc(void *memory, size_t size) {
    return fails("realloc", CALLER) ? NULL : __libc_realloc(memory, size);
}
