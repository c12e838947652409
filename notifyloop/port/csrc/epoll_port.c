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
 *   built anew from the records, under the same descriptor.
 *
 * The rules that the caller sees, and where they differ from Windows, are in docs/port.md. Results of single registrations are errno
 * values here: what a program can act upon.
 *
 * Locking: one mutex per port guards everything but the wait itself. A handle is looked up, never dereferenced, so a call on a closed
 * port fails instead of touching freed memory; CloseHandle waits until the last thread has left.
 */

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

/* Wheels are built with the headers of an old Linux, and run on new ones. Since 5.1 a new call has one number everywhere
 * but on Alpha; a kernel that does not know it says so. */
#if !defined SYS_epoll_pwait2 && !defined __alpha__
#define SYS_epoll_pwait2 441
#endif

enum { ABSENT, ENABLED, DISABLED, SPENT }; /* SPENT: disabled by a notification, which may enable it again */
enum { MAX_PORTS = 1 << 16, MAX_BATCH = 512, ORPHAN_REPORTS = 8 };

#define HIGHEST_BIT ((ULONG_PTR)1 << (8 * sizeof(ULONG_PTR) - 1))

/* No descriptor has this number, so no record's (generation, descriptor) equals it. */
#define WAKE_UP UINT64_MAX

#define KERNEL_ARMED (1u << 27) /* a bit that epoll does not use: tells "armed with an empty filter" from "not in the set" */
#define PARKED (KERNEL_ARMED | EPOLLET | EPOLLONESHOT) /* epoll cannot mask errors and hang-up: these may be reported, once */

typedef struct {
    ULONG_PTR key;       /* the owner's completion key, returned verbatim */
    uint32_t generation; /* 0 = never used */
    uint32_t kernel;     /* what the epoll set holds, with KERNEL_ARMED; 0 = the descriptor is not in the set, and state is ABSENT */
    UINT16 filter;
    UINT8 trigger;
    UINT8 state;
    bool fired;     /* the kernel's own one-shot has fired: it reports nothing until told again */
    bool connected; /* seen as more than a fresh stream socket */
} record_t;

typedef struct {
    _Atomic(uintptr_t) handle; /* 0 = free or closing */
    _Atomic(uint32_t) users;   /* threads inside a call */
    _Atomic(bool) closing;
    pthread_mutex_t lock;
    pthread_cond_t left;
    uint32_t fork_epoch;
    int epoll;
    int wake;
    uint32_t waiters;
    uint32_t generation;
    uint32_t stale_run;
    bool queue_last;
    int64_t left_at; /* when a wait last returned */
    record_t *records; /* by descriptor */
    size_t record_count;
    OVERLAPPED_ENTRY *queue; /* ring; its size is a power of two */
    size_t queue_size, queue_head, queue_length;
    PORT_COUNTERS counters;
} port_t;

/* Ports are recycled, never freed: a late caller with an old handle finds a port whose handle differs. */
static _Atomic(port_t *) ports[MAX_PORTS];
static pthread_mutex_t ports_lock = PTHREAD_MUTEX_INITIALIZER;
static uintptr_t port_generation;
static pthread_once_t fork_once = PTHREAD_ONCE_INIT;
static _Atomic(uint32_t) fork_epoch;
static _Atomic(bool) no_pwait2; /* a kernel before 5.11, or a sandbox that does not know the call */

/* A forked child shares the parent's epoll set: a change there would change the parent's registrations. In a child, an inherited port
 * can only be closed. */
static void before_fork(void) {
    pthread_mutex_lock(&ports_lock);
}

static void after_fork_in_parent(void) {
    pthread_mutex_unlock(&ports_lock);
}

static void after_fork_in_child(void) {
    atomic_fetch_add(&fork_epoch, 1);
    pthread_mutex_unlock(&ports_lock);
}

static void watch_forks(void) {
    pthread_atfork(before_fork, after_fork_in_parent, after_fork_in_child);
}

static port_t *find(HANDLE handle) {
    return handle ? atomic_load(&ports[(uintptr_t)handle % MAX_PORTS]) : NULL;
}

