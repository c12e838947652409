/* Threads hammer ports: they register, re-arm, write, close, remove, post, dequeue, and open and close ports, all at once. One translation
 * unit with the port, to be built with a sanitizer, which sees what the checks below do not.
 *
 *     stress SECONDS
 *
 * What is checked:
 *   - A one-shot registration is delivered at most once for each ENABLE (`allowed`), to one thread at a time (`owned`).
 *   - What is sent is delivered: those who talk wait for each echo. A hang is a failure; an alarm ends it.
 *   - Nothing reaches the loners, to whom nobody sends, though they share descriptors with those who talk.
 *   - One REMOVE for each successful removal.
 *   - Packets of one thread arrive in their order where one thread dequeues, and all of them arrive.
 *   - Each of a few packets wakes a thread of its own: no wake-up is lost (`meet`).
 *   - Closing a port ends every wait on it.
 *   - A child that is forked in the midst of it can use the ports that it inherits, or close them.
 */

#include "check.h"

#include <sched.h>
#include <sys/epoll.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "abi.h"

/* PORT is the provider's translation unit, if it is another. */
#ifdef PORT
#include PORT
#else
/* ThreadSanitizer takes descriptors for memory, and would call it a race that one thread closes a socket while the port tells the kernel
 * about it. That race is the port's trade, and the kernel is the referee. Memory is watched all the better: with the system call
 * itself, epoll_ctl no longer counts as synchronisation between threads. */
static int unwatched_epoll_ctl(int epoll, int operation, int descriptor, struct epoll_event *event) {
    return (int)syscall(SYS_epoll_ctl, epoll, operation, descriptor, event);
}
#define epoll_ctl unwatched_epoll_ctl
#include "epoll_port.c"
#endif

enum { DEQUEUERS = 4, TALKERS = 4, LONERS = 3, POSTERS = 2, WAITERS = 3, TEAM = 3, BATCH = 3, OWNERS = 1024 };

#define ONESHOT (SOCK_NOTIFY_TRIGGER_LEVEL | SOCK_NOTIFY_TRIGGER_ONESHOT)
#define IN_AND_HANGUP (SOCK_NOTIFY_REGISTER_EVENT_IN | SOCK_NOTIFY_REGISTER_EVENT_HANGUP)
#define REGISTERED HIGHEST_BIT
#define EXIT (HIGHEST_BIT >> 1)

static atomic_bool stop;
static atomic_ulong echoes, talks, silences, orphans, posts, meetings, ports_closed, children;
static HANDLE shared, lane, meeting_place;
static pthread_barrier_t all_here;
static _Atomic(HANDLE) short_lived;

/* Whoever has registered a socket. Its key says which place it has in the table, and is another for each socket. */
typedef struct {
    _Atomic(ULONG_PTR) key;
    atomic_int descriptor;
    atomic_int allowed; /* notifications */
    atomic_int owned;
    atomic_int removed;
    bool silent;
} owner_t;

static owner_t owners[OWNERS];
static _Atomic(ULONG_PTR) lives;

static owner_t *new_owner(size_t place, int descriptor) {
    owner_t *owner = &owners[place];
    atomic_store(&owner->descriptor, descriptor);
    atomic_store(&owner->allowed, 1);
    atomic_store(&owner->removed, 0);
    atomic_store(&owner->key, REGISTERED | atomic_fetch_add(&lives, 1) * OWNERS | place);
    return owner;
}

static owner_t *owner_of(ULONG_PTR key) {
    owner_t *owner = &owners[key % OWNERS];
    return key & REGISTERED && atomic_load(&owner->key) == key ? owner : NULL;
}

static SOCK_NOTIFY_REGISTRATION order(owner_t *owner, UINT8 operation, UINT8 trigger) {
    return (SOCK_NOTIFY_REGISTRATION){
        .socket = (SOCKET)atomic_load(&owner->descriptor),
        .completionKey = (PVOID)atomic_load(&owner->key),
        .eventFilter = IN_AND_HANGUP,
        .operation = operation,
        .triggerFlags = trigger,
    };
}

