/* Memory, watches and descriptors run out at every place where they can: the port stays consistent, and says which registration failed.
 *
 *     faults SECONDS
 *
 * First each kind of call with each of its resources missing in turn, also the first of a forked child, then calls at random for so many
 * seconds, against a record of what must be registered. One translation unit with the port, whose calls for resources go through the functions below.
 */

#include "check.h"

#include <stdbool.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static long countdown = -1; /* calls until one fails; negative: none does */
static int chance;          /* in 256, for each call to fail */
static unsigned seed = 1;
static int no_watch = ENOMEM; /* how epoll_ctl fails: ENOMEM, or ENOSPC at the user's limit of watched files */
static long failures;

static bool fails(int error) {
    if (countdown-- != 0 && (!chance || rand_r(&seed) % 256 >= chance))
        return false;
    failures++;
    errno = error;
    return true;
}

static void *faulty_malloc(size_t size) {
    return fails(ENOMEM) ? NULL : malloc(size);
}

static void *faulty_calloc(size_t count, size_t size) {
    return fails(ENOMEM) ? NULL : calloc(count, size);
}

static void *faulty_realloc(void *memory, size_t size) {
    return fails(ENOMEM) ? NULL : realloc(memory, size);
}

static int faulty_epoll_create1(int flags) {
    return fails(EMFILE) ? -1 : epoll_create1(flags);
}

static int faulty_eventfd(unsigned value, int flags) {
    return fails(EMFILE) ? -1 : eventfd(value, flags);
}

static int faulty_epoll_ctl(int epoll, int operation, int descriptor, struct epoll_event *event) {
    return operation != EPOLL_CTL_DEL && fails(no_watch) ? -1 : epoll_ctl(epoll, operation, descriptor, event);
}

static int faulty_dup3(int from, int to, int flags) {
    return fails(EBADF) ? -1 : dup3(from, to, flags);
}

static ssize_t faulty_write(int descriptor, const void *data, size_t size) {
    return fails(EIO) ? -1 : write(descriptor, data, size);
}

static FILE *faulty_fopen(const char *path, const char *mode) {
    return fails(EMFILE) ? NULL : fopen(path, mode);
}

#define malloc faulty_malloc
#define calloc faulty_calloc
#define realloc faulty_realloc
#define epoll_create1 faulty_epoll_create1
#define eventfd faulty_eventfd
#define epoll_ctl faulty_epoll_ctl
#define dup3 faulty_dup3
#define write faulty_write
#define fopen faulty_fopen

#include "abi.h"
#include "epoll_port.c"

enum { SOCKETS = 24, FIRST_NUMBER = 40, STEP = 37 }; /* descriptors far apart, so that the table of records grows often */

#define NEVER -1
#define ONESHOT (SOCK_NOTIFY_TRIGGER_LEVEL | SOCK_NOTIFY_TRIGGER_ONESHOT)
#define KEY HIGHEST_BIT

static int sockets[SOCKETS];

static int open_descriptors(void) {
    int count = 0;
    for (int i = 0; i < FIRST_NUMBER + SOCKETS * STEP + 64; i++)
        count += fcntl(i, F_GETFD) >= 0;
    return count;
}

static HANDLE make_port(void) {
    return CreateIoCompletionPort((HANDLE)UINTPTR_MAX, NULL, 0, 0);
}

/* Watched for OUT, an idle socket is always ready. */
static SOCK_NOTIFY_REGISTRATION order(int number, UINT8 operation) {
    return (SOCK_NOTIFY_REGISTRATION){
        .socket = (SOCKET)sockets[number],
        .completionKey = (PVOID)(KEY | (unsigned)number),
        .eventFilter = SOCK_NOTIFY_REGISTER_EVENT_OUT,
        .operation = operation,
        .triggerFlags = ONESHOT,
    };
}

static DWORD apply_one(HANDLE port, int number, UINT8 operation) {
    SOCK_NOTIFY_REGISTRATION registration = order(number, operation);
    CHECK(ProcessSocketNotificationsNs(port, 1, &registration, 0, 0, NULL, NULL) == ERROR_SUCCESS);
    return registration.registrationResult;
}

/* What could not be silenced is tried again, and then the call is as one that was interrupted. */
static UINT32 dequeue_now(HANDLE port, OVERLAPPED_ENTRY *entries) {
    UINT32 count;
    DWORD result;
    do
        result = ProcessSocketNotificationsNs(port, 0, NULL, 0, MAX_BATCH, entries, &count);
    while (result == WAIT_IO_COMPLETION);
    CHECK(result == (count ? ERROR_SUCCESS : WAIT_TIMEOUT));
    return count;
}

