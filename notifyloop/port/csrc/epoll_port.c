/* Winsock's socket state notifications over epoll and an eventfd.
 *
 * What Linux offers: an epoll set keeps (open file, descriptor) pairs; it reports level- or edge-triggered readiness, as often as asked
 * or once (EPOLLONESHOT), and any number of threads may wait on it. It has no packets that a program posts, no notice that a
 * registration is gone, and a change of a registration is a system call of its own.
 *
 * What we make of it: one port = one epoll set + one queue of packets (posted ones and REMOVE notices, first in first out) + one
 * eventfd that wakes a waiting thread for the queue. One record per descriptor says what its owner ordered (`state`) and what the
 * kernel was told (`kernel`, 0 = nothing). The two may differ, and that is the point:
 *
 *   Lazy disarm. A one-shot registration that has been delivered stays armed in the kernel. Its owner nearly always enables it again
 *   unchanged, and then there is nothing to tell the kernel. Only if the kernel reports it while it is not enabled is the report
 *   withheld and the descriptor parked: it stays in the set, so that the set knows whether the descriptor still names the same file, but
 *   reports nothing. So a steady stream costs no epoll_ctl at all. When several threads wait, a descriptor left armed would wake them
 *   for nothing, so then the kernel's own EPOLLONESHOT is used.
 *
 *   Generations. What epoll carries for us is (generation, descriptor). The generation is drawn anew with every registration, so a
 *   report that was already on its way when its registration was removed, or when its descriptor was closed and reused, matches no
 *   record and is dropped.
 *
 *   Orphans. epoll drops a file when its last descriptor is closed. If a duplicate survives (a forked child holds one), the set goes on
 *   reporting a descriptor that can no longer be named in epoll_ctl. Reports without a record that keep coming are that; the set is then
 *   built anew from the records. Who knows that a fork has made duplicates of a descriptor has it taken out before it is closed.
 *
 *   Forks. A forked child shares the parent's set: what it changed there would be changed for the parent. So the first that enters an
 *   inherited port builds the child a set of its own, of what was registered when it was forked.
 *
 * The rules that the caller sees, and where they differ from Windows, are in docs/port.md. Results of single registrations are errno
 * values here: what a program can act upon.
 *
 * Whoever asked hears of what failed: a registration by its result, and then the call does not wait; a wait by the call. What nobody
 * asked for is tried again. While that fails, the call returns to its caller now and then, for it may have signals to handle.
 *
 * Locking: one mutex per port guards everything but the wait itself. A handle is looked up, never dereferenced, so a call on a closed
 * port fails instead of touching freed memory; CloseHandle waits until the last thread has left. A fork takes all the mutexes, so that
 * the child finds every port whole.
 */

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "set_members.h"

/* Wheels are built with the headers of an old Linux, and run on new ones. Since 5.1 a new call has one number everywhere, but for what
 * some architectures add to all of theirs; a kernel that does not know it says so. */
#if !defined SYS_epoll_pwait2 && !defined __alpha__ && !defined __mips__ && !defined __ia64__ && !(defined __x86_64__ && defined __ILP32__)
#define SYS_epoll_pwait2 441
#endif

/* LOST: closed behind its owner's back, who does not know yet. SPENT: disabled by a notification, which may enable it again. */
enum { ABSENT, LOST, ENABLED, DISABLED, SPENT };
enum { MAX_PORTS = 1 << 16, MAX_BATCH = 512, ORPHAN_REPORTS = 8 };

#define HIGHEST_BIT ((ULONG_PTR)1 << (8 * sizeof(ULONG_PTR) - 1))
#define LONGEST (INT64_MAX / 2) /* nanoseconds that can be added to the time */
#define PAUSE 1000000           /* nanoseconds until what failed is tried again */

/* What epoll carries for the eventfd has this bit, which no descriptor's number has. */
#define WAKE_UP (UINT64_C(1) << 31)

#define KERNEL_ARMED (1u << 27) /* a bit that epoll does not use: tells "armed with an empty filter" from "not in the set" */
#define PARKED (KERNEL_ARMED | EPOLLET | EPOLLONESHOT) /* epoll cannot mask errors and hang-up: these may be reported, once */

typedef struct {
    ULONG_PTR key;       /* the owner's completion key, returned verbatim */
    uint32_t generation; /* 0 = never used */
    uint32_t kernel;     /* what the epoll set holds, with KERNEL_ARMED */
    uint32_t forks;      /* before it was registered; a later one has made a duplicate of the descriptor */
    UINT16 filter;
    UINT8 trigger;
    UINT8 state;
    bool fired;     /* the kernel's own one-shot has fired: it reports nothing until told again */
    bool connected; /* seen as more than a fresh stream socket */
    UINT8 believed; /* times that it was enabled again without asking the kernel */
} record_t;

typedef struct {
    _Atomic(uintptr_t) handle; /* 0 = free or closing */
    _Atomic(uint32_t) users;   /* threads inside a call */
    _Atomic(bool) closing;
    pthread_mutex_t lock;
    pthread_cond_t left;
    uint32_t process; /* whose the descriptors are, as `this_process` counts */
    int epoll;
    int wake;
    uint64_t wake_up; /* what epoll carries for `wake`: another for each port */
    uint32_t waiters;
    uint32_t generation;
    uint32_t stale_run;
    bool queue_last;
    bool unwoken;    /* there are packets that nobody could be woken for */
    bool unarmed;    /* there are persistent registrations that could not be armed again */
    int64_t left_at; /* when a wait last returned */
    record_t *records; /* by descriptor */
    size_t record_count;
    OVERLAPPED_ENTRY *queue; /* ring; its size is a power of two */
    size_t queue_size, queue_head, queue_length;
    PORT_COUNTERS counters;
} port_t;