static DWORD apply_now(owner_t *owner, UINT8 operation, UINT8 trigger) {
    SOCK_NOTIFY_REGISTRATION registration = order(owner, operation, trigger);
    CHECK(ProcessSocketNotificationsNs(shared, 1, &registration, 0, 0, NULL, NULL) == ERROR_SUCCESS);
    return registration.registrationResult;
}

/* What a notification's owner does with it: echo, and ask for the next one or for the end. */
static UINT8 serve(owner_t *owner, DWORD events) {
    if (events & SOCK_NOTIFY_EVENT_REMOVE) {
        CHECK(atomic_fetch_add(&owner->removed, 1) == 0);
        return SOCK_NOTIFY_OP_NONE;
    }
    CHECK(!owner->silent);
    CHECK(atomic_exchange(&owner->owned, 1) == 0);
    CHECK(atomic_fetch_sub(&owner->allowed, 1) == 1);
    int descriptor = atomic_load(&owner->descriptor);
    char byte;
    ssize_t size = recv(descriptor, &byte, 1, MSG_DONTWAIT);
    CHECK(size >= 0 || errno == EAGAIN); /* a report may be older than the read that drained the socket */
    if (size == 1)
        CHECK(send(descriptor, &byte, 1, MSG_NOSIGNAL | MSG_DONTWAIT) == 1);
    atomic_store(&owner->allowed, size != 0);
    atomic_store(&owner->owned, 0);
    return size ? SOCK_NOTIFY_OP_ENABLE : SOCK_NOTIFY_OP_REMOVE;
}

/* Every other thread makes the packed form of the call, which re-arms by itself. */
static void *dequeue_all(void *number) {
    SOCK_NOTIFY_REGISTRATION changes[BATCH];
    OVERLAPPED_ENTRY entries[BATCH];
    FAILED_REGISTRATION failures[2 * BATCH];
    int64_t words[BATCH];
    PACKED_CALL call = {.port = shared, .packed = (const char *)changes, .failures = failures, .timeoutNs = -1,
                        .completionCount = BATCH, .entries = entries, .words = words};
    UINT32 count = 0, change_count = 0;
    bool leaving = false;
    while (!leaving) {
        if ((uintptr_t)number % 2) {
            call.size = change_count * sizeof *changes;
            int64_t value = ProcessPackedCall(&call);
            CHECK(value > 0 && value <= BATCH); /* and no failures in the upper half */
            count = (UINT32)value;
            CHECK(count == call.dequeued);
        } else {
            CHECK(ProcessSocketNotificationsNs(shared, change_count, change_count ? changes : NULL, -1, BATCH, entries, &count) ==
                  ERROR_SUCCESS);
            for (UINT32 i = 0; i < change_count; i++)
                CHECK(changes[i].registrationResult == ERROR_SUCCESS);
        }
        CHECK(count > 0 && count <= BATCH);
        change_count = 0;
        for (UINT32 i = 0; i < count; i++) {
            owner_t *owner = owner_of(entries[i].lpCompletionKey);
            UINT8 operation = owner ? serve(owner, entries[i].dwNumberOfBytesTransferred) : SOCK_NOTIFY_OP_NONE;
            if (operation == SOCK_NOTIFY_OP_ENABLE && (uintptr_t)number % 2)
                continue; /* the next call does that unasked */
            if (operation != SOCK_NOTIFY_OP_NONE)
                changes[change_count++] = order(owner, operation, ONESHOT);
            leaving |= entries[i].lpCompletionKey == EXIT;
        }
    }
    CHECK(PostQueuedCompletionStatus(shared, 0, EXIT, NULL)); /* the next one, too */
    return NULL;
}

