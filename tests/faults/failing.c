/* A library to be loaded before the C library (LD_PRELOAD): of the calls of the system that Python makes, one fails when it is told to. Those of
 * the port's C core are left alone; tests/port/faulty.c has them.
 *
 *     fail(call, error, after)    the next call of this name fails with this errno, after so many that do not, here or in a forked child
 *     failed()                    how many have failed since
 *
 * close() fails after it has closed, as it does on Linux; all others instead of doing anything.
 */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdarg.h>
#include <stdbool.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/wait.h>

static struct state {
    char call[32];
    int error, countdown, failures;
} *state; /* shared with forked children */

__attribute__((constructor)) static void begin(void) {
    state = mmap(NULL, sizeof *state, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    state->countdown = -1;
}

void fail(const char *call, int error, int after) {
    state->countdown = -1;
    strncpy(state->call, call, sizeof state->call - 1);
    state->error = error;
    state->failures = 0;
    state->countdown = after;
}

int failed(void) {
    return state->failures;
}

static bool fails(const char *call, void *caller) {
    Dl_info found;
    if (!state || state->countdown < 0 || strcmp(call, state->call))
        return false;
    if (dladdr(caller, &found) && found.dli_fname &&
        (strstr(found.dli_fname, "_epoll.") || strstr(found.dli_fname, "_kqueue.") || strstr(found.dli_fname, "libc.so")))
        return false;
    if (state->countdown-- > 0)
        return false;
    state->failures++;
    errno = state->error;
    return true;
}

#define CALLER __builtin_return_address(0)

#define WRAP(result, name, parameters, ...)                                                        \
    result name parameters {                                                                       \
        result(*real) parameters = (result(*) parameters)dlsym(RTLD_NEXT, #name);                  \
        return fails(#name, CALLER) ? (result)-1 : real(__VA_ARGS__);                              \
    }

WRAP(int, socket, (int family, int kind, int protocol), family, kind, protocol)
WRAP(int, socketpair, (int family, int kind, int protocol, int pair[2]), family, kind, protocol, pair)
WRAP(int, bind, (int fd, const struct sockaddr *address, socklen_t size), fd, address, size)
WRAP(int, listen, (int fd, int backlog), fd, backlog)
WRAP(int, connect, (int fd, const struct sockaddr *address, socklen_t size), fd, address, size)
WRAP(int, accept4, (int fd, struct sockaddr *address, socklen_t *size, int flags), fd, address, size, flags)
WRAP(int, getsockname, (int fd, struct sockaddr *address, socklen_t *size), fd, address, size)
WRAP(int, getpeername, (int fd, struct sockaddr *address, socklen_t *size), fd, address, size)
WRAP(int, getsockopt, (int fd, int level, int option, void *value, socklen_t *size), fd, level, option, value, size)
WRAP(int, setsockopt, (int fd, int level, int option, const void *value, socklen_t size), fd, level, option, value, size)
WRAP(int, shutdown, (int fd, int how), fd, how)
WRAP(ssize_t, send, (int fd, const void *data, size_t size, int flags), fd, data, size, flags)
WRAP(ssize_t, sendmsg, (int fd, const struct msghdr *message, int flags), fd, message, flags)
WRAP(ssize_t, recv, (int fd, void *data, size_t size, int flags), fd, data, size, flags)
WRAP(ssize_t, read, (int fd, void *data, size_t size), fd, data, size)
WRAP(ssize_t, write, (int fd, const void *data, size_t size), fd, data, size)
WRAP(int, pipe2, (int pipe[2], int flags), pipe, flags)
WRAP(pid_t, fork, (void), )
WRAP(pid_t, waitpid, (pid_t pid, int *status, int options), pid, status, options)
WRAP(int, waitid, (idtype_t kind, id_t id, siginfo_t *information, int options), kind, id, information, options)

ssize_t sendto(int fd, const void *data, size_t size, int flags, const struct sockaddr *address, socklen_t length) {
    __typeof__(sendto) *real = (__typeof__(sendto) *)dlsym(RTLD_NEXT, "sendto");
    return fails("sendto", CALLER) ? -1 : real(fd, data, size, flags, address, length);
}

ssize_t recvfrom(int fd, void *data, size_t size, int flags, struct sockaddr *address, socklen_t *length) {
    __typeof__(recvfrom) *real = (__typeof__(recvfrom) *)dlsym(RTLD_NEXT, "recvfrom");
    return fails("recvfrom", CALLER) ? -1 : real(fd, data, size, flags, address, length);
}

int close(int fd) {
    int (*real)(int) = (int (*)(int))dlsym(RTLD_NEXT, "close");
    int closed = real(fd);
    return fails("close", CALLER) ? -1 : closed;
}

/* With 64-bit offsets, the C library calls these otherwise. */

int fstat64(int fd, struct stat64 *status) {
    int (*real)(int, struct stat64 *) = (int (*)(int, struct stat64 *))dlsym(RTLD_NEXT, "fstat64");
    return fails("fstat", CALLER) ? -1 : real(fd, status);
}

int fstat(int fd, struct stat *status) {
    int (*real)(int, struct stat *) = (int (*)(int, struct stat *))dlsym(RTLD_NEXT, "fstat");
    return fails("fstat", CALLER) ? -1 : real(fd, status);
}

ssize_t sendfile64(int out, int in, off64_t *offset, size_t size) {
    ssize_t (*real)(int, int, off64_t *, size_t) = (ssize_t(*)(int, int, off64_t *, size_t))dlsym(RTLD_NEXT, "sendfile64");
    return fails("sendfile", CALLER) ? -1 : real(out, in, offset, size);
}

ssize_t sendfile(int out, int in, off_t *offset, size_t size) {
    ssize_t (*real)(int, int, off_t *, size_t) = (ssize_t(*)(int, int, off_t *, size_t))dlsym(RTLD_NEXT, "sendfile");
    return fails("sendfile", CALLER) ? -1 : real(out, in, offset, size);
}

int fcntl(int fd, int command, ...) __attribute__((alias("fcntl64")));

int fcntl64(int fd, int command, ...) {
    va_list arguments;
    va_start(arguments, command);
    void *argument = va_arg(arguments, void *);
    va_end(arguments);
    int (*real)(int, int, ...) = (int (*)(int, int, ...))dlsym(RTLD_NEXT, "fcntl");
    return fails("fcntl", CALLER) ? -1 : real(fd, command, argument);
}

int ioctl(int fd, unsigned long request, ...) {
    va_list arguments;
    va_start(arguments, request);
    void *argument = va_arg(arguments, void *);
    va_end(arguments);
    int (*real)(int, unsigned long, ...) = (int (*)(int, unsigned long, ...))dlsym(RTLD_NEXT, "ioctl");
    return fails("ioctl", CALLER) ? -1 : real(fd, request, argument);
}

/* pidfd_open and pidfd_send_signal, which C libraries have not had for long. */
long syscall(long number, ...) {
    long argument[6];
    va_list arguments;
    va_start(arguments, number);
    for (int i = 0; i < 6; i++)
        argument[i] = va_arg(arguments, long);
    va_end(arguments);
    long (*real)(long, ...) = (long (*)(long, ...))dlsym(RTLD_NEXT, "syscall");
    if ((number == SYS_pidfd_open && fails("pidfd_open", CALLER)) || (number == SYS_pidfd_send_signal && fails("pidfd_send_signal", CALLER)))
        return -1;
    return real(number, argument[0], argument[1], argument[2], argument[3], argument[4], argument[5]);
}
