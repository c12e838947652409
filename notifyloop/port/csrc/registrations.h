/* What a caller orders for a descriptor. */

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

/* What is enabled, as soon as the kernel knows of it or will. */
static void note_armed(port_t *port, record_t *record, UINT16 filter, UINT8 trigger) {
    port->counters.re_arms += record->state != ENABLED;
    record->filter = filter;
    record->trigger = trigger;
    record->state = ENABLED;
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
        int error = look_again(port, descriptor, record, registration->eventFilter, registration->triggerFlags);
        if (error)
            return error;
    }
    if (record->state == LOST && record->key == key && !renew)
        return ENOENT; /* what has the descriptor now is not what was registered */
    if (record->state > LOST && record->key == key)
        return arm(port, descriptor, record, registration->eventFilter, registration->triggerFlags);

    /* A new registration, or one for a descriptor that was closed and reused: the kernel knows. Another key for a file that is
     * still registered would be a change of key, which takes a REMOVE first. */
    record_t fresh = {
        .key = key,
        .generation = ++port->generation,
        .filter = registration->eventFilter,
        .trigger = registration->triggerFlags,
        .state = ENABLED,
    };
    int error = watch(port, descriptor, record, &fresh);
    port->counters.registrations += !error;
    return error;
}

/* Enables again what this packet has disarmed, unless something else was ordered since. */
static int enable_again(port_t *port, const OVERLAPPED_ENTRY *packet) {
    size_t descriptor = (size_t)packet->Internal - 1; /* of a packet that is no notification: none */
    record_t *record = descriptor < port->record_count ? &port->records[descriptor] : NULL;
    if (!record || record->state != SPENT || record->key != packet->lpCompletionKey)
        return 0;
    return arm_again(port, (int)descriptor, record);
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
    abandon(port, (int)descriptor, record);
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
    int error = record->state == LOST ? ENOENT : unwatch(port, descriptor, record);
    if (passes(error))
        return error;
    record->state = ABSENT;
    if (error) /* closed behind our back: that deregistered it, without a notice */
        return ENOENT;
    push_packet(port, (OVERLAPPED_ENTRY){.lpCompletionKey = record->key,
                                         .dwNumberOfBytesTransferred = SOCK_NOTIFY_EVENT_REMOVE});
    return 0;
}
