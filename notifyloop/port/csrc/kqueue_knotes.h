/* Which knotes a registration needs, in which mode; and the queue that they are in. */

static int open_kernel(kernel_t *kernel, uintptr_t handle) {
    (void)handle;
    struct kevent wake_ups;
    EV_SET(&wake_ups, 0, EVFILT_USER, EV_ADD | EV_CLEAR, 0, 0, NULL);
    *kernel = (kernel_t){.queue = -1, .list = malloc(sizeof *kernel->list)};
    if (!kernel->list)
        return ENOMEM;
    kernel->list->change_count = kernel->list->order_count = 0;
    int error = 0;
    if ((kernel->queue = kqueue()) < 0 || fcntl(kernel->queue, F_SETFD, FD_CLOEXEC) < 0 ||
        kevent(kernel->queue, &wake_ups, 1, NULL, 0, &no_time) < 0) {
        error = errno;
        if (kernel->queue >= 0)
            close(kernel->queue);
        free(kernel->list);
    }
    return error;
}

/* In a child the queue's number is nobody's, or somebody else's. */
static void close_kernel(const port_t *port) {
    if (port->process == this_process)
        close(port->kernel.queue);
    free(port->kernel.list);
}

/* The mode of a knote that a registration needs, or -1. */
static int needed(int knote, UINT16 filter, UINT8 trigger) {
    int mode = (trigger & SOCK_NOTIFY_TRIGGER_EDGE ? EDGE : LEVEL) | (trigger & SOCK_NOTIFY_TRIGGER_ONESHOT ? ONCE : LEVEL);
    if (knote == WRITE)
        return filter & SOCK_NOTIFY_REGISTER_EVENT_OUT ? mode : -1;
    if (filter & SOCK_NOTIFY_REGISTER_EVENT_IN)
        return mode;
    return filter == SOCK_NOTIFY_REGISTER_EVENT_OUT ? -1 : EDGE; /* a quiet watch */
}

static void list_added(port_t *port, int descriptor, record_t *record, int knote, int mode) {
    list_change(port, descriptor, record, knote, EV_ADD | EV_ENABLE | (unsigned)mode, true);
    record->kernel.added[knote] = true;
    record->kernel.spent[knote] = false;
    record->kernel.mode[knote] = (UINT8)mode;
}

/* Lists what the kernel must be told for this filter and trigger. What is there and not needed is left, if it reports once at most: it
 * will be silent then. If they are others than before, a knote that is there is named in any case: so whoever asks for something else
 * hears whether the descriptor is still the file that was registered. */
static void list_arming(port_t *port, int descriptor, record_t *record, UINT16 filter, UINT8 trigger) {
    record_t before = *record;
    bool ordered = false, other = filter != record->filter || trigger != record->trigger;
    int named = !other ? KNOTES : record->kernel.added[READ] ? READ : WRITE;
    for (int knote = READ; knote < KNOTES; knote++) {
        int mode = needed(knote, filter, trigger);
        int added_with = record->kernel.added[knote] ? record->kernel.mode[knote] : -1;
        bool added = added_with >= 0, stays = added && (mode < 0 ? added_with != LEVEL : added_with == mode);
        bool spent = record->kernel.spent[knote];
        if (stays ? knote != named && (mode < 0 || !spent) : mode < 0 && !added)
            continue;
        if (!ordered)
            list_order(port, descriptor, &before, record->key, record->generation);
        ordered = true;
        if (stays) {
            bool silent = mode < 0 && spent;
            list_change(port, descriptor, record, knote, silent ? EV_DISABLE : EV_ENABLE, true);
            record->kernel.spent[knote] = silent;
            continue;
        }
        if (added)
            list_change(port, descriptor, record, knote, EV_DELETE, true);
        record->kernel.added[knote] = false;
        if (mode >= 0)
            list_added(port, descriptor, record, knote, mode);
    }
}

static int arm(port_t *port, int descriptor, record_t *record, UINT16 filter, UINT8 trigger) {
    make_room(port, record);
    if (record->state <= LOST) /* as it turned out just now */
        return ENOENT;
    list_arming(port, descriptor, record, filter, trigger);
    note_armed(port, record, filter, trigger);
    return 0;
}

static int arm_again(port_t *port, int descriptor, record_t *record) {
    return arm(port, descriptor, record, record->filter, record->trigger);
}

/* A change that changes nothing: the kernel says whether there is a knote. */
static int look_again(port_t *port, int descriptor, record_t *record, UINT16 filter, UINT8 trigger) {
    (void)filter, (void)trigger;
    make_room(port, record);
    int knote = record->kernel.added[READ] ? READ : WRITE;
    int error = tell(port, port->kernel.queue, descriptor, knote, record->kernel.spent[knote] ? EV_DISABLE : EV_ENABLE, record->generation);
    if (error && !passes(error))
        record->state = LOST;
    return passes(error) ? error : 0;
}

/* Another key for what is still registered would be a change of key. The knotes of what nobody registers any more may still be there, if
 * the descriptor was not closed: those that are needed are added over, for which they must have the same mode; the others go when they report. */