static void leave(port_t *port) {
    if (atomic_fetch_sub(&port->users, 1) == 1 && atomic_load(&port->closing)) {
        pthread_mutex_lock(&port->lock);
        pthread_cond_broadcast(&port->left);
        pthread_mutex_unlock(&port->lock);
    }
}

static port_t *enter(HANDLE handle) {
    port_t *port = find(handle);
    if (!port)
        return NULL;
    atomic_fetch_add(&port->users, 1);
    if (atomic_load(&port->handle) != (uintptr_t)handle || port->fork_epoch != atomic_load(&fork_epoch)) {
        leave(port);
        return NULL;
    }
    return port;
}

/* ---- the queue of packets ---------------------------------------------------------------------------------------------------- */

/* Makes room for one more packet. What must not fail later is reserved before anything is changed. */
static bool reserve_packet(port_t *port) {
    if (port->queue_length < port->queue_size)
        return true;
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

/* Wakes one waiting thread. The eventfd is watched edge-triggered: every write is an edge for one thread, and nobody has to read it. */
static void wake_one(port_t *port) {
    uint64_t one = 1;
    if (port->waiters)
        while (write(port->wake, &one, sizeof one) < 0 && errno == EINTR)
            ;
}

static void push_packet(port_t *port, OVERLAPPED_ENTRY packet) {
    port->queue[(port->queue_head + port->queue_length++) & (port->queue_size - 1)] = packet;
    wake_one(port);
}

static ULONG pop_packets(port_t *port, OVERLAPPED_ENTRY *entries, ULONG room) {
    ULONG count = 0;
    while (count < room && port->queue_length) {
        entries[count++] = port->queue[port->queue_head];
        port->queue_head = (port->queue_head + 1) & (port->queue_size - 1);
        port->queue_length--;
    }
    if (port->queue_length) /* somebody else may take the rest */
        wake_one(port);
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

static int change(port_t *port, int operation, int descriptor, record_t *record, uint32_t events) {
    int error = tell(port, port->epoll, operation, descriptor, record, events);
    if (error)
        return error;
    record->kernel = operation == EPOLL_CTL_DEL ? 0 : events;
    record->fired = false;
    return 0;
}

static void forget(record_t *record) {
    record->state = ABSENT;
    record->kernel = 0;
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
    uint32_t events = kernel_events(port, filter, trigger);
    /* EPOLLONESHOT more or less is no difference while it has not fired. */
    bool armed = !((record->kernel ^ events) & ~EPOLLONESHOT) && !record->fired;
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
    if (record->state != ABSENT && record->key == key)
        return arm(port, descriptor, record, registration->eventFilter, registration->triggerFlags);

    /* A new registration, or one for a descriptor that was closed and reused: the kernel knows. Another key for a file that is
     * still registered would be a change of key, which takes a REMOVE first. */
    uint32_t events = kernel_events(port, registration->eventFilter, registration->triggerFlags);
    record_t fresh = {
        .key = key,
        .generation = ++port->generation,
        .filter = registration->eventFilter,
        .trigger = registration->triggerFlags,
        .state = ENABLED,
    };
    int error = change(port, EPOLL_CTL_ADD, descriptor, &fresh, events);
    if (error == EEXIST && record->state == ABSENT)
        error = change(port, EPOLL_CTL_MOD, descriptor, &fresh, events);
    if (error)
        return error;
    *record = fresh;
    port->counters.registrations++;
    return 0;
}

/* Enables again what this packet has disarmed, unless something else was ordered since. */
static int enable_again(port_t *port, const OVERLAPPED_ENTRY *packet) {
    size_t descriptor = (size_t)packet->Internal - 1; /* of a packet that is no notification: none */
    record_t *record = descriptor < port->record_count ? &port->records[descriptor] : NULL;
    if (!record || record->state != SPENT || record->key != packet->lpCompletionKey)
        return 0;
    return arm(port, (int)descriptor, record, record->filter, record->trigger);
}

static int apply(port_t *port, const SOCK_NOTIFY_REGISTRATION *registration) {
    if (registration->operation == SOCK_NOTIFY_OP_NONE)
        return 0;
    if (registration->socket > INT_MAX)
        return EBADF;
    int descriptor = (int)registration->socket;
    if (registration->operation == SOCK_NOTIFY_OP_ENABLE)
        return enable(port, descriptor, registration);

    if (registration->operation != SOCK_NOTIFY_OP_DISABLE && registration->operation != SOCK_NOTIFY_OP_REMOVE)
        return EINVAL;
    record_t *record = (size_t)descriptor < port->record_count ? &port->records[descriptor] : NULL;
    if (!record || record->state == ABSENT || record->key != (ULONG_PTR)registration->completionKey)
        return ENOENT;
    if (registration->operation == SOCK_NOTIFY_OP_DISABLE) {
        record->state = DISABLED;
        return 0;
    }
    if (!reserve_packet(port))
        return ENOMEM;
    if (change(port, EPOLL_CTL_DEL, descriptor, record, 0)) {
        forget(record); /* closed behind our back: that deregistered it, without a notice */
        return ENOENT;
    }
    record->state = ABSENT;
    push_packet(port, (OVERLAPPED_ENTRY){.lpCompletionKey = record->key,
                                         .dwNumberOfBytesTransferred = SOCK_NOTIFY_EVENT_REMOVE});
    return 0;
}

/* ---- notifications ----------------------------------------------------------------------------------------------------------- */

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
            return 0;
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

/* One report of the kernel becomes a notification, or is withheld. Returns whether `entry` was filled. */
static bool deliver(port_t *port, const struct epoll_event *event, OVERLAPPED_ENTRY *entry, bool *stale) {
    size_t descriptor = (uint32_t)event->data.u64;
    record_t *record = descriptor < port->record_count ? &port->records[descriptor] : NULL;
    if (!record || record->state == ABSENT || record->generation != event->data.u64 >> 32) {
        port->counters.stale++;
        *stale = true;
        return false;
    }
    record->fired = record->kernel & EPOLLONESHOT;
    if (record->state != ENABLED) {
        port->counters.withheld++;
        if (!record->fired && change(port, EPOLL_CTL_MOD, (int)descriptor, record, PARKED))
            forget(record); /* closed, with a duplicate alive: from now on an orphan */
        return false;
    }
    uint32_t events = event->events, armed = kernel_events(port, record->filter, record->trigger);
    if (events & (EPOLLHUP | EPOLLRDHUP) && !record->connected)
        events = without_false_hang_up((int)descriptor, events, &record->connected);
    DWORD mask = reported_events(record, events);
    if (!mask) { /* fetched before its filter was changed; or no hang-up: watch it for changes only, until there is one */
        uint32_t changes = (armed | EPOLLET) & ~(uint32_t)EPOLLONESHOT;
        if (events != event->events && (record->kernel != changes || record->fired) &&
            change(port, EPOLL_CTL_MOD, (int)descriptor, record, changes))
            forget(record); /* it was not the reported socket that was looked at, but its descriptor's next */
        return false;
    }
    if (record->trigger & SOCK_NOTIFY_TRIGGER_ONESHOT)
        record->state = SPENT;
    else if (record->fired || (record->kernel ^ armed) & EPOLLET)
        change(port, EPOLL_CTL_MOD, (int)descriptor, record, armed);
    *entry = (OVERLAPPED_ENTRY){.lpCompletionKey = record->key, .Internal = descriptor + 1, .dwNumberOfBytesTransferred = mask};
    return true;
}

static int watch_wake_ups(port_t *port, int epoll, int operation, uint32_t events) {
    struct epoll_event event = {.events = events, .data.u64 = WAKE_UP};
    return epoll_ctl(epoll, operation, port->wake, &event);
}

/* Whether all that is registered is in the new set. A descriptor may have been closed and opened again for another file, which nobody
 * registered: only if the old set knows it, it is still the one. Asked after adding it, because it may be closed in between. */
static bool copy_records(port_t *port, int epoll) {
    for (size_t i = 0; i < port->record_count; i++) {
        record_t *record = &port->records[i];
        if (record->state == ABSENT)
            continue;
        int error = tell(port, epoll, EPOLL_CTL_ADD, (int)i, record, record->kernel);
        if (error == ENOMEM || error == ENOSPC)
            return false;
        if (error || change(port, EPOLL_CTL_MOD, (int)i, record, record->kernel)) {
            tell(port, epoll, EPOLL_CTL_DEL, (int)i, record, 0);
            forget(record);
        }
    }
    return true;
}

/* Leaves the orphans behind in an old epoll set. dup3 puts the new set under the old descriptor; threads that wait in the old one are
 * woken and come back to the new. Where descriptors or memory are short, the next stale reports try again. */
static void rebuild(port_t *port) {
    int epoll = epoll_create1(EPOLL_CLOEXEC);
    if (epoll < 0)
        return;
    if (watch_wake_ups(port, epoll, EPOLL_CTL_ADD, EPOLLIN | EPOLLET) == 0 && copy_records(port, epoll)) {
        port->counters.rebuilds++;
        watch_wake_ups(port, port->epoll, EPOLL_CTL_MOD, EPOLLIN); /* a level wakes all, an edge one */
        wake_one(port);
        while (dup3(epoll, port->epoll, O_CLOEXEC) < 0 && (errno == EINTR || errno == EBUSY))
            ;
    }
    close(epoll);
}

static int64_t now_ns(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * INT64_C(1000000000) + time.tv_nsec;
}

static int wait_for_reports(int epoll, struct epoll_event *events, int room, int64_t ns) {
#ifdef SYS_epoll_pwait2
    if (ns > 0 && !atomic_load_explicit(&no_pwait2, memory_order_relaxed)) {
        struct timespec timeout = {.tv_sec = ns / 1000000000, .tv_nsec = ns % 1000000000};
        int count = (int)syscall(SYS_epoll_pwait2, epoll, events, room, &timeout, NULL, (size_t)0);
        if (count >= 0 || (errno != ENOSYS && errno != EPERM))
            return count;
        atomic_store(&no_pwait2, true);
    }
#endif
    int64_t ms = ns < 0 ? -1 : (ns + 999999) / 1000000;
    return epoll_wait(epoll, events, room, ms > INT_MAX ? INT_MAX : (int)ms);
}

/* Dequeues with the port locked; unlocks only around the kernel's wait. */
static DWORD dequeue_until(port_t *port, int64_t entered, int64_t timeout, ULONG room, OVERLAPPED_ENTRY *entries, UINT32 *received) {
    struct epoll_event events[MAX_BATCH];
    int64_t deadline = timeout > 0 ? entered + timeout : 0;
    ULONG count = 0;
    if (room > MAX_BATCH)
        room = MAX_BATCH;
    for (;;) {
        /* Packets first, but every other time: a flood of packets must not starve the sockets, nor they the packets. */
        port->queue_last = !port->queue_last;
        if (!port->queue_last)
            count = pop_packets(port, entries, room);
        int found = 0;
        if (count < room) {
            int64_t ns = count || port->queue_length ? 0 : timeout;
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
                return error == EBADF ? ERROR_INVALID_HANDLE : ERROR_INVALID_PARAMETER;
        }
        bool stale = false;
        for (int i = 0; i < found; i++)
            if (events[i].data.u64 != WAKE_UP)
                count += deliver(port, &events[i], &entries[count], &stale);
        port->stale_run = stale ? port->stale_run + 1 : 0;
        if (port->stale_run >= ORPHAN_REPORTS) {
            port->stale_run = 0;
            rebuild(port);
        }
        count += pop_packets(port, entries + count, room - count);
        if (count) {
            port->counters.notifications += count;
            *received = count;
            return ERROR_SUCCESS;
        }
        if (found < 0)
            return WAIT_IO_COMPLETION; /* a signal: Python's handlers want to run */
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

EXPORT DWORD ProcessSocketNotificationsNs(HANDLE handle, UINT32 registration_count, SOCK_NOTIFY_REGISTRATION *registrations,
                                          int64_t timeout_ns, ULONG completion_count, OVERLAPPED_ENTRY *entries,
                                          UINT32 *received) {
    if (!registration_count != !registrations || !completion_count != !entries || !completion_count != !received ||
        (!completion_count && (timeout_ns || !registration_count)))
        return ERROR_INVALID_PARAMETER;
    port_t *port = enter(handle);
    if (!port)
        return ERROR_INVALID_HANDLE;
    DWORD result = ERROR_SUCCESS;
    if (received)
        *received = 0;
    pthread_mutex_lock(&port->lock);
    port->counters.calls++;
    for (UINT32 i = 0; i < registration_count; i++)
        registrations[i].registrationResult = (DWORD)apply(port, &registrations[i]);
    if (completion_count)
        result = dequeue(port, timeout_ns, completion_count, entries, received);
    pthread_mutex_unlock(&port->lock);
    leave(port);
    return result;
}

static UINT32 note_failure(FAILED_REGISTRATION *failures, UINT32 failed, ULONG_PTR key, UINT32 index, int error) {
    if (error)
        failures[failed] = (FAILED_REGISTRATION){.key = key, .index = index, .result = (DWORD)error};
    return failed + (error != 0);
}

static int64_t word(const OVERLAPPED_ENTRY *packet) {
    uint32_t key = (uint32_t)(packet->lpCompletionKey & ~HIGHEST_BIT), events = packet->dwNumberOfBytesTransferred;
    if (!(packet->lpCompletionKey & HIGHEST_BIT))
        return INT64_C(2) << 32 | key;
    if ((events & ~(uint32_t)SOCK_NOTIFY_EVENT_HANGUP) == SOCK_NOTIFY_EVENT_IN)
        return key >> 8;
    return INT64_C(1) << 32 | key | (events & 0xFF);
}

static int64_t process_packed(HANDLE handle, const char *packed, size_t size, FAILED_REGISTRATION *failures, int64_t timeout_ns,
                              ULONG completion_count, OVERLAPPED_ENTRY *entries, UINT32 *dequeued, int64_t *words) {
    port_t *port = enter(handle);
    if (!port)
        return -ERROR_INVALID_HANDLE;
    DWORD code = ERROR_SUCCESS;
    UINT32 received = 0, failed = 0, ordered = (UINT32)(size / sizeof(SOCK_NOTIFY_REGISTRATION));
    pthread_mutex_lock(&port->lock);
    port->counters.calls++;
    for (UINT32 i = 0; i < ordered; i++) {
        SOCK_NOTIFY_REGISTRATION registration;
        memcpy(&registration, packed + i * sizeof registration, sizeof registration);
        failed = note_failure(failures, failed, (ULONG_PTR)registration.completionKey, i, apply(port, &registration));
    }
    if (dequeued) {
        for (UINT32 i = 0; i < *dequeued; i++)
            failed = note_failure(failures, failed, entries[i].lpCompletionKey, ordered + i, enable_again(port, &entries[i]));
        *dequeued = 0;
    }
    if (completion_count)
        code = dequeue(port, timeout_ns, completion_count, entries, &received);
    pthread_mutex_unlock(&port->lock);
    leave(port);
    if (code != ERROR_SUCCESS && code != WAIT_TIMEOUT && code != WAIT_IO_COMPLETION)
        return -(int64_t)code;
    if (dequeued)
        *dequeued = received;
    if (words)
        for (UINT32 i = 0; i < received; i++)
            words[i] = word(&entries[i]);
    return (int64_t)failed << 32 | received;
}

EXPORT int64_t ProcessPackedNotifications(HANDLE handle, const char *packed, size_t size, FAILED_REGISTRATION *failures,
                                          int64_t timeout_ns, ULONG completion_count, OVERLAPPED_ENTRY *entries) {
    return process_packed(handle, packed, size, failures, timeout_ns, completion_count, entries, NULL, NULL);
}

EXPORT int64_t ProcessPackedCall(PACKED_CALL *call) {
    size_t size = call->size;
    call->size = 0;
    return process_packed(call->port, call->packed, size, call->failures, call->timeoutNs, call->completionCount, call->entries,
                          &call->dequeued, call->words);
}

EXPORT DWORD ProcessSocketNotifications(HANDLE handle, UINT32 registration_count, SOCK_NOTIFY_REGISTRATION *registrations,
                                        UINT32 timeout_ms, ULONG completion_count, OVERLAPPED_ENTRY *entries,
                                        UINT32 *received) {
    int64_t ns = timeout_ms == INFINITE ? -1 : timeout_ms * INT64_C(1000000);
    return ProcessSocketNotificationsNs(handle, registration_count, registrations, ns, completion_count, entries, received);
}

EXPORT BOOL PostQueuedCompletionStatus(HANDLE handle, DWORD bytes, ULONG_PTR key, PVOID overlapped) {
    port_t *port = enter(handle);
    if (!port) {
        errno = EBADF;
        return 0;
    }
    pthread_mutex_lock(&port->lock);
    bool reserved = reserve_packet(port);
    if (reserved) {
        port->counters.posted++;
        push_packet(port, (OVERLAPPED_ENTRY){
                              .lpCompletionKey = key, .lpOverlapped = overlapped, .dwNumberOfBytesTransferred = bytes});
    }
    pthread_mutex_unlock(&port->lock);
    leave(port);
    if (!reserved)
        errno = ENOMEM;
    return reserved;
}

EXPORT BOOL GetPortCounters(HANDLE handle, PORT_COUNTERS *counters) {
    port_t *port = enter(handle);
    if (!port) {
        errno = EBADF;
        return 0;
    }
    pthread_mutex_lock(&port->lock);
    *counters = port->counters;
    pthread_mutex_unlock(&port->lock);
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
    int epoll = epoll_create1(EPOLL_CLOEXEC), wake = -1;
    if (epoll < 0)
        return NULL;
    uintptr_t handle = 0, index = 0;
    pthread_mutex_lock(&ports_lock);
    port_t *port = free_port(&index);
    if (!port) {
        errno = ENOMEM;
    } else if ((wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) >= 0) {
        port->wake = wake;
        if (watch_wake_ups(port, epoll, EPOLL_CTL_ADD, EPOLLIN | EPOLLET) == 0) {
            port->epoll = epoll;
            port->fork_epoch = atomic_load(&fork_epoch);
            port->waiters = port->generation = port->stale_run = 0;
            port->left_at = 0;
            memset(&port->counters, 0, sizeof port->counters);
            handle = ++port_generation * MAX_PORTS + index;
            atomic_store(&port->handle, handle);
        }
    }
    int error = errno;
    pthread_mutex_unlock(&ports_lock);
    if (!handle) {
        close(epoll);
        if (wake >= 0)
            close(wake);
        errno = error;
    }
    return (HANDLE)handle;
}

EXPORT BOOL CloseHandle(HANDLE handle) {
    port_t *port = find(handle);
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
    if (port->fork_epoch == atomic_load(&fork_epoch)) {
        pthread_mutex_lock(&port->lock);
        /* Watched as a level from now on, the eventfd ends every wait, not just one. */
        watch_wake_ups(port, port->epoll, EPOLL_CTL_MOD, EPOLLIN);
        uint64_t one = 1;
        while (write(port->wake, &one, sizeof one) < 0 && errno == EINTR)
            ;
        while (atomic_load(&port->users))
            pthread_cond_wait(&port->left, &port->lock);
        pthread_mutex_unlock(&port->lock);
    } else { /* the threads that were inside exist in the parent only */
        pthread_mutex_init(&port->lock, NULL);
        pthread_cond_init(&port->left, NULL);
        atomic_store(&port->users, 0);
    }
    close(port->epoll);
    close(port->wake);
    free(port->records);
    free(port->queue);
    port->records = NULL;
    port->queue = NULL;
    port->record_count = port->queue_size = port->queue_head = port->queue_length = 0;
    atomic_store(&port->closing, false);
    return 1;
}