/* Ports are recycled, never freed: a late caller with an old handle finds a port whose handle differs. */
static _Atomic(port_t *) ports[MAX_PORTS];
static uintptr_t port_count = 1; /* made so far; none has the number 0 */
static pthread_mutex_t ports_lock = PTHREAD_MUTEX_INITIALIZER;
static uintptr_t port_generation;
static pthread_once_t fork_once = PTHREAD_ONCE_INIT;
static uint32_t this_process; /* how many forks it is away from the first */
uint32_t fork_count;          /* both change with every mutex held */
static _Atomic(bool) no_pwait2; /* a kernel before 5.11, or a sandbox that does not know the call */

static DWORD adopt(port_t *port);
static void tear_down(port_t *port);

static void before_fork(void) {
    pthread_mutex_lock(&ports_lock);
    for (uintptr_t i = 1; i < port_count; i++)
        pthread_mutex_lock(&atomic_load(&ports[i])->lock);
}

static void after_fork_in_parent(void) {
    fork_count++;
    for (uintptr_t i = 1; i < port_count; i++)
        pthread_mutex_unlock(&atomic_load(&ports[i])->lock);
    pthread_mutex_unlock(&ports_lock);
}

/* The threads that were inside exist in the parent only, and with them whoever was about to close a port. */
static void after_fork_in_child(void) {
    this_process++;
    fork_count++;
    for (uintptr_t i = 1; i < port_count; i++) {
        port_t *port = atomic_load(&ports[i]);
        port->waiters = 0;
        atomic_store(&port->users, 0);
        pthread_cond_init(&port->left, NULL);
        pthread_mutex_unlock(&port->lock);
        if (atomic_load(&port->closing))
            tear_down(port);
    }
    pthread_mutex_unlock(&ports_lock);
}

static void watch_forks(void) {
    pthread_atfork(before_fork, after_fork_in_parent, after_fork_in_child);
}

/* Wakes one waiting thread. The eventfd is watched edge-triggered: every write is an edge for one thread, and nobody has to read it. */
static bool wake_one(port_t *port) {
    uint64_t one = 1;
    while (write(port->wake, &one, sizeof one) < 0)
        if (errno != EINTR)
            return false;
    return true;
}

static void wake_for_packets(port_t *port) {
    port->unwoken = port->waiters && !wake_one(port);
}

/* Unlocks; from then on the port may be somebody else's. */
static void step_out(port_t *port) {
    if (atomic_fetch_sub(&port->users, 1) == 1 && atomic_load(&port->closing))
        pthread_cond_broadcast(&port->left);
    pthread_mutex_unlock(&port->lock);
}

/* What every call ends with. A thread that leaves a port that is being closed wakes the next. */
static void leave(port_t *port) {
    if (port->unwoken)
        wake_for_packets(port);
    if (atomic_load(&port->closing) && atomic_load(&port->users) > 1 && port->process == this_process)
        wake_one(port);
    step_out(port);
}

/* Finds the port, and locks it, be it this process's own yet or not. */
static port_t *enter_as_it_is(HANDLE handle) {
    port_t *port = handle ? atomic_load(&ports[(uintptr_t)handle % MAX_PORTS]) : NULL;
    if (!port)
        return NULL;
    atomic_fetch_add(&port->users, 1);
    pthread_mutex_lock(&port->lock);
    if (atomic_load(&port->handle) == (uintptr_t)handle)
        return port;
    step_out(port);
    return NULL;
}

/* What every call begins with. */
static DWORD enter(HANDLE handle, port_t **found) {
    port_t *port = *found = enter_as_it_is(handle);
    if (!port)
        return ERROR_INVALID_HANDLE;
    DWORD error = port->process == this_process ? ERROR_SUCCESS : adopt(port);
    if (error)
        leave(port);
    return error;
}

/* ---- the queue of packets ---------------------------------------------------------------------------------------------------- */

static bool grow_queue(port_t *port) {
    size_t size = port->queue_size ? port->queue_size * 2 : 16;
    OVERLAPPED_ENTRY *queue = malloc(size * sizeof *queue);
    if (!queue)
        return false;
    for (size_t i = 0; i < port->queue_length; i++)
        queue[i] = port->queue[(port->queue_head + i) & (port->queue_size - 1)];
    free(port->queue);
    port->queue = queue;
    port->queue_size = size;
    port->queue_head = 0;
    return true;
}

/* Makes room for so many more packets. What must not fail later is reserved before anything is changed. */
static bool reserve_packets(port_t *port, size_t count) {
    while (port->queue_size - port->queue_length < count)
        if (!grow_queue(port))
            return false;
    return true;
}

static void push_packet(port_t *port, OVERLAPPED_ENTRY packet) {
    port->queue[(port->queue_head + port->queue_length++) & (port->queue_size - 1)] = packet;
    wake_for_packets(port);
}

static ULONG pop_packets(port_t *port, OVERLAPPED_ENTRY *entries, ULONG room) {
    ULONG count = 0;
    while (count < room && port->queue_length) {
        entries[count++] = port->queue[port->queue_head];
        port->queue_head = (port->queue_head + 1) & (port->queue_size - 1);
        port->queue_length--;
    }
    if (port->queue_length) /* somebody else may take the rest */
        wake_for_packets(port);
    return count;
}

/* ---- registrations ----------------------------------------------------------------------------------------------------------- */

static int tell(port_t *port, int epoll, int operation, int descriptor, const record_t *record, uint32_t events) {
    struct epoll_event event = {
        .events = events & ~KERNEL_ARMED,
        .data.u64 = (uint64_t)record->generation << 32 | (uint32_t)descriptor,
    };
    port->counters.kernel_changes++;
    return epoll_ctl(epoll, operation, descriptor, &event) < 0 ? errno : 0;
}

/* Whether there may be another answer later. The others say that the descriptor was closed, or names another file by now. */
static bool passes(int error) {
    return error == ENOMEM || error == ENOSPC;
}

static int change(port_t *port, int operation, int descriptor, record_t *record, uint32_t events) {
    int error = tell(port, port->epoll, operation, descriptor, record, events);
    if (!error) {
        record->kernel = events;
        record->fired = false;
    } else if (operation == EPOLL_CTL_MOD && !passes(error)) {
        record->state = LOST;
    }
    return error;
}