static int watch(port_t *port, int descriptor, record_t *record, record_t *fresh) {
    make_room(port, record);
    if (record->state > LOST) {
        int error = look_again(port, descriptor, record, 0, 0);
        if (error || record->state > LOST)
            return error ? error : EEXIST;
    }
    for (int knote = READ; knote < KNOTES; knote++) {
        int mode = needed(knote, fresh->filter, fresh->trigger);
        if (record->kernel.added[knote] && mode >= 0 && mode != record->kernel.mode[knote])
            tell(port, port->kernel.queue, descriptor, knote, EV_DELETE, record->generation);
    }
    list_order(port, descriptor, record, fresh->key, fresh->generation);
    *record = *fresh;
    for (int knote = READ; knote < KNOTES; knote++) {
        int mode = needed(knote, fresh->filter, fresh->trigger);
        if (mode >= 0)
            list_added(port, descriptor, record, knote, mode);
    }
    return 0;
}

/* What is listed for it goes first, in the same call. */
static int unwatch(port_t *port, int descriptor, record_t *record) {
    struct list *list = port->kernel.list;
    if (list->change_count + MOST_OF_AN_ORDER > MAX_CHANGES)
        flush(port);
    unsigned first = list->change_count;
    for (int knote = READ; knote < KNOTES; knote++)
        if (record->kernel.added[knote])
            list_change(port, descriptor, record, knote, EV_DELETE, false);
    unsigned count = list->change_count - first;
    flush(port);
    int error = ENOENT;
    for (unsigned i = 0; i < count && error; i++)
        error = (int)list->receipts[first + i].data;
    if (!passes(error))
        memset(&record->kernel, 0, sizeof record->kernel);
    return error;
}

/* To close a descriptor takes its knotes out. If they report until then, they are taken out by that. */
static void abandon(port_t *port, int descriptor, record_t *record) {
    (void)port, (void)descriptor, (void)record;
}

/* Gives a knote another mode, or makes it anew if that could be done by half only. */
static int change_mode(port_t *port, int descriptor, record_t *record, int knote, int mode) {
    int error = 0;
    if (record->kernel.added[knote])
        error = tell(port, port->kernel.queue, descriptor, knote, EV_DELETE, record->generation);
    record->kernel.added[knote] &= error != 0;
    if (!error)
        error = tell(port, port->kernel.queue, descriptor, knote, EV_ADD | EV_ENABLE | (unsigned)mode, record->generation);
    if (!error) {
        record->kernel.added[knote] = true;
        record->kernel.mode[knote] = (UINT8)mode;
        record->kernel.spent[knote] = false;
    } else if (!passes(error)) {
        record->state = LOST;
    }
    return error;
}

static void arm_missing(port_t *port, int descriptor, record_t *record) {
    for (int knote = READ; knote < KNOTES && record->state == ENABLED; knote++) {
        int mode = needed(knote, record->filter, record->trigger);
        if (mode >= 0 && !record->kernel.added[knote])
            port->unarmed |= passes(change_mode(port, descriptor, record, knote, mode));
    }
}

/* A quiet watch that has met the end goes on reporting it, as a level. */
static void arm_persistent(port_t *port) {
    port->unarmed = false;
    for (size_t i = 0; i < port->record_count; i++) {
        record_t *record = &port->records[i];
        if (record->state != ENABLED || record->kernel.pending)
            continue;
        arm_missing(port, (int)i, record);
        bool level = record->trigger == (SOCK_NOTIFY_TRIGGER_LEVEL | SOCK_NOTIFY_TRIGGER_PERSISTENT);
        if (level && record->kernel.spent[READ] && record->kernel.mode[READ] == EDGE)
            port->unarmed |= passes(change_mode(port, (int)i, record, READ, LEVEL));
    }
}

/* A child has no queue, so it makes one, of what was registered. What it has closed since is lost. What it has opened in place of it is taken for
 * what was registered: nobody can tell which files a queue held that is no more. */
static DWORD adopt(port_t *port) {
    kernel_t kernel;
    int error = open_kernel(&kernel, 0);
    if (error)
        return ERROR_AFTER_FORK | (DWORD)error;
    for (size_t i = 0; !error && i < port->record_count; i++) {
        record_t *record = &port->records[i];
        record->kernel.pending = false;
        for (int knote = READ; knote < KNOTES && record->state > LOST; knote++)
            if (record->kernel.added[knote]) {
                unsigned flags = EV_ADD | record->kernel.mode[knote] | (record->kernel.spent[knote] ? EV_DISABLE : EV_ENABLE);
                error = tell(port, kernel.queue, (int)i, knote, flags, record->generation);
                if (passes(error))
                    break;
                if (error)
                    record->state = LOST;
                error = 0;
            }
    }
    if (error) {
        close(kernel.queue);
        free(kernel.list);
        return ERROR_AFTER_FORK | (DWORD)error;
    }
    free(port->kernel.list);
    port->kernel = kernel;
    port->process = this_process;
    port->left_at = 0;
    return ERROR_SUCCESS;
}