/* Opens a connection, has some echoes, hangs up, and closes at the notice of removal. */
static void *talk(void *place) {
    unsigned seed = (unsigned)(uintptr_t)place;
    while (!atomic_load(&stop)) {
        int ends[2];
        CHECK(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) == 0);
        owner_t *owner = new_owner((size_t)place, ends[0]);
        CHECK(apply_now(owner, SOCK_NOTIFY_OP_ENABLE, ONESHOT) == 0);
        for (int i = rand_r(&seed) % 5; i > 0; i--) {
            char sent = (char)i, received;
            CHECK(send(ends[1], &sent, 1, MSG_NOSIGNAL) == 1);
            CHECK(recv(ends[1], &received, 1, 0) == 1 && received == sent);
            atomic_fetch_add(&echoes, 1);
        }
        CHECK(shutdown(ends[1], SHUT_WR) == 0);
        while (!atomic_load(&owner->removed))
            sched_yield();
        close(ends[0]);
        close(ends[1]);
        atomic_fetch_add(&talks, 1);
    }
    return NULL;
}

/* Registers sockets to which nothing is sent, changes them as it likes, and ends them in every way. */
static void *be_silent(void *place) {
    static const UINT8 triggers[] = {
        ONESHOT,
        SOCK_NOTIFY_TRIGGER_LEVEL | SOCK_NOTIFY_TRIGGER_PERSISTENT,
        SOCK_NOTIFY_TRIGGER_EDGE | SOCK_NOTIFY_TRIGGER_ONESHOT,
        SOCK_NOTIFY_TRIGGER_EDGE | SOCK_NOTIFY_TRIGGER_PERSISTENT,
    };
    unsigned seed = (unsigned)(uintptr_t)place;
    while (!atomic_load(&stop)) {
        int ends[2], duplicate;
        CHECK(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) == 0);
        owner_t *owner = new_owner((size_t)place, ends[0]);
        CHECK(apply_now(owner, SOCK_NOTIFY_OP_ENABLE, triggers[rand_r(&seed) % 4]) == 0);
        for (int i = rand_r(&seed) % 4; i > 0; i--) {
            CHECK(apply_now(owner, SOCK_NOTIFY_OP_DISABLE, 0) == 0);
            if (rand_r(&seed) % 2)
                CHECK(apply_now(owner, SOCK_NOTIFY_OP_ENABLE, triggers[rand_r(&seed) % 4]) == 0);
        }
        switch (rand_r(&seed) % 8) {
        case 0: /* it lives on in a duplicate, on which something happens */
            duplicate = dup(ends[0]);
            CHECK(duplicate >= 0);
            close(ends[0]);
            CHECK(apply_now(owner, SOCK_NOTIFY_OP_REMOVE, 0) == ENOENT);
            CHECK(send(ends[1], "x", 1, MSG_NOSIGNAL) == 1);
            for (int i = 0; i < 50; i++)
                sched_yield();
            close(duplicate);
            atomic_fetch_add(&orphans, 1);
            break;
        case 1:
        case 2:
        case 3:
            CHECK(apply_now(owner, SOCK_NOTIFY_OP_REMOVE, 0) == 0);
            while (!atomic_load(&owner->removed))
                sched_yield();
            close(ends[0]);
            break;
        default: /* without a removal */
            close(ends[0]);
        }
        close(ends[1]);
        atomic_fetch_add(&silences, 1);
    }
    return NULL;
}

static void *post_numbers(void *poster) {
    DWORD number = 0;
    while (!atomic_load(&stop)) {
        for (int i = 0; i < 100; i++)
            CHECK(PostQueuedCompletionStatus(lane, number++, (ULONG_PTR)poster, NULL));
        sched_yield();
    }
    CHECK(PostQueuedCompletionStatus(lane, number, (ULONG_PTR)poster | EXIT, NULL));
    return NULL;
}

static void *count_numbers(void *unused) {
    DWORD next[POSTERS] = {0};
    OVERLAPPED_ENTRY entries[MAX_BATCH];
    UINT32 count;
    for (int left = POSTERS; left;) {
        CHECK(ProcessSocketNotificationsNs(lane, 0, NULL, -1, MAX_BATCH, entries, &count) == ERROR_SUCCESS);
        for (UINT32 i = 0; i < count; i++) {
            ULONG_PTR poster = entries[i].lpCompletionKey & ~EXIT;
            CHECK(poster < POSTERS && entries[i].dwNumberOfBytesTransferred == next[poster]);
            if (entries[i].lpCompletionKey & EXIT)
                left--;
            else
                next[poster]++;
        }
        atomic_fetch_add(&posts, count);
    }
    return unused;
}

