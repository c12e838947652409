/* The kernel's reports, and what becomes of them. */

#define LONGEST_WAIT 100000 /* seconds: more than 1000000 macOS calls invalid. Who waits longer waits again. */

/* A datagram socket has no end of its stream, but may be shut down by its owner. */
static bool has_ended(int descriptor, record_t *record) {
    if (!record->connected) {
        int type;
        socklen_t length = sizeof type;
        record->connected = getsockopt(descriptor, SOL_SOCKET, SO_TYPE, &type, &length) < 0 || type == SOCK_STREAM || type == SOCK_SEQPACKET;
    }
    return record->connected;
}

/* In both directions. A peer that has only finished sending is the business of who asked for that. */
static bool is_gone(int descriptor) {
    struct pollfd now = {.fd = descriptor};
    int count;
    do
        count = poll(&now, 1, 0);
    while (count < 0 && errno == EINTR);
    return count > 0 && now.revents & (POLLHUP | POLLERR);
}

/* Of the error of a datagram socket the kernel says only that it is readable, and writable: whoever receives or sends will meet it. */
static DWORD reported_events(record_t *record, int knote, const struct kevent *event) {
    bool end = event->flags & EV_EOF && has_ended((int)event->ident, record), error = end && event->fflags;
    DWORD mask = 0;
    if (knote == READ)
        mask = SOCK_NOTIFY_EVENT_IN | (end ? SOCK_NOTIFY_EVENT_HANGUP : 0);
    else if (!error) /* a failed connect is not writable */
        mask = SOCK_NOTIFY_EVENT_OUT;
    else
        mask = SOCK_NOTIFY_EVENT_HANGUP;
    mask &= record->filter;
    /* A hang-up that nobody asked for must not be withheld for ever: the socket is of no more use, which is what ERR says. */
    if (error || (!mask && end && knote == READ && is_gone((int)event->ident)))
        mask |= SOCK_NOTIFY_EVENT_ERR;
    return mask;
}

typedef enum { DELIVERED, WITHHELD, STALE, STUCK } outcome_t; /* STUCK: withheld, and could not be silenced */

/* A report that belongs to nobody: of what was given up, and not closed yet. If its knote was added over since, it is silent, or somebody's. */
static outcome_t drop(port_t *port, int descriptor, record_t *record, int knote, uint32_t generation) {
    port->counters.stale++;
    if (record && record->state > LOST && record->kernel.added[knote])
        return STALE;
    tell(port, port->kernel.queue, descriptor, knote, EV_DELETE, generation);
    if (record)
        record->kernel.added[knote] = false;
    return STALE;
}

static outcome_t withhold(port_t *port, int descriptor, record_t *record, int knote) {
    port->counters.withheld++;
    if (record->kernel.mode[knote] == LEVEL) {
        int error = tell(port, port->kernel.queue, descriptor, knote, EV_DISABLE, record->generation);
        if (passes(error))
            return STUCK;
        if (error)
            record->state = LOST;
    }
    record->kernel.spent[knote] = true;
    return WITHHELD;
}