static uint32_t kernel_events(port_t *port, UINT16 filter, UINT8 trigger) {
    uint32_t events = KERNEL_ARMED;
    if (filter & SOCK_NOTIFY_REGISTER_EVENT_IN)
        events |= EPOLLIN;
    if (filter & SOCK_NOTIFY_REGISTER_EVENT_OUT)
        events |= EPOLLOUT;
    if (filter & SOCK_NOTIFY_REGISTER_EVENT_HANGUP)
        events |= EPOLLRDHUP;
    if (trigger & SOCK_NOTIFY_TRIGGER_EDGE)
        events |= EPOLLET;
    /* An edge that fires again while its owner is at work would be lost by a lazy disarm: only the kernel can hold it back. */
    if ((trigger & SOCK_NOTIFY_TRIGGER_ONESHOT) && (port->waiters || (trigger & SOCK_NOTIFY_TRIGGER_EDGE)))
        events |= EPOLLONESHOT;
    return events;
}

static record_t *record_of(port_t *port, int descriptor) {
    size_t needed = (size_t)descriptor + 1;
    if (needed > port->record_count) {
        if (fcntl(descriptor, F_GETFD) < 0) /* memory up to any number that somebody makes up would be much */
            return NULL;
        size_t count = port->record_count ? port->record_count : 64;
        while (count < needed)
            count *= 2;
        if (count > SIZE_MAX / sizeof(record_t)) {
            errno = ENOMEM;
            return NULL;
        }
        record_t *records = realloc(port->records, count * sizeof *records);
        if (!records)
            return NULL;
        memset(records + port->record_count, 0, (count - port->record_count) * sizeof *records);
        port->records = records;
        port->record_count = count;
    }
    return &port->records[descriptor];
}

/* Enables what is registered. */
static int arm(port_t *port, int descriptor, record_t *record, UINT16 filter, UINT8 trigger) {
    uint32_t events = kernel_events(port, filter, trigger), difference = record->kernel ^ events;
    if (trigger & SOCK_NOTIFY_TRIGGER_ONESHOT) /* EPOLLONESHOT more or less is no difference while it has not fired */
        difference &= ~(uint32_t)EPOLLONESHOT;
    bool armed = !difference && !record->fired;
    int error = armed ? 0 : change(port, EPOLL_CTL_MOD, descriptor, record, events);
    if (error)
        return error;
    port->counters.re_arms += record->state != ENABLED;
    record->filter = filter;
    record->trigger = trigger;
    record->state = ENABLED;
    return 0;
}

static bool valid_trigger(UINT8 trigger) {
    bool level = trigger & SOCK_NOTIFY_TRIGGER_LEVEL, edge = trigger & SOCK_NOTIFY_TRIGGER_EDGE;
    bool once = trigger & SOCK_NOTIFY_TRIGGER_ONESHOT, always = trigger & SOCK_NOTIFY_TRIGGER_PERSISTENT;
    return level != edge && once != always && !(trigger & ~SOCK_NOTIFY_TRIGGER_ALL);
}

static int enable(port_t *port, int descriptor, const SOCK_NOTIFY_REGISTRATION *registration) {
    ULONG_PTR key = (ULONG_PTR)registration->completionKey;
    if (!valid_trigger(registration->triggerFlags) || registration->eventFilter & ~SOCK_NOTIFY_REGISTER_EVENTS_ALL)
        return EINVAL;
    record_t *record = record_of(port, descriptor);
    if (!record)
        return errno;
    bool renew = registration->operation == SOCK_NOTIFY_OP_RENEW;
    if (renew && record->state > LOST && record->key == key) {
        int error = change(port, EPOLL_CTL_MOD, descriptor, record,
                           kernel_events(port, registration->eventFilter, registration->triggerFlags));
        if (passes(error))
            return error;
    }
    if (record->state == LOST && record->key == key && !renew)
        return ENOENT; /* what has the descriptor now is not what was registered */
    if (record->state > LOST && record->key == key)
        return arm(port, descriptor, record, registration->eventFilter, registration->triggerFlags);

    /* A new registration, or one for a descriptor that was closed and reused: the kernel knows. Another key for a file that is
     * still registered would be a change of key, which takes a REMOVE first. Unless nobody has registered it any more: epoll knows a
     * file by its number, too, and one that lived on in a duplicate may have come back under the old. */
    uint32_t events = kernel_events(port, registration->eventFilter, registration->triggerFlags);
    record_t fresh = {
        .key = key,
        .generation = ++port->generation,
        .forks = fork_count,
        .filter = registration->eventFilter,
        .trigger = registration->triggerFlags,
        .state = ENABLED,
    };
    int error = change(port, EPOLL_CTL_ADD, descriptor, &fresh, events);
    if (error == EEXIST && record->state <= LOST)
        error = change(port, EPOLL_CTL_MOD, descriptor, &fresh, events);
    if (error)
        return error;
    *record = fresh;
    port->counters.registrations++;
    return 0;
}

/* Enables again what this packet has disarmed, unless something else was ordered since. Now and then the kernel is asked whether the
 * descriptor is still the file that was registered: a file that was closed without a word while a duplicate lives is reported for ever. */
static int enable_again(port_t *port, const OVERLAPPED_ENTRY *packet) {
    size_t descriptor = (size_t)packet->Internal - 1; /* of a packet that is no notification: none */
    record_t *record = descriptor < port->record_count ? &port->records[descriptor] : NULL;
    if (!record || record->state != SPENT || record->key != packet->lpCompletionKey)
        return 0;
    if (++record->believed == 0) { /* each 256th time */
        int error = change(port, EPOLL_CTL_MOD, (int)descriptor, record, record->kernel);
        if (error)
            return error;
    }
    return arm(port, (int)descriptor, record, record->filter, record->trigger);
}

static record_t *find(port_t *port, SOCKET descriptor, ULONG_PTR key) {
    record_t *record = descriptor < port->record_count ? &port->records[descriptor] : NULL;
    return record && record->state != ABSENT && record->key == key ? record : NULL;
}

