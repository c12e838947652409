/* The epoll set's reports, and what becomes of them. */

/* Wheels are built with the headers of an old Linux, and run on new ones. Since 5.1 a new call has one number everywhere, but for what
 * some architectures add to all of theirs; a kernel that does not know it says so. */
#if !defined SYS_epoll_pwait2 && !defined __alpha__ && !defined __mips__ && !defined __ia64__ && !(defined __x86_64__ && defined __ILP32__)
#define SYS_epoll_pwait2 441
#endif

static _Atomic(bool) no_pwait2; /* a kernel before 5.11, or a sandbox that does not know the call */

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
    record->kernel.fired = record->kernel.events & EPOLLONESHOT;
    if (record->state != ENABLED) {
        port->counters.withheld++;
        /* If it was closed, with a duplicate alive, it is an orphan from now on. */
        return !record->kernel.fired && passes(change(port, EPOLL_CTL_MOD, (int)descriptor, record, PARKED)) ? STUCK : WITHHELD;
    }
    uint32_t events = event->events, armed = kernel_events(port, record->filter, record->trigger);
    if (events & (EPOLLHUP | EPOLLRDHUP) && !record->connected)
        events = without_false_hang_up((int)descriptor, events, &record->connected);
    DWORD mask = reported_events(record, events);
    if (!mask) { /* fetched before its filter was changed; or no hang-up: watch it for changes only, until there is one */
        uint32_t changes = (armed | EPOLLET) & ~(uint32_t)EPOLLONESHOT;
        /* If it is lost, it was not the reported socket that was looked at, but its descriptor's next. */
        return events != event->events && (record->kernel.events != changes || record->kernel.fired) &&
                       passes(change(port, EPOLL_CTL_MOD, (int)descriptor, record, changes))
                   ? STUCK
                   : WITHHELD;
    }
    if (record->trigger & SOCK_NOTIFY_TRIGGER_ONESHOT)
        record->state = SPENT;
    else if ((record->kernel.events ^ armed) & EPOLLET && passes(change(port, EPOLL_CTL_MOD, (int)descriptor, record, armed)))
        port->unarmed = true;
    *entry = (OVERLAPPED_ENTRY){.lpCompletionKey = record->key, .Internal = descriptor + 1, .dwNumberOfBytesTransferred = mask};
    return DELIVERED;
}

/* What is watched for changes only, as it is no hang-up yet, will be again. */
static void arm_persistent(port_t *port) {
    port->unarmed = false;
    for (size_t i = 0; i < port->record_count; i++) {
        record_t *record = &port->records[i];
        if (record->state == ENABLED && record->trigger & SOCK_NOTIFY_TRIGGER_PERSISTENT) {
            uint32_t events = kernel_events(port, record->filter, record->trigger);
            if (record->kernel.events != events && passes(change(port, EPOLL_CTL_MOD, (int)i, record, events)))
                port->unarmed = true;
        }
    }
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

static DWORD look(port_t *port, int64_t ns, ULONG room, OVERLAPPED_ENTRY *entries, look_t *seen) {
    struct epoll_event events[MAX_BATCH];
    port->waiters += ns != 0;
    pthread_mutex_unlock(&port->lock);
    int found = wait_for_reports(port->kernel.epoll, events, (int)room, ns);
    int error = errno;
    pthread_mutex_lock(&port->lock);
    port->waiters -= ns != 0;
    port->counters.kernel_waits++;
    if (atomic_load(&port->closing))
        return ERROR_ABANDONED_WAIT_0;
    seen->interrupted = found < 0;
    if (found < 0 && error != EINTR)
        return ERROR_SYSTEM_CALL | (DWORD)error;
    bool stale = false;
    for (int i = 0; i < found; i++)
        if (!(events[i].data.u64 & WAKE_UP)) {
            outcome_t outcome = deliver(port, &events[i], &entries[seen->delivered]);
            seen->delivered += outcome == DELIVERED;
            stale |= outcome == STALE;
            seen->stuck |= outcome == STUCK;
        }
    port->kernel.stale_run = stale ? port->kernel.stale_run + 1 : 0;
    if (port->kernel.stale_run >= ORPHAN_REPORTS) {
        port->kernel.stale_run = 0;
        seen->stuck |= !rebuild(port);
    }
    seen->again = found == (int)room && !stale;
    return ERROR_SUCCESS;
}
