/* Dequeuing: packets and the kernel's reports, until there is one of them or the time is over. */

#define LONGEST (INT64_MAX / 2) /* nanoseconds that can be added to the time */
#define PAUSE 1000000           /* nanoseconds until what failed is tried again */

static int64_t now_ns(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * INT64_C(1000000000) + time.tv_nsec;
}

static void pause_unlocked(port_t *port) {
    struct timespec time = {.tv_nsec = PAUSE};
    pthread_mutex_unlock(&port->lock);
    nanosleep(&time, NULL);
    pthread_mutex_lock(&port->lock);
}

/* Dequeues with the port locked; unlocks only around the kernel's wait. */
static DWORD dequeue_until(port_t *port, int64_t entered, int64_t timeout, ULONG room, OVERLAPPED_ENTRY *entries, UINT32 *received,
                           const results_t *results) {
    if (timeout > LONGEST)
        timeout = LONGEST;
    int64_t deadline = timeout > 0 ? entered + timeout : 0;
    ULONG count = 0;
    if (room > MAX_BATCH)
        room = MAX_BATCH;
    for (;;) {
        if (port->unarmed)
            arm_persistent(port);
        look_t seen = {.stuck = port->unarmed};
        /* Packets first, but every other time: a flood of packets must not starve the sockets, nor they the packets. */
        port->queue_last = !port->queue_last;
        if (!port->queue_last)
            count = pop_packets(port, entries, room);
        if (count < room) {
            DWORD error = look(port, count || port->queue_length || seen.stuck ? 0 : timeout, room - count, &entries[count], &seen);
            if (error == ERROR_ABANDONED_WAIT_0 || (error && !count))
                return error;
            count += seen.delivered;
        }
        count += pop_packets(port, entries + count, room - count);
        if (count) {
            port->counters.notifications += count;
            *received = count;
            return ERROR_SUCCESS;
        }
        if (seen.stuck && timeout)
            pause_unlocked(port);
        if (seen.interrupted || seen.stuck)
            return WAIT_IO_COMPLETION; /* a signal, or there may have been one: Python's handlers want to run */
        if (results->failed)
            timeout = 0;
        if (timeout > 0 && (timeout = deadline - now_ns()) < 0)
            timeout = 0;
        if (!timeout && !seen.again)
            return WAIT_TIMEOUT;
    }
}

/* How long the program was away since the last wait is how long a ready socket may have had to wait for it: worth knowing, and nowhere
 * as cheap to know as here. Of use where one thread waits, as an event loop does. */
static DWORD dequeue(port_t *port, int64_t timeout, ULONG room, OVERLAPPED_ENTRY *entries, UINT32 *received,
                     const results_t *results) {
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
    DWORD result = dequeue_until(port, entered, results->failed ? 0 : timeout, room, entries, received, results);
    port->left_at = now_ns();
    counters->waiting_ns += (uint64_t)(port->left_at - entered);
    return result;
}