/* The descriptor is about to be closed, or was just now. */
static void forget(port_t *port, SOCKET descriptor, ULONG_PTR key) {
    record_t *record = find(port, descriptor, key);
    if (!record)
        return;
    if (record->forks != fork_count && port->process == this_process) /* to close it would not take it out */
        tell(port, port->epoll, EPOLL_CTL_DEL, (int)descriptor, record, 0);
    record->state = ABSENT;
}

static int apply(port_t *port, const SOCK_NOTIFY_REGISTRATION *registration) {
    if (registration->operation == SOCK_NOTIFY_OP_NONE)
        return 0;
    if (registration->socket > INT_MAX)
        return EBADF;
    int descriptor = (int)registration->socket;
    ULONG_PTR key = (ULONG_PTR)registration->completionKey;
    if (registration->operation == SOCK_NOTIFY_OP_ENABLE || registration->operation == SOCK_NOTIFY_OP_RENEW)
        return enable(port, descriptor, registration);
    if (registration->operation == SOCK_NOTIFY_OP_FORGET) {
        forget(port, registration->socket, key);
        return 0;
    }
    if (registration->operation != SOCK_NOTIFY_OP_DISABLE && registration->operation != SOCK_NOTIFY_OP_REMOVE)
        return EINVAL;
    record_t *record = find(port, registration->socket, key);
    if (!record)
        return ENOENT;
    if (registration->operation == SOCK_NOTIFY_OP_DISABLE) {
        if (record->state == LOST)
            return ENOENT;
        record->state = DISABLED;
        return 0;
    }
    if (!reserve_packets(port, 1))
        return ENOMEM;
    int error = record->state == LOST ? ENOENT : tell(port, port->epoll, EPOLL_CTL_DEL, descriptor, record, 0);
    if (passes(error))
        return error;
    record->state = ABSENT;
    if (error) /* closed behind our back: that deregistered it, without a notice */
        return ENOENT;
    push_packet(port, (OVERLAPPED_ENTRY){.lpCompletionKey = record->key,
                                         .dwNumberOfBytesTransferred = SOCK_NOTIFY_EVENT_REMOVE});
    return 0;
}

/* ---- notifications ----------------------------------------------------------------------------------------------------------- */

/* Linux wakes nobody when a Unix socket is connected. So before that it is writable, as epoll has it: who waits for OUT would wait for
 * the peer's first data. */
static uint32_t before_connect(int descriptor, uint32_t events) {
    int domain;
    socklen_t length = sizeof domain;
    bool unix_socket = getsockopt(descriptor, SOL_SOCKET, SO_DOMAIN, &domain, &length) == 0 && domain == AF_UNIX;
    return unix_socket ? events & EPOLLOUT : 0;
}

/* Is it a hang-up? epoll reports one for stream sockets that were never connected, and for datagram sockets that were shut down locally;
 * Winsock reports nothing. Having been reset looks like never having been connected, but for the reading side's end. */
static uint32_t without_false_hang_up(int descriptor, uint32_t events, bool *connected) {
    int type;
    struct sockaddr_storage peer;
    socklen_t length = sizeof type;
    bool socket = getsockopt(descriptor, SOL_SOCKET, SO_TYPE, &type, &length) == 0;
    if (socket && type != SOCK_STREAM && type != SOCK_SEQPACKET)
        return events & ~(uint32_t)(EPOLLHUP | EPOLLRDHUP);
    if (socket && !(events & (EPOLLERR | EPOLLRDHUP))) {
        /* The report may be older than a call of connect or listen by another thread: look again. poll's bits are epoll's. */
        struct pollfd now = {.fd = descriptor, .events = POLLIN | POLLOUT | POLLRDHUP};
        if (poll(&now, 1, 0) >= 0 && !(now.revents & POLLHUP))
            return (uint32_t)now.revents;
        length = sizeof peer;
        if (!(now.revents & (POLLIN | POLLRDHUP | POLLERR | POLLNVAL)) &&
            getpeername(descriptor, (struct sockaddr *)&peer, &length) < 0 && errno == ENOTCONN)
            return before_connect(descriptor, events);
    }
    *connected = true;
    return events;
}

static DWORD reported_events(const record_t *record, uint32_t events) {
    DWORD mask = 0;
    if (events & (EPOLLIN | EPOLLPRI))
        mask |= SOCK_NOTIFY_EVENT_IN;
    if (events & EPOLLOUT && !(events & EPOLLERR)) /* a failed connect is not writable */
        mask |= SOCK_NOTIFY_EVENT_OUT;
    if (events & (EPOLLRDHUP | EPOLLHUP))
        mask |= SOCK_NOTIFY_EVENT_HANGUP;
    mask &= record->filter;
    /* Hang-up of both directions cannot be masked in epoll. Nobody asked for it, yet it must not be withheld for ever: the socket is
     * of no more use, which is what ERR says. */
    if (events & EPOLLERR || (events & EPOLLHUP && !mask))
        mask |= SOCK_NOTIFY_EVENT_ERR;
    return mask;
}

typedef enum { DELIVERED, WITHHELD, STALE, STUCK } outcome_t; /* STUCK: withheld, and could not be silenced */