/* One report becomes a notification, the next of `entries`, or a part of one that is there already, or is withheld. */
static outcome_t deliver(port_t *port, const struct kevent *event, OVERLAPPED_ENTRY *entries, ULONG count) {
    int knote = event->filter == EVFILT_READ ? READ : WRITE, descriptor = (int)event->ident;
    uint32_t generation = (uint32_t)(uintptr_t)event->udata;
    record_t *record = event->ident < port->record_count ? &port->records[event->ident] : NULL;
    if (!record || record->state <= LOST || record->generation != generation)
        return drop(port, descriptor, record, knote, generation);
    UINT8 mode = record->kernel.mode[knote];
    record->kernel.spent[knote] |= (mode & ONCE) != 0;
    OVERLAPPED_ENTRY *same = record->kernel.slot < count ? &entries[record->kernel.slot] : NULL;
    if (same && (same->Internal != (ULONG_PTR)event->ident + 1 || same->lpCompletionKey != record->key))
        same = NULL;
    if (record->state != ENABLED && !(same && record->state == SPENT))
        return withhold(port, descriptor, record, knote);
    DWORD mask = reported_events(record, knote, event);
    if (!mask) { /* fetched before its filter was changed; or data, on a quiet watch, which goes on as one */
        bool loud = mode != EDGE && needed(knote, record->filter, record->trigger) == EDGE;
        port->unarmed |= loud && passes(change_mode(port, descriptor, record, knote, EDGE));
        return WITHHELD;
    }
    if (mode == EDGE && record->trigger & SOCK_NOTIFY_TRIGGER_LEVEL) { /* the end, on a quiet watch */
        record->kernel.spent[knote] = true;
        port->unarmed |= (record->trigger & SOCK_NOTIFY_TRIGGER_PERSISTENT) != 0;
    }
    if (same) {
        same->dwNumberOfBytesTransferred |= mask;
        if (same->dwNumberOfBytesTransferred & SOCK_NOTIFY_EVENT_ERR)
            same->dwNumberOfBytesTransferred &= ~(DWORD)SOCK_NOTIFY_EVENT_OUT;
        return WITHHELD;
    }
    if (record->trigger & SOCK_NOTIFY_TRIGGER_ONESHOT)
        record->state = SPENT;
    record->kernel.slot = (UINT16)count;
    entries[count] = (OVERLAPPED_ENTRY){
        .lpCompletionKey = record->key, .Internal = (ULONG_PTR)event->ident + 1, .dwNumberOfBytesTransferred = mask};
    return DELIVERED;
}

/* Tells the kernel what is listed and waits, in one call. With changes that others might have to wait for, it does not wait. */
static DWORD look(port_t *port, int64_t ns, ULONG room, OVERLAPPED_ENTRY *entries, look_t *seen) {
    struct kevent events[MAX_BATCH];
    struct list *list = port->kernel.list;
    if (list->change_count > room) { /* there is to be room for each refusal */
        flush(port);
        if (list->results->failed && ns) {
            ns = 0;
            seen->again = true;
        }
    }
    if (list->change_count && ns && (port->waiters || atomic_load(&port->users) > 1)) {
        ns = 0;
        seen->again = true;
    }
    struct timespec timeout = {.tv_sec = ns / 1000000000, .tv_nsec = ns % 1000000000};
    if (ns > LONGEST_WAIT * INT64_C(1000000000))
        timeout = (struct timespec){.tv_sec = LONGEST_WAIT};
    bool waits = ns != 0;
    int told = (int)list->change_count; /* without any, others may list theirs meanwhile */
    port->kernel.in_flight |= waits && told;
    port->waiters += waits;
    if (waits)
        pthread_mutex_unlock(&port->lock);
    int found = kevent(port->kernel.queue, list->changes, told, events, (int)room, ns < 0 ? NULL : &timeout);
    int error = found < 0 ? errno : 0;
    if (waits)
        pthread_mutex_lock(&port->lock);
    port->waiters -= waits;
    port->counters.kernel_waits++;
    int refused = 0;
    while (refused < found && events[refused].flags & EV_ERROR)
        refused++;
    if (told) { /* a wait that was interrupted has applied them before */
        note_refusals(list, events, refused);
        seen->again |= refused > 0; /* there was no wait then */
        close_list(port, error == EINTR ? 0 : error);
        if (port->kernel.in_flight) {
            port->kernel.in_flight = false;
            pthread_cond_broadcast(&port->left);
        }
    }
    if (atomic_load(&port->closing))
        return ERROR_ABANDONED_WAIT_0;
    seen->interrupted = found < 0;
    if (error && error != EINTR)
        return ERROR_SYSTEM_CALL | (DWORD)error;
    bool stale = false;
    for (int i = refused; i < found; i++)
        if (events[i].filter != EVFILT_USER) {
            outcome_t outcome = deliver(port, &events[i], entries, seen->delivered);
            seen->delivered += outcome == DELIVERED;
            stale |= outcome == STALE;
            seen->stuck |= outcome == STUCK;
        }
    if (port->unarmed)
        arm_persistent(port);
    seen->again |= found == (int)room && !stale;
    return ERROR_SUCCESS;
}