/* Exactly these are enabled: each is delivered, once, and nothing else is. */
static void expect(HANDLE port, const bool *enabled) {
    OVERLAPPED_ENTRY entries[MAX_BATCH];
    bool found[SOCKETS] = {false};
    UINT32 count;
    while ((count = dequeue_now(port, entries)))
        for (UINT32 i = 0; i < count; i++) {
            size_t number = entries[i].lpCompletionKey & ~KEY;
            CHECK(entries[i].lpCompletionKey & KEY && number < SOCKETS && !found[number]);
            CHECK(entries[i].dwNumberOfBytesTransferred == SOCK_NOTIFY_EVENT_OUT);
            found[number] = true;
        }
    CHECK(memcmp(found, enabled, sizeof found) == 0);
}

/* The kernel is told of it in a structure of its own, which on 32-bit systems is not the C library's. */
static void time_passes(void) {
    OVERLAPPED_ENTRY entries[MAX_BATCH];
    UINT32 count;
    HANDLE port = make_port();
    CHECK(port);
    for (int64_t ns = 1; ns < 10000000; ns *= 7) {
        int64_t end = now_ns() + ns;
        CHECK(ProcessSocketNotificationsNs(port, 0, NULL, ns, 1, entries, &count) == WAIT_TIMEOUT && now_ns() >= end);
    }
    CHECK(CloseHandle(port));
}

static void create_without_resources(void) {
    int before = open_descriptors();
    for (long i = 0;; i++) {
        failures = 0;
        countdown = i;
        HANDLE port = make_port();
        int error = errno;
        countdown = NEVER;
        if (!failures) {
            CHECK(port && CloseHandle(port));
            break;
        }
        CHECK(!port && (error == EMFILE || error == ENOMEM || error == no_watch));
        CHECK(open_descriptors() == before);
    }
    CHECK(open_descriptors() == before);
}

static void register_without_resources(void) {
    SOCK_NOTIFY_REGISTRATION batch[SOCKETS];
    bool all[SOCKETS], enabled[SOCKETS];
    memset(all, true, sizeof all);
    for (long i = 0;; i++) {
        HANDLE port = make_port();
        CHECK(port);
        for (int n = 0; n < SOCKETS; n++)
            batch[n] = order(n, SOCK_NOTIFY_OP_ENABLE);
        failures = 0;
        countdown = i;
        CHECK(ProcessSocketNotificationsNs(port, SOCKETS, batch, 0, 0, NULL, NULL) == ERROR_SUCCESS);
        countdown = NEVER;
        int failed = -1;
        for (int n = 0; n < SOCKETS; n++) {
            enabled[n] = batch[n].registrationResult == 0;
            if (!enabled[n]) {
                CHECK(failed < 0 && (batch[n].registrationResult == ENOMEM || batch[n].registrationResult == (DWORD)no_watch));
                failed = n;
            }
        }
        CHECK((failed >= 0) == (failures == 1));
        expect(port, enabled);
        if (failed >= 0) {
            CHECK(apply_one(port, failed, SOCK_NOTIFY_OP_DISABLE) == ENOENT);
            CHECK(apply_one(port, failed, SOCK_NOTIFY_OP_REMOVE) == ENOENT);
        }
        for (int n = 0; n < SOCKETS; n++)
            CHECK(apply_one(port, n, SOCK_NOTIFY_OP_ENABLE) == 0);
        expect(port, all);
        CHECK(CloseHandle(port));
        if (failed < 0)
            break;
    }
}

static void post_without_memory(void) {
    enum { PACKETS = 200 };
    OVERLAPPED_ENTRY entries[MAX_BATCH];
    for (long i = 0;; i++) {
        HANDLE port = make_port();
        CHECK(port);
        failures = 0;
        countdown = i;
        int posted = 0, refused = 0;
        while (posted < PACKETS) {
            if (PostQueuedCompletionStatus(port, (DWORD)posted, 7, NULL)) {
                posted++;
            } else {
                CHECK(errno == ENOMEM);
                refused++;
            }
        }
        countdown = NEVER;
        CHECK(refused == failures);
        CHECK(dequeue_now(port, entries) == PACKETS);
        for (DWORD n = 0; n < PACKETS; n++)
            CHECK(entries[n].lpCompletionKey == 7 && entries[n].dwNumberOfBytesTransferred == n);
        CHECK(CloseHandle(port));
        if (!refused)
            break;
    }
}