/* One report of the kernel becomes a notification, which fills `entry`, or is withheld. */
static outcome_t deliver(port_t *port, const struct epoll_event *event, OVERLAPPED_ENTRY *entry) {
    size_t descriptor = (uint32_t)event->data.u64;
    record_t *record = descriptor < port->record_count ? &port->records[descriptor] : NULL;
    if (!record || record->state <= LOST || record->generation != event->data.u64 >> 32) {
        port->counters.stale++;
        return STALE;
    }
    record->fired = record->kernel & EPOLLONESHOT;
    if (record->state != ENABLED) {
        port->counters.withheld++;
        /* If it was closed, with a duplicate alive, it is an orphan from now on. */
        return !record->fired && passes(change(port, EPOLL_CTL_MOD, (int)descriptor, record, PARKED)) ? STUCK : WITHHELD;
    }
    uint32_t events = event->events, armed = kernel_events(port, record->filter, record->trigger);
    if (events & (EPOLLHUP | EPOLLRDHUP) && !record->connected)
        events = without_false_hang_up((int)descriptor, events, &record->connected);
    DWORD mask = reported_events(record, events);
    if (!mask) { /* fetched before its filter was changed; or no hang-up: watch it for changes only, until there is one */
        uint32_t changes = (armed | EPOLLET) & ~(uint32_t)EPOLLONESHOT;
        /* If it is lost, it was not the reported socket that was looked at, but its descriptor's next. */
        return events != event->events && (record->kernel != changes || record->fired) &&
                       passes(change(port, EPOLL_CTL_MOD, (int)descriptor, record, changes))
                   ? STUCK
                   : WITHHELD;
    }
    if (record->trigger & SOCK_NOTIFY_TRIGGER_ONESHOT)
        record->state = SPENT;
    else if ((record->kernel ^ armed) & EPOLLET && passes(change(port, EPOLL_CTL_MOD, (int)descriptor, record, armed)))
        port->unarmed = true;
    *entry = (OVERLAPPED_ENTRY){.lpCompletionKey = record->key, .Internal = descriptor + 1, .dwNumberOfBytesTransferred = mask};
    return DELIVERED;
}

/* Tries again to arm what goes on after a notification. Its owner has no part in that, and would never hear that it failed. What is watched
 * for changes only, as it is no hang-up yet, will be again. */
static void arm_persistent(port_t *port) {
    port->unarmed = false;
    for (size_t i = 0; i < port->record_count; i++) {
        record_t *record = &port->records[i];
        if (record->state == ENABLED && record->trigger & SOCK_NOTIFY_TRIGGER_PERSISTENT) {
            uint32_t events = kernel_events(port, record->filter, record->trigger);
            if (record->kernel != events && passes(change(port, EPOLL_CTL_MOD, (int)i, record, events)))
                port->unarmed = true;
        }
    }
}

static int watch_wake_ups(port_t *port, int epoll, int wake, int operation, uint32_t events) {
    struct epoll_event event = {.events = events, .data.u64 = port->wake_up};
    return epoll_ctl(epoll, operation, wake, &event) < 0 ? errno : 0;
}

/* Whether all that is registered is in the new set. A descriptor may have been closed and opened again for another file, which nobody
 * registered: only if the old set knows it, it is still the one. Asked after adding it, because it may be closed in between. */
static bool copy_records(port_t *port, int epoll) {
    for (size_t i = 0; i < port->record_count; i++) {
        record_t *record = &port->records[i];
        if (record->state <= LOST)
            continue;
        int error = tell(port, epoll, EPOLL_CTL_ADD, (int)i, record, record->kernel);
        if (!error)
            error = change(port, EPOLL_CTL_MOD, (int)i, record, record->kernel);
        if (passes(error))
            return false;
        if (error) {
            tell(port, epoll, EPOLL_CTL_DEL, (int)i, record, 0);
            record->state = LOST;
        }
    }
    return true;
}

/* Puts a new set in place of the old, under its number: threads that are about to wait know no other. Those that wait already are woken, and
 * come back to the new. */
static bool replace_set(port_t *port, int epoll) {
    watch_wake_ups(port, port->epoll, port->wake, EPOLL_CTL_MOD, EPOLLIN); /* a level wakes all, an edge one */
    wake_one(port);
    int result;
    do
        result = dup3(epoll, port->epoll, O_CLOEXEC);
    while (result < 0 && (errno == EINTR || errno == EBUSY));
    if (result >= 0) {
        close(epoll);
    } else if (atomic_load(&port->users) == 1) { /* the limit of descriptors may be below this number by now; nobody else knows it */
        close(port->epoll);
        port->epoll = epoll;
    } else {
        watch_wake_ups(port, port->epoll, port->wake, EPOLL_CTL_MOD, EPOLLIN | EPOLLET);
        return false;
    }
    return true;
}

/* Leaves the orphans behind in an old epoll set. Returns whether it could: descriptors or memory may be short. */
static bool rebuild(port_t *port) {
    int epoll = epoll_create1(EPOLL_CLOEXEC);
    if (epoll < 0)
        return false;
    if (watch_wake_ups(port, epoll, port->wake, EPOLL_CTL_ADD, EPOLLIN | EPOLLET) || !copy_records(port, epoll) ||
        !replace_set(port, epoll)) {
        close(epoll);
        return false;
    }
    port->counters.rebuilds++;
    return true;
}

/* ---- forked children --------------------------------------------------------------------------------------------------------- */

/* Reads which files are in the set, as far as they are those of the records, into `files` if there is such. Returns whether it is this
 * port's set at all: a child may have closed all its descriptors, and opened others. Where nothing can be read, it is trusted. */
static bool read_set(const port_t *port, int epoll, int wake, file_identity_t *files, DWORD *error) {
    FILE *members = open_members(epoll);
    if (!members) {
        *error = errno == ENOMEM || errno == EMFILE || errno == ENFILE ? (DWORD)errno : 0;
        return fcntl(epoll, F_GETFD) >= 0;
    }
    set_member_t member;
    bool ours = false;
    while (next_member(members, &member)) {
        size_t i = (size_t)member.descriptor;
        if (member.descriptor == wake && member.data == port->wake_up)
            ours = true;
        else if (files && i < port->record_count && member.data == ((uint64_t)port->records[i].generation << 32 | i))
            files[i] = member.file;
    }
    fclose(members);
    *error = 0;
    return ours;
}

/* Registers everything with the new set. What was closed since the fork is lost; and so is what was opened in place of it, if that can be
 * found out: if the two sets hold different files under its number. The parent may have taken it out of the old one; that says nothing. */