/* Each takes one packet and waits until everybody has one. */
static void *meet(void *unused) {
    OVERLAPPED_ENTRY entry;
    UINT32 count;
    do {
        CHECK(ProcessSocketNotificationsNs(meeting_place, 0, NULL, -1, 1, &entry, &count) == ERROR_SUCCESS && count == 1);
        pthread_barrier_wait(&all_here);
    } while (entry.lpCompletionKey != EXIT);
    return unused;
}

static void *call_meetings(void *unused) {
    bool last;
    do {
        last = atomic_load(&stop);
        for (int i = 0; i < TEAM; i++)
            CHECK(PostQueuedCompletionStatus(meeting_place, 0, last ? EXIT : 1, NULL));
        pthread_barrier_wait(&all_here);
        atomic_fetch_add(&meetings, 1);
    } while (!last);
    return unused;
}

static void *wait_for_the_end(void *unused) {
    OVERLAPPED_ENTRY entries[BATCH];
    UINT32 count;
    while (!atomic_load(&stop)) {
        HANDLE port = atomic_load(&short_lived);
        DWORD result = port ? ProcessSocketNotificationsNs(port, 0, NULL, -1, BATCH, entries, &count) : ERROR_INVALID_HANDLE;
        CHECK(result == ERROR_SUCCESS || result == ERROR_ABANDONED_WAIT_0 || result == ERROR_INVALID_HANDLE);
        if (result != ERROR_SUCCESS)
            sched_yield();
    }
    return unused;
}

static void *open_and_close(void *unused) {
    unsigned seed = 1;
    int ends[2];
    CHECK(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) == 0);
    while (!atomic_load(&stop)) {
        HANDLE port = CreateIoCompletionPort((HANDLE)UINTPTR_MAX, NULL, 0, 0);
        CHECK(port);
        atomic_store(&short_lived, port);
        SOCK_NOTIFY_REGISTRATION registration = {
            .socket = (SOCKET)ends[0],
            .completionKey = (PVOID)REGISTERED,
            .eventFilter = SOCK_NOTIFY_REGISTER_EVENT_OUT,
            .operation = SOCK_NOTIFY_OP_ENABLE,
            .triggerFlags = ONESHOT,
        };
        CHECK(ProcessSocketNotificationsNs(port, 1, &registration, 0, 0, NULL, NULL) == ERROR_SUCCESS);
        CHECK(registration.registrationResult == ERROR_SUCCESS);
        for (int i = rand_r(&seed) % 20; i > 0; i--) {
            CHECK(PostQueuedCompletionStatus(port, 0, 1, NULL));
            sched_yield();
        }
        PORT_COUNTERS counters;
        CHECK(GetPortCounters(port, &counters) && counters.registrations == 1);
        CHECK(CloseHandle(port));
        CHECK(!CloseHandle(port) && errno == EBADF);
        CHECK(!PostQueuedCompletionStatus(port, 0, 1, NULL) && errno == EBADF);
        CHECK(!GetPortCounters(port, &counters) && errno == EBADF);
        CHECK(ProcessSocketNotificationsNs(port, 1, &registration, 0, 0, NULL, NULL) == ERROR_INVALID_HANDLE);
        atomic_fetch_add(&ports_closed, 1);
    }
    close(ends[0]);
    close(ends[1]);
    return unused;
}