static void remove_without_memory(void) {
    OVERLAPPED_ENTRY entries[MAX_BATCH];
    bool one[SOCKETS] = {true};
    HANDLE port = make_port();
    CHECK(port && apply_one(port, 0, SOCK_NOTIFY_OP_ENABLE) == 0);
    countdown = 0;
    CHECK(apply_one(port, 0, SOCK_NOTIFY_OP_REMOVE) == ENOMEM);
    expect(port, one); /* it is as it was */
    CHECK(apply_one(port, 0, SOCK_NOTIFY_OP_REMOVE) == 0);
    CHECK(apply_one(port, 0, SOCK_NOTIFY_OP_REMOVE) == ENOENT);
    CHECK(dequeue_now(port, entries) == 1 && entries[0].dwNumberOfBytesTransferred == SOCK_NOTIFY_EVENT_REMOVE);
    CHECK(dequeue_now(port, entries) == 0);
    CHECK(CloseHandle(port));
}

/* A socket that was closed but lives on in a duplicate, and that the kernel goes on reporting. */
static int make_orphan(HANDLE port) {
    int ends[2];
    CHECK(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) == 0);
    SOCK_NOTIFY_REGISTRATION registration = order(0, SOCK_NOTIFY_OP_ENABLE);
    registration.socket = (SOCKET)ends[0];
    registration.completionKey = (PVOID)(KEY | SOCKETS);
    CHECK(ProcessSocketNotificationsNs(port, 1, &registration, 0, 0, NULL, NULL) == ERROR_SUCCESS);
    if (registration.registrationResult) { /* no orphan today */
        close(ends[1]);
        return ends[0];
    }
    int duplicate = dup(ends[0]);
    CHECK(duplicate >= 0);
    close(ends[0]);
    close(ends[1]);
    registration.operation = SOCK_NOTIFY_OP_REMOVE;
    do
        CHECK(ProcessSocketNotificationsNs(port, 1, &registration, 0, 0, NULL, NULL) == ERROR_SUCCESS);
    while (registration.registrationResult == ENOMEM);
    CHECK(registration.registrationResult == ENOENT);
    return duplicate;
}

static unsigned long rebuilds(HANDLE port) {
    PORT_COUNTERS counters;
    CHECK(GetPortCounters(port, &counters));
    return (unsigned long)counters.rebuilds;
}

static void rebuild_without_resources(void) {
    OVERLAPPED_ENTRY entries[MAX_BATCH];
    bool all[SOCKETS];
    memset(all, true, sizeof all);
    for (long i = 0;; i++) {
        HANDLE port = make_port();
        CHECK(port);
        for (int n = 0; n < SOCKETS; n++)
            CHECK(apply_one(port, n, SOCK_NOTIFY_OP_ENABLE) == 0);
        expect(port, all);
        int before = open_descriptors(), orphan = make_orphan(port);
        failures = 0;
        countdown = i;
        for (int n = 0; n < ORPHAN_REPORTS; n++)
            CHECK(dequeue_now(port, entries) == 0);
        CHECK(rebuilds(port) == 1 || failures); /* some failures have another way out: a port moves if its number cannot be kept */
        countdown = NEVER;
        for (int n = 0; n < SOCKETS; n++)
            CHECK(apply_one(port, n, SOCK_NOTIFY_OP_ENABLE) == 0);
        expect(port, all);
        for (int n = 0; n < 3 * ORPHAN_REPORTS; n++)
            CHECK(dequeue_now(port, entries) == 0);
        CHECK(rebuilds(port) == 1);
        for (int n = 0; n < SOCKETS; n++)
            CHECK(apply_one(port, n, SOCK_NOTIFY_OP_ENABLE) == 0);
        expect(port, all);
        close(orphan);
        CHECK(open_descriptors() == before);
        CHECK(CloseHandle(port));
        if (!failures)
            break;
    }
}