static DWORD fill_set(port_t *port, int epoll, int wake, const file_identity_t *before, file_identity_t *now) {
    DWORD error = (DWORD)watch_wake_ups(port, epoll, wake, EPOLL_CTL_ADD, EPOLLIN | EPOLLET);
    for (size_t i = 0; !error && i < port->record_count; i++) {
        record_t *record = &port->records[i];
        if (record->state > LOST) {
            error = (DWORD)tell(port, epoll, EPOLL_CTL_ADD, (int)i, record, record->kernel);
            record->fired = false;
            if (error && !passes((int)error)) {
                record->state = LOST;
                error = 0;
            }
        }
    }
    if (!error)
        read_set(port, epoll, wake, now, &error);
    for (size_t i = 0; !error && i < port->record_count; i++)
        if (port->records[i].state > LOST && before[i].known && now[i].known && !same_file(&before[i], &now[i])) {
            tell(port, epoll, EPOLL_CTL_DEL, (int)i, &port->records[i], 0);
            port->records[i].state = LOST;
        }
    return error;
}

/* Makes an inherited port this process's own. If that fails nothing is changed, and the next call tries again. */
static DWORD adopt(port_t *port) {
    size_t count = port->record_count ? port->record_count : 1;
    file_identity_t *before = calloc(count, sizeof *before), *now = calloc(count, sizeof *now);
    int epoll = -1, wake = -1;
    bool ours = false;
    DWORD error = before && now ? 0 : ENOMEM;
    if (!error)
        ours = read_set(port, port->epoll, port->wake, before, &error);
    if (!error && ((epoll = epoll_create1(EPOLL_CLOEXEC)) < 0 || (wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) < 0))
        error = (DWORD)errno;
    if (!error)
        error = fill_set(port, epoll, wake, before, now);
    free(before);
    free(now);
    if (error) {
        if (epoll >= 0)
            close(epoll);
        if (wake >= 0)
            close(wake);
        return ERROR_AFTER_FORK | error;
    }
    if (ours) {
        close(port->epoll);
        close(port->wake);
    }
    port->epoll = epoll;
    port->wake = wake;
    port->process = this_process;
    port->left_at = 0;
    return ERROR_SUCCESS;
}

/* Frees what a port has, and makes it one that can be used again; called with ports_lock held. */
static void tear_down(port_t *port) {
    DWORD error;
    if (port->process == this_process || read_set(port, port->epoll, port->wake, NULL, &error)) {
        close(port->epoll);
        close(port->wake);
    }
    free(port->records);
    free(port->queue);
    port->records = NULL;
    port->queue = NULL;
    port->record_count = port->queue_size = port->queue_head = port->queue_length = 0;
    atomic_store(&port->closing, false);
}

/* ---- waiting ----------------------------------------------------------------------------------------------------------------- */

static int64_t now_ns(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * INT64_C(1000000000) + time.tv_nsec;
}

static int wait_for_reports(int epoll, struct epoll_event *events, int room, int64_t ns) {
#ifdef SYS_epoll_pwait2
    if (ns > 0 && !atomic_load_explicit(&no_pwait2, memory_order_relaxed)) {
        /* The kernel's own structure, which on 32-bit systems is not the C library's. */
        struct {
            int64_t seconds, nanoseconds;
        } timeout = {ns / 1000000000, ns % 1000000000};
        int count = (int)syscall(SYS_epoll_pwait2, epoll, events, room, &timeout, NULL, (size_t)0);
        if (count >= 0 || (errno != ENOSYS && errno != EPERM))
            return count;
        atomic_store(&no_pwait2, true);
    }
#endif
    int64_t ms = ns < 0 ? -1 : (ns + 999999) / 1000000;
    return epoll_wait(epoll, events, room, ms > INT_MAX ? INT_MAX : (int)ms);
}

static void pause_unlocked(port_t *port) {
    struct timespec time = {.tv_nsec = PAUSE};
    pthread_mutex_unlock(&port->lock);
    nanosleep(&time, NULL);
    pthread_mutex_lock(&port->lock);
}

/* Dequeues with the port locked; unlocks only around the kernel's wait. */
static DWORD dequeue_until(port_t *port, int64_t entered, int64_t timeout, ULONG room, OVERLAPPED_ENTRY *entries, UINT32 *received) {
    struct epoll_event events[MAX_BATCH];
    if (timeout > LONGEST)
        timeout = LONGEST;
    int64_t deadline = timeout > 0 ? entered + timeout : 0;
    ULONG count = 0;
    if (room > MAX_BATCH)
        room = MAX_BATCH;
    for (;;) {
        if (port->unarmed)
            arm_persistent(port);
        bool stale = false, stuck = port->unarmed;
        /* Packets first, but every other time: a flood of packets must not starve the sockets, nor they the packets. */
        port->queue_last = !port->queue_last;
        if (!port->queue_last)
            count = pop_packets(port, entries, room);
        int found = 0;
        if (count < room) {
            int64_t ns = count || port->queue_length || stuck ? 0 : timeout;
            port->waiters += ns != 0;
            pthread_mutex_unlock(&port->lock);
            found = wait_for_reports(port->epoll, events, (int)(room - count), ns);
            int error = errno;
            pthread_mutex_lock(&port->lock);
            port->waiters -= ns != 0;
            port->counters.kernel_waits++;
            if (atomic_load(&port->closing))
                return ERROR_ABANDONED_WAIT_0;
            if (found < 0 && error != EINTR && !count)
                return ERROR_SYSTEM_CALL | (DWORD)error;
        }
        for (int i = 0; i < found; i++)
            if (!(events[i].data.u64 & WAKE_UP)) {
                outcome_t outcome = deliver(port, &events[i], &entries[count]);
                count += outcome == DELIVERED;
                stale |= outcome == STALE;
                stuck |= outcome == STUCK;
            }
        port->stale_run = stale ? port->stale_run + 1 : 0;
        if (port->stale_run >= ORPHAN_REPORTS) {
            port->stale_run = 0;
            stuck |= !rebuild(port);
        }
        count += pop_packets(port, entries + count, room - count);
        if (count) {
            port->counters.notifications += count;
            *received = count;
            return ERROR_SUCCESS;
        }
        if (stuck && timeout) /* it would be reported again at once, and again */
            pause_unlocked(port);
        if (found < 0 || stuck)
            return WAIT_IO_COMPLETION; /* a signal, or there may have been one: Python's handlers want to run */
        if (timeout > 0 && (timeout = deadline - now_ns()) < 0)
            timeout = 0;
        bool crowded = found == (int)room && !stale; /* with reports that were withheld: what is ready may not have got a place */
        if (!timeout && !crowded)
            return WAIT_TIMEOUT;
    }
}

