/* Orphans: reports of descriptors that can no longer be named. A new set leaves them behind. */

/* Whether all that is registered is in the new set. A descriptor may have been closed and opened again for another file, which nobody
 * registered: only if the old set knows it, it is still the one. Asked after adding it, because it may be closed in between. */
static bool copy_records(port_t *port, int epoll) {
    for (size_t i = 0; i < port->record_count; i++) {
        record_t *record = &port->records[i];
        if (record->state <= LOST)
            continue;
        int error = tell(port, epoll, EPOLL_CTL_ADD, (int)i, record, record->kernel.events);
        if (!error)
            error = change(port, EPOLL_CTL_MOD, (int)i, record, record->kernel.events);
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
    watch_wake_ups(&port->kernel, port->kernel.epoll, port->kernel.wake, EPOLL_CTL_MOD, EPOLLIN); /* a level wakes all, an edge one */
    wake_one(port);
    int result;
    do
        result = dup3(epoll, port->kernel.epoll, O_CLOEXEC);
    while (result < 0 && (errno == EINTR || errno == EBUSY));
    if (result >= 0) {
        close(epoll);
    } else if (atomic_load(&port->users) == 1) { /* the limit of descriptors may be below this number by now; nobody else knows it */
        close(port->kernel.epoll);
        port->kernel.epoll = epoll;
    } else {
        watch_wake_ups(&port->kernel, port->kernel.epoll, port->kernel.wake, EPOLL_CTL_MOD, EPOLLIN | EPOLLET);
        return false;
    }
    return true;
}

/* Leaves the orphans behind in an old epoll set. Returns whether it could: descriptors or memory may be short. */
static bool rebuild(port_t *port) {
    int epoll = epoll_create1(EPOLL_CLOEXEC);
    if (epoll < 0)
        return false;
    if (watch_wake_ups(&port->kernel, epoll, port->kernel.wake, EPOLL_CTL_ADD, EPOLLIN | EPOLLET) || !copy_records(port, epoll) ||
        !replace_set(port, epoll)) {
        close(epoll);
        return false;
    }
    port->counters.rebuilds++;
    return true;
}
