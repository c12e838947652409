/* Ports by their handles, who is inside one, and what a fork does to them. */

/* Ports are recycled, never freed: a late caller with an old handle finds a port whose handle differs. */
static _Atomic(port_t *) ports[MAX_PORTS];
static uintptr_t port_count = 1; /* made so far; none has the number 0 */
static pthread_mutex_t ports_lock = PTHREAD_MUTEX_INITIALIZER;
static uintptr_t port_generation;
static pthread_once_t fork_once = PTHREAD_ONCE_INIT;
static uint32_t this_process; /* how many forks it is away from the first */
uint32_t fork_count;          /* both change with every mutex held */

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

/* Frees what a port has, and makes it one that can be used again; called with ports_lock held. */
static void tear_down(port_t *port) {
    close_kernel(port);
    free(port->records);
    free(port->queue);
    port->records = NULL;
    port->queue = NULL;
    port->record_count = port->queue_size = port->queue_head = port->queue_length = 0;
    atomic_store(&port->closing, false);
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