/* How long the program was away since the last wait is how long a ready socket may have had to wait for it: worth knowing, and nowhere
 * as cheap to know as here. Of use where one thread waits, as an event loop does. */
static DWORD dequeue(port_t *port, int64_t timeout, ULONG room, OVERLAPPED_ENTRY *entries, UINT32 *received) {
    PORT_COUNTERS *counters = &port->counters;
    int64_t entered = now_ns();
    counters->waits++;
    if (port->left_at) {
        uint64_t busy = (uint64_t)(entered - port->left_at);
        counters->busy_ns += busy;
        counters->busy_recent_ns = (counters->busy_recent_ns * 15 + busy) / 16;
        if (busy > counters->busy_longest_ns)
            counters->busy_longest_ns = busy;
    }
    DWORD result = dequeue_until(port, entered, timeout, room, entries, received);
    port->left_at = now_ns();
    counters->waiting_ns += (uint64_t)(port->left_at - entered);
    return result;
}

/* ---- the calls --------------------------------------------------------------------------------------------------------------- */

#define EXPORT __attribute__((visibility("default")))

/* A wait that failed after something was done is one that was interrupted: a failed call has changed nothing. The next one fails, too. */
static DWORD after_changes(DWORD result) {
    return result & ERROR_SYSTEM_CALL ? WAIT_IO_COMPLETION : result;
}

EXPORT DWORD ProcessSocketNotificationsNs(HANDLE handle, UINT32 registration_count, SOCK_NOTIFY_REGISTRATION *registrations,
                                          int64_t timeout_ns, ULONG completion_count, OVERLAPPED_ENTRY *entries,
                                          UINT32 *received) {
    if (!registration_count != !registrations || !completion_count != !entries || !completion_count != !received ||
        (!completion_count && (timeout_ns || !registration_count)))
        return ERROR_INVALID_PARAMETER;
    if (received)
        *received = 0;
    port_t *port;
    DWORD result = enter(handle, &port);
    if (result)
        return result;
    port->counters.calls++;
    bool failed = false;
    for (UINT32 i = 0; i < registration_count; i++) {
        registrations[i].registrationResult = (DWORD)apply(port, &registrations[i]);
        failed |= registrations[i].registrationResult != 0;
    }
    if (completion_count)
        result = dequeue(port, failed ? 0 : timeout_ns, completion_count, entries, received);
    leave(port);
    return registration_count ? after_changes(result) : result;
}

static void note_failure(PACKED_CALL *call, ULONG_PTR key, UINT32 index, int error) {
    if (error)
        call->failures[call->failed++] = (FAILED_REGISTRATION){.key = key, .index = index, .result = (DWORD)error};
}

static int64_t word(const OVERLAPPED_ENTRY *packet) {
    uint32_t key = (uint32_t)(packet->lpCompletionKey & ~HIGHEST_BIT), events = packet->dwNumberOfBytesTransferred;
    if (!(packet->lpCompletionKey & HIGHEST_BIT))
        return INT64_C(2) << 32 | key;
    if ((events & ~(uint32_t)SOCK_NOTIFY_EVENT_HANGUP) == SOCK_NOTIFY_EVENT_IN)
        return key >> 8;
    return INT64_C(1) << 32 | key | (events & 0xFF);
}

EXPORT int64_t ProcessPackedCall(PACKED_CALL *call) {
    if (call->failed) /* since the last call: nobody has seen them */
        return (int64_t)call->failed << 32;
    port_t *port;
    DWORD code = enter(call->port, &port);
    if (code)
        return -(int64_t)code;
    UINT32 received = 0, ordered = (UINT32)(call->size / sizeof(SOCK_NOTIFY_REGISTRATION)), dequeued = call->dequeued;
    port->counters.calls++;
    for (UINT32 i = 0; i < ordered; i++) {
        SOCK_NOTIFY_REGISTRATION registration;
        memcpy(&registration, call->packed + i * sizeof registration, sizeof registration);
        note_failure(call, (ULONG_PTR)registration.completionKey, i, apply(port, &registration));
    }
    for (UINT32 i = 0; i < dequeued; i++)
        note_failure(call, call->entries[i].lpCompletionKey, ordered + i, enable_again(port, &call->entries[i]));
    call->size = 0;
    call->dequeued = 0;
    if (call->completionCount)
        code = dequeue(port, call->failed ? 0 : call->timeoutNs, call->completionCount, call->entries, &received);
    leave(port);
    if (ordered || dequeued)
        code = after_changes(code);
    if (code != ERROR_SUCCESS && code != WAIT_TIMEOUT && code != WAIT_IO_COMPLETION)
        return -(int64_t)code;
    call->dequeued = received;
    if (call->words)
        for (UINT32 i = 0; i < received; i++)
            call->words[i] = word(&call->entries[i]);
    return (int64_t)call->failed << 32 | received;
}

EXPORT int64_t ProcessPackedNotifications(HANDLE handle, const char *packed, size_t size, FAILED_REGISTRATION *failures,
                                          int64_t timeout_ns, ULONG completion_count, OVERLAPPED_ENTRY *entries) {
    PACKED_CALL call = {
        .port = handle,
        .packed = packed,
        .size = size,
        .failures = failures,
        .timeoutNs = timeout_ns,
        .completionCount = completion_count,
        .entries = entries,
    };
    return ProcessPackedCall(&call);
}

EXPORT DWORD ProcessSocketNotifications(HANDLE handle, UINT32 registration_count, SOCK_NOTIFY_REGISTRATION *registrations,
                                        UINT32 timeout_ms, ULONG completion_count, OVERLAPPED_ENTRY *entries,
                                        UINT32 *received) {
    int64_t ns = timeout_ms == INFINITE ? -1 : timeout_ms * INT64_C(1000000);
    return ProcessSocketNotificationsNs(handle, registration_count, registrations, ns, completion_count, entries, received);
}

