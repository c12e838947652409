/* The calls that the caller makes: what `port/abi.py` declares. */

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
    results_t results = {.registrations = registrations};
    begin_orders(port, &results);
    for (UINT32 i = 0; i < registration_count; i++) {
        results.index = i;
        registrations[i].registrationResult = 0;
        int error = apply(port, &registrations[i]);
        if (error)
            fail(&results, i, 0, error);
    }
    if (completion_count)
        result = dequeue(port, timeout_ns, completion_count, entries, received, &results);
    finish_orders(port);
    leave(port);
    return registration_count ? after_changes(result) : result;
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
    results_t results = {.call = call};
    begin_orders(port, &results);
    for (UINT32 i = 0; i < ordered; i++) {
        SOCK_NOTIFY_REGISTRATION registration;
        memcpy(&registration, call->packed + i * sizeof registration, sizeof registration);
        results.index = i;
        int error = apply(port, &registration);
        if (error)
            fail(&results, i, (ULONG_PTR)registration.completionKey, error);
    }
    for (UINT32 i = 0; i < dequeued; i++) {
        results.index = ordered + i;
        int error = enable_again(port, &call->entries[i]);
        if (error)
            fail(&results, ordered + i, call->entries[i].lpCompletionKey, error);
    }
    call->size = 0;
    call->dequeued = 0;
    if (call->completionCount)
        code = dequeue(port, call->timeoutNs, call->completionCount, call->entries, &received, &results);
    finish_orders(port);
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

EXPORT HANDLE CreateIoCompletionPort(HANDLE file, HANDLE existing, ULONG_PTR key, DWORD threads) {
    (void)threads; /* there is no limit of running threads */
    if (file != (HANDLE)UINTPTR_MAX || existing || key) {
        errno = EINVAL; /* files cannot be associated with a port here */
        return NULL;
    }
    pthread_once(&fork_once, watch_forks);
    uintptr_t handle = 0, index = 0;
    pthread_mutex_lock(&ports_lock); /* also for the descriptors: a child that is forked now could not close them */
    port_t *port = free_port(&index);
    kernel_t kernel;
    int error = ENOMEM;
    if (port) {
        handle = ++port_generation * MAX_PORTS + index;
        error = open_kernel(&kernel, handle);
    }
    if (!error) {
        port->kernel = kernel;
        port->process = this_process;
        port->waiters = port->generation = 0;
        port->unwoken = port->unarmed = false;
        port->left_at = 0;
        memset(&port->counters, 0, sizeof port->counters);
        atomic_store(&port->handle, handle);
    }
    pthread_mutex_unlock(&ports_lock);
    if (error) {
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
    if (port->process == this_process) /* else the threads that wait are the parent's */
        wake_all(port);
    while (atomic_load(&port->users))
        pthread_cond_wait(&port->left, &port->lock);
    pthread_mutex_unlock(&port->lock);
    pthread_mutex_lock(&ports_lock);
    tear_down(port);
    pthread_mutex_unlock(&ports_lock);
    return 1;
}