/* A child builds a set of its own; what was registered is in it, and the parent's is as it was. */
static void fork_without_resources(void) {
    bool all[SOCKETS];
    memset(all, true, sizeof all);
    HANDLE port = make_port();
    CHECK(port);
    for (int n = 0; n < SOCKETS; n++)
        CHECK(apply_one(port, n, SOCK_NOTIFY_OP_ENABLE) == 0);
    bool failed = true;
    for (long i = 0; failed; i++) {
        pid_t child = fork();
        CHECK(child >= 0);
        if (!child) {
            OVERLAPPED_ENTRY entries[MAX_BATCH];
            UINT32 count;
            int before = open_descriptors();
            failures = 0;
            countdown = i;
            DWORD result = ProcessSocketNotificationsNs(port, 0, NULL, 0, 1, entries, &count);
            countdown = NEVER;
            CHECK(open_descriptors() == before);
            if (failures) {
                CHECK((result & ~0xFFFFu) == ERROR_AFTER_FORK && !count);
                expect(port, all);
            } else {
                CHECK(result == ERROR_SUCCESS && count == 1);
            }
            CHECK(open_descriptors() == before);
            CHECK(CloseHandle(port) && open_descriptors() == before - 2);
            _exit(failures ? 10 : 0);
        }
        int status;
        CHECK(waitpid(child, &status, 0) == child && WIFEXITED(status));
        CHECK(WEXITSTATUS(status) == 0 || WEXITSTATUS(status) == 10);
        failed = WEXITSTATUS(status) == 10;
    }
    expect(port, all);
    CHECK(CloseHandle(port));
}

static unsigned long at_random(unsigned seconds) {
    OVERLAPPED_ENTRY entries[MAX_BATCH];
    bool registered[SOCKETS] = {false}, enabled[SOCKETS] = {false};
    unsigned long calls = 0;
    int orphan = -1;
    time_t end = time(NULL) + seconds;
    HANDLE port = make_port();
    CHECK(port);
    failures = 0;
    while (time(NULL) < end || calls < 10000) {
        int number = rand_r(&seed) % SOCKETS;
        UINT8 operation = (UINT8)(1u << rand_r(&seed) % 3);
        no_watch = rand_r(&seed) % 2 ? ENOMEM : ENOSPC;
        chance = rand_r(&seed) % 2 ? 0 : 100;
        DWORD result = apply_one(port, number, operation);
        if (result == 0) {
            CHECK(registered[number] || operation == SOCK_NOTIFY_OP_ENABLE);
            enabled[number] = operation == SOCK_NOTIFY_OP_ENABLE;
            registered[number] = operation != SOCK_NOTIFY_OP_REMOVE;
        } else if (result == ENOENT) {
            CHECK(!registered[number] && operation != SOCK_NOTIFY_OP_ENABLE);
        } else {
            CHECK(chance && (result == ENOMEM || result == ENOSPC));
        }
        if (result == 0 && operation == SOCK_NOTIFY_OP_REMOVE) {
            bool removed = false;
            UINT32 count = dequeue_now(port, entries);
            for (UINT32 i = 0; i < count; i++) {
                size_t found = entries[i].lpCompletionKey & ~KEY;
                if (found == (size_t)number) {
                    CHECK(!removed && entries[i].dwNumberOfBytesTransferred == SOCK_NOTIFY_EVENT_REMOVE);
                    removed = true;
                } else {
                    CHECK(found < SOCKETS && enabled[found]);
                    enabled[found] = false;
                }
            }
            CHECK(removed);
        }
        if (rand_r(&seed) % 8 == 0) {
            expect(port, enabled);
            memset(enabled, false, sizeof enabled);
        }
        if (rand_r(&seed) % 64 == 0) {
            if (orphan >= 0)
                close(orphan);
            orphan = -1;
            if (rand_r(&seed) % 2) {
                orphan = make_orphan(port);
                if (rand_r(&seed) % 2) {
                    for (int i = 0; i < 2 * ORPHAN_REPORTS; i++) {
                        expect(port, enabled);
                        memset(enabled, false, sizeof enabled);
                    }
                }
            }
        }
        calls++;
    }
    chance = 0;
    CHECK(failures > 100 && rebuilds(port) > 0);
    if (orphan >= 0)
        close(orphan);
    CHECK(CloseHandle(port));
    return calls;
}

int main(int count, char **arguments) {
    unsigned seconds = count > 1 ? (unsigned)atoi(arguments[1]) : 1;
    alarm(seconds + 120);
    for (int n = 0; n < SOCKETS; n++) {
        int sock = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
        sockets[n] = dup2(sock, FIRST_NUMBER + n * STEP);
        CHECK(sockets[n] >= 0);
        close(sock);
    }
    time_passes();
    const int errors[] = {ENOMEM, ENOSPC};
    for (int i = 0; i < 2; i++) {
        no_watch = errors[i];
        create_without_resources();
        register_without_resources();
        post_without_memory();
        remove_without_memory();
        rebuild_without_resources();
        fork_without_resources();
    }
    unsigned long calls = at_random(seconds);
    printf("%lu calls at random, %ld of them short of something\n", calls, failures);
    return 0;
}