/* As enter, for calls that report with errno. */
static port_t *enter_or_set_errno(HANDLE handle) {
    port_t *port;
    DWORD code = enter(handle, &port);
    if (!code)
        return port;
    errno = code == ERROR_INVALID_HANDLE ? EBADF : (int)code;
    return NULL;
}

EXPORT BOOL PostQueuedCompletionStatus(HANDLE handle, DWORD bytes, ULONG_PTR key, PVOID overlapped) {
    port_t *port = enter_or_set_errno(handle);
    if (!port)
        return 0;
    int error = reserve_packets(port, 1) ? 0 : ENOMEM;
    if (!error) {
        push_packet(port, (OVERLAPPED_ENTRY){
                              .lpCompletionKey = key, .lpOverlapped = overlapped, .dwNumberOfBytesTransferred = bytes});
        if (port->unwoken && !wake_one(port)) {
            error = ERROR_SYSTEM_CALL | errno;
            port->queue_length--;
        }
        port->unwoken = false;
    }
    port->counters.posted += !error;
    leave(port);
    errno = error;
    return !error;
}

EXPORT BOOL PutBackPackets(HANDLE handle, OVERLAPPED_ENTRY *entries, ULONG count) {
    port_t *port = enter_or_set_errno(handle);
    if (!port)
        return 0;
    bool reserved = reserve_packets(port, count);
    if (reserved && count) {
        port->queue_head = (port->queue_head - count) & (port->queue_size - 1);
        port->queue_length += count;
        for (ULONG i = 0; i < count; i++)
            port->queue[(port->queue_head + i) & (port->queue_size - 1)] = entries[i];
        port->counters.notifications -= count;
        wake_for_packets(port);
    }
    leave(port);
    errno = reserved ? 0 : ENOMEM;
    return reserved;
}

EXPORT BOOL ForgetRegistration(HANDLE handle, SOCKET socket, ULONG_PTR key) {
    port_t *port = enter_as_it_is(handle); /* a child that closes what it has inherited needs no set for that */
    if (!port)
        return 0;
    forget(port, socket, key);
    leave(port);
    return 1;
}

EXPORT BOOL GetPortCounters(HANDLE handle, PORT_COUNTERS *counters) {
    port_t *port = enter_or_set_errno(handle);
    if (!port)
        return 0;
    *counters = port->counters;
    leave(port);
    return 1;
}

/* A free port to use, new or recycled; called with ports_lock held. */
static port_t *free_port(uintptr_t *index) {
    for (uintptr_t i = 1; i < MAX_PORTS; i++) {
        port_t *port = atomic_load(&ports[i]);
        if (port && (atomic_load(&port->handle) || atomic_load(&port->closing)))
            continue;
        if (!port) {
            port = calloc(1, sizeof *port);
            if (!port)
                return NULL;
            pthread_mutex_init(&port->lock, NULL);
            pthread_cond_init(&port->left, NULL);
            atomic_store(&ports[i], port);
            port_count = i + 1;
        }
        *index = i;
        return port;
    }
    return NULL;
}

EXPORT HANDLE CreateIoCompletionPort(HANDLE file, HANDLE existing, ULONG_PTR key, DWORD threads) {
    (void)threads; /* Linux has no limit of running threads */
    if (file != (HANDLE)UINTPTR_MAX || existing || key) {
        errno = EINVAL; /* files cannot be associated with a port here */
        return NULL;
    }
    pthread_once(&fork_once, watch_forks);
    uintptr_t handle = 0, index = 0;
    pthread_mutex_lock(&ports_lock); /* also for the descriptors: a child that is forked now could not close them */
    port_t *port = free_port(&index);
    int epoll = epoll_create1(EPOLL_CLOEXEC), wake = epoll < 0 ? -1 : eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    int error = !port ? ENOMEM : wake < 0 ? errno : 0;
    if (!error) {
        handle = ++port_generation * MAX_PORTS + index;
        port->wake_up = (uint64_t)handle >> 31 << 32 | WAKE_UP | (handle & (WAKE_UP - 1));
        error = watch_wake_ups(port, epoll, wake, EPOLL_CTL_ADD, EPOLLIN | EPOLLET);
    }
    if (!error) {
        port->epoll = epoll;
        port->wake = wake;
        port->process = this_process;
        port->waiters = port->generation = port->stale_run = 0;
        port->unwoken = port->unarmed = false;
        port->left_at = 0;
        memset(&port->counters, 0, sizeof port->counters);
        atomic_store(&port->handle, handle);
    }
    pthread_mutex_unlock(&ports_lock);
    if (error) {
        if (epoll >= 0)
            close(epoll);
        if (wake >= 0)
            close(wake);
        errno = error;
        return NULL;
    }
    return (HANDLE)handle;
}

EXPORT BOOL CloseHandle(HANDLE handle) {
    port_t *port = handle ? atomic_load(&ports[(uintptr_t)handle % MAX_PORTS]) : NULL;
    pthread_mutex_lock(&ports_lock);
    bool open = port && atomic_load(&port->handle) == (uintptr_t)handle;
    if (open) {
        atomic_store(&port->closing, true);
        atomic_store(&port->handle, 0);
    }
    pthread_mutex_unlock(&ports_lock);
    if (!open) {
        errno = EBADF;
        return 0;
    }
    pthread_mutex_lock(&port->lock);
    if (port->process == this_process) { /* else the threads that wait are the parent's */
        /* Watched as a level from now on, the eventfd ends every wait, not just one. */
        watch_wake_ups(port, port->epoll, port->wake, EPOLL_CTL_MOD, EPOLLIN);
        wake_one(port);
    }
    while (atomic_load(&port->users))
        pthread_cond_wait(&port->left, &port->lock);
    pthread_mutex_unlock(&port->lock);
    pthread_mutex_lock(&ports_lock);
    tear_down(port);
    pthread_mutex_unlock(&ports_lock);
    return 1;
}