/* Nothing is read in the child, for the sockets are the parent's as well. */
static void *fork_children(void *unused) {
    OVERLAPPED_ENTRY entries[BATCH];
    UINT32 count;
    for (unsigned long i = 0; !atomic_load(&stop); i++) {
        pid_t child = fork();
        CHECK(child >= 0);
        if (!child) {
            alarm(60);
            DWORD result = i % 2 ? WAIT_TIMEOUT : ProcessSocketNotificationsNs(shared, 0, NULL, 1000, BATCH, entries, &count);
            CHECK(result == ERROR_SUCCESS || result == WAIT_TIMEOUT || result == WAIT_IO_COMPLETION);
            CHECK(PostQueuedCompletionStatus(meeting_place, 5, 1, NULL));
            do
                CHECK(ProcessSocketNotificationsNs(meeting_place, 0, NULL, -1, 1, entries, &count) == ERROR_SUCCESS && count == 1);
            while (entries[0].dwNumberOfBytesTransferred != 5);
            CHECK(CloseHandle(shared) && CloseHandle(lane) && CloseHandle(meeting_place));
            HANDLE own = CreateIoCompletionPort((HANDLE)UINTPTR_MAX, NULL, 0, 0);
            CHECK(own && PostQueuedCompletionStatus(own, 1, 2, NULL));
            CHECK(ProcessSocketNotificationsNs(own, 0, NULL, -1, BATCH, entries, &count) == ERROR_SUCCESS && count == 1);
            CHECK(entries[0].lpCompletionKey == 2 && CloseHandle(own));
            _exit(0);
        }
        int status;
        CHECK(waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0);
        atomic_fetch_add(&children, 1);
    }
    return unused;
}

static pthread_t threads[64];
static size_t started;

static void start(void *(*work)(void *), size_t count, size_t first) {
    for (size_t i = 0; i < count; i++)
        CHECK(pthread_create(&threads[started++], NULL, work, (void *)(first + i)) == 0);
}

static void join_from(size_t first) {
    while (started > first)
        CHECK(pthread_join(threads[--started], NULL) == 0);
}

int main(int count, char **arguments) {
    unsigned seconds = count > 1 ? (unsigned)atoi(arguments[1]) : 5;
    alarm(seconds + 120);
    shared = CreateIoCompletionPort((HANDLE)UINTPTR_MAX, NULL, 0, 0);
    lane = CreateIoCompletionPort((HANDLE)UINTPTR_MAX, NULL, 0, 0);
    meeting_place = CreateIoCompletionPort((HANDLE)UINTPTR_MAX, NULL, 0, 0);
    CHECK(shared && lane && meeting_place);
    CHECK(pthread_barrier_init(&all_here, NULL, TEAM + 1) == 0);
    for (size_t i = 0; i < LONERS; i++)
        owners[TALKERS + i].silent = true;
    start(dequeue_all, DEQUEUERS, 0);
    start(talk, TALKERS, 0);
    start(be_silent, LONERS, TALKERS);
    start(post_numbers, POSTERS, 0);
    start(count_numbers, 1, 0);
    start(meet, TEAM, 0);
    start(call_meetings, 1, 0);
    start(wait_for_the_end, WAITERS, 0);
    start(open_and_close, 1, 0);
    start(fork_children, 1, 0);
    sleep(seconds);
    atomic_store(&stop, true);
    join_from(DEQUEUERS);
    CHECK(PostQueuedCompletionStatus(shared, 0, EXIT, NULL));
    join_from(0);
    PORT_COUNTERS counters;
    CHECK(GetPortCounters(shared, &counters));
    CHECK(echoes && talks && silences && orphans && posts && meetings && ports_closed && children);
    printf("%lu echoes, %lu connections, %lu silent ones, %lu orphans, %lu packets, %lu meetings, %lu ports, %lu children; "
           "stale %lu, withheld %lu, rebuilds %lu\n",
           atomic_load(&echoes), atomic_load(&talks), atomic_load(&silences), atomic_load(&orphans), atomic_load(&posts),
           atomic_load(&meetings), atomic_load(&ports_closed), atomic_load(&children), (unsigned long)counters.stale, (unsigned long)counters.withheld,
           (unsigned long)counters.rebuilds);
    CHECK(CloseHandle(shared) && CloseHandle(lane) && CloseHandle(meeting_place));
    return 0;
}
