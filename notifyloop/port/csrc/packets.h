/* The queue of packets: those that a program posts, and the notices that a registration is gone. First in, first out. */

static bool grow_queue(port_t *port) {
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

/* Makes room for so many more packets. What must not fail later is reserved before anything is changed. */
static bool reserve_packets(port_t *port, size_t count) {
    while (port->queue_size - port->queue_length < count)
        if (!grow_queue(port))
            return false;
    return true;
}

static void push_packet(port_t *port, OVERLAPPED_ENTRY packet) {
    port->queue[(port->queue_head + port->queue_length++) & (port->queue_size - 1)] = packet;
    wake_for_packets(port);
}

static ULONG pop_packets(port_t *port, OVERLAPPED_ENTRY *entries, ULONG room) {
    ULONG count = 0;
    while (count < room && port->queue_length) {
        entries[count++] = port->queue[port->queue_head];
        port->queue_head = (port->queue_head + 1) & (port->queue_size - 1);
        port->queue_length--;
    }
    if (port->queue_length) /* somebody else may take the rest */
        wake_for_packets(port);
    return count;
}
