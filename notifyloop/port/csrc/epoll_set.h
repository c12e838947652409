/* A port's epoll set: what the kernel is told of a descriptor, and of the eventfd that wakes who waits. */

/* What epoll carries for the eventfd has this bit, which no descriptor's number has. */
#define WAKE_UP (UINT64_C(1) << 31)

#define KERNEL_ARMED (1u << 27) /* a bit that epoll does not use: tells "armed with an empty filter" from "not in the set" */
#define PARKED (KERNEL_ARMED | EPOLLET | EPOLLONESHOT) /* epoll cannot mask errors and hang-up: these may be reported, once */

static int watch_wake_ups(const kernel_t *kernel, int epoll, int wake, int operation, uint32_t events) {
    struct epoll_event event = {.events = events, .data.u64 = kernel->wake_up};
    return epoll_ctl(epoll, operation, wake, &event) < 0 ? errno : 0;
}

static void close_set(const kernel_t *kernel) {
    if (kernel->epoll >= 0)
        close(kernel->epoll);
    if (kernel->wake >= 0)
        close(kernel->wake);
}

/* Opens an empty set with an eventfd in it, for whose reports `wake_up` is. */
static int open_set(kernel_t *kernel) {
    kernel->epoll = epoll_create1(EPOLL_CLOEXEC);
    kernel->wake = kernel->epoll < 0 ? -1 : eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    int error = kernel->wake < 0 ? errno : watch_wake_ups(kernel, kernel->epoll, kernel->wake, EPOLL_CTL_ADD, EPOLLIN | EPOLLET);
    if (error)
        close_set(kernel);
    return error;
}

static int open_kernel(kernel_t *kernel, uintptr_t handle) {
    *kernel = (kernel_t){.wake_up = (uint64_t)handle >> 31 << 32 | WAKE_UP | (handle & (WAKE_UP - 1))};
    return open_set(kernel);
}

/* Wakes one waiting thread. The eventfd is watched edge-triggered: every write is an edge for one thread, and nobody has to read it. */
static bool wake_one(port_t *port) {
    uint64_t one = 1;
    while (write(port->kernel.wake, &one, sizeof one) < 0)
        if (errno != EINTR)
            return false;
    return true;
}

/* Watched as a level from now on, the eventfd ends every wait, not just one. */
static void wake_all(port_t *port) {
    watch_wake_ups(&port->kernel, port->kernel.epoll, port->kernel.wake, EPOLL_CTL_MOD, EPOLLIN);
    wake_one(port);
}

static int tell(port_t *port, int epoll, int operation, int descriptor, const record_t *record, uint32_t events) {
    struct epoll_event event = {
        .events = events & ~KERNEL_ARMED,
        .data.u64 = (uint64_t)record->generation << 32 | (uint32_t)descriptor,
    };
    port->counters.kernel_changes++;
    return epoll_ctl(epoll, operation, descriptor, &event) < 0 ? errno : 0;
}

static bool passes(int error) {
    return error == ENOMEM || error == ENOSPC;
}

static int change(port_t *port, int operation, int descriptor, record_t *record, uint32_t events) {
    int error = tell(port, port->kernel.epoll, operation, descriptor, record, events);
    if (!error) {
        record->kernel.events = events;
        record->kernel.fired = false;
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

static int arm(port_t *port, int descriptor, record_t *record, UINT16 filter, UINT8 trigger) {
    uint32_t events = kernel_events(port, filter, trigger), difference = record->kernel.events ^ events;
    if (trigger & SOCK_NOTIFY_TRIGGER_ONESHOT) /* EPOLLONESHOT more or less is no difference while it has not fired */
        difference &= ~(uint32_t)EPOLLONESHOT;
    bool armed = !difference && !record->kernel.fired;
    int error = armed ? 0 : change(port, EPOLL_CTL_MOD, descriptor, record, events);
    if (error)
        return error;
    note_armed(port, record, filter, trigger);
    return 0;
}

/* Now and then the kernel is asked whether the descriptor is still the file that was registered: a file that was closed without a word while a
 * duplicate lives is reported for ever. */
static int arm_again(port_t *port, int descriptor, record_t *record) {
    if (++record->kernel.believed == 0) { /* each 256th time */
        int error = change(port, EPOLL_CTL_MOD, descriptor, record, record->kernel.events);
        if (error)
            return error;
    }
    return arm(port, descriptor, record, record->filter, record->trigger);
}

static int look_again(port_t *port, int descriptor, record_t *record, UINT16 filter, UINT8 trigger) {
    int error = change(port, EPOLL_CTL_MOD, descriptor, record, kernel_events(port, filter, trigger));
    return passes(error) ? error : 0;
}

/* What is in the set already, though nobody has registered it any more: epoll knows a file by its number, too, and one that lived on in a
 * duplicate may have come back under the old. */
static int watch(port_t *port, int descriptor, record_t *record, record_t *fresh) {
    uint32_t events = kernel_events(port, fresh->filter, fresh->trigger);
    fresh->kernel.forks = fork_count;
    int error = change(port, EPOLL_CTL_ADD, descriptor, fresh, events);
    if (error == EEXIST && record->state <= LOST)
        error = change(port, EPOLL_CTL_MOD, descriptor, fresh, events);
    if (!error)
        *record = *fresh;
    return error;
}

static int unwatch(port_t *port, int descriptor, record_t *record) {
    return tell(port, port->kernel.epoll, EPOLL_CTL_DEL, descriptor, record, 0);
}

/* To close a descriptor that was duplicated would not take it out. */
static void abandon(port_t *port, int descriptor, record_t *record) {
    if (record->kernel.forks != fork_count && port->process == this_process)
        tell(port, port->kernel.epoll, EPOLL_CTL_DEL, descriptor, record, 0);
}

/* epoll is told of each order by a call of its own, which answers. */
static void begin_orders(port_t *port, results_t *results) {
    (void)port, (void)results;
}

static void finish_orders(port_t *port) {
    (void)port;
}
