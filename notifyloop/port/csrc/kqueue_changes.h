/* Changes: told to the kernel at once, or listed until the call that waits; and what becomes of an order whose changes it refuses. */

enum { MAX_CHANGES = 256, MOST_OF_AN_ORDER = 2 * KNOTES, NO_ORDER = UINT16_MAX };

/* What was ordered, and how to undo it. */
typedef struct {
    ULONG_PTR key;
    UINT32 index;
    int descriptor;
    int error;
    uint32_t generation;
    record_t before;
} order_t;

struct list {
    results_t *results; /* of the call whose orders these are */
    unsigned change_count, order_count;
    struct kevent changes[MAX_CHANGES], receipts[MAX_CHANGES];
    UINT16 order_of[MAX_CHANGES];
    order_t orders[MAX_CHANGES];
};

static const struct timespec no_time;

static bool passes(int error) {
    return error == ENOMEM;
}

static struct kevent change_of(int descriptor, int knote, unsigned flags, uint32_t generation) {
    struct kevent change;
    EV_SET(&change, (uintptr_t)descriptor, knote == READ ? EVFILT_READ : EVFILT_WRITE, (unsigned short)flags, 0, 0, (void *)(uintptr_t)generation);
    return change;
}

/* Tells of one change, and asks for no events: then its error is the call's. */
static int tell(port_t *port, int queue, int descriptor, int knote, unsigned flags, uint32_t generation) {
    struct kevent change = change_of(descriptor, knote, flags, generation);
    port->counters.kernel_changes++;
    int result;
    do
        result = kevent(queue, &change, 1, NULL, 0, &no_time);
    while (result < 0 && errno == EINTR);
    return result < 0 ? errno : 0;
}

/* After an order that was not carried out as a whole, nobody knows which knotes there are. */
static void take_out(port_t *port, int descriptor, record_t *record) {
    for (int knote = READ; knote < KNOTES; knote++) {
        tell(port, port->kernel.queue, descriptor, knote, EV_DELETE, record->generation);
        record->kernel.added[knote] = record->kernel.spent[knote] = false;
    }
}

/* Adds what an enabled registration needs and has not, or has another try at that later. */
static void arm_missing(port_t *port, int descriptor, record_t *record);

static void undo(port_t *port, const order_t *order) {
    record_t *record = &port->records[order->descriptor];
    if (record->generation != order->generation || record->state <= LOST)
        return;
    bool fresh = order->before.generation != order->generation;
    if (fresh) {
        take_out(port, order->descriptor, record);
        *record = order->before;
        port->counters.registrations--;
        memset(&record->kernel, 0, sizeof record->kernel);
    } else if (passes(order->error)) { /* it is as it was, from here on */
        take_out(port, order->descriptor, record);
        record->filter = order->before.filter;
        record->trigger = order->before.trigger;
        if (record->state == ENABLED)
            record->state = order->before.state;
        arm_missing(port, order->descriptor, record);
    } else { /* what is registered is not what has the descriptor now, if anything has */
        take_out(port, order->descriptor, record);
        record->state = LOST;
    }
}

/* The list was told, and `error` is what the call said of all that were not refused each by itself. */
static void close_list(port_t *port, int error) {
    struct list *list = port->kernel.list;
    unsigned count = list->order_count;
    list->change_count = list->order_count = 0;
    for (unsigned i = 0; i < count; i++) {
        order_t *order = &list->orders[i];
        port->records[order->descriptor].kernel.pending = false;
        if (!order->error)
            order->error = error;
        if (order->error) {
            undo(port, order);
            fail(list->results, order->index, order->key, order->error);
        }
    }
}

/* A receipt of the kernel: an error, or 0. */
static void note_receipt(struct list *list, unsigned change, int error) {
    order_t *order = list->order_of[change] == NO_ORDER ? NULL : &list->orders[list->order_of[change]];
    if (order && !order->error)
        order->error = error;
}

/* Finds whose the refused changes are that a call reports, which has asked for no receipts: they come in their order. */
static void note_refusals(struct list *list, const struct kevent *events, int count) {
    unsigned change = 0;
    for (int i = 0; i < count; i++) {
        while (change < list->change_count && (list->changes[change].ident != events[i].ident || list->changes[change].filter != events[i].filter))
            change++;
        if (change < list->change_count)
            note_receipt(list, change++, (int)events[i].data);
    }
}

/* Tells the kernel of all that is listed, and nothing else. What it has said of each change is in `receipts`. */
static void flush(port_t *port) {
    struct list *list = port->kernel.list;
    unsigned count = list->change_count;
    if (!count)
        return;
    for (unsigned i = 0; i < count; i++)
        list->changes[i].flags |= EV_RECEIPT;
    port->counters.kernel_changes++;
    int told;
    do
        told = kevent(port->kernel.queue, list->changes, (int)count, list->receipts, (int)count, &no_time);
    while (told < 0 && errno == EINTR);
    int error = told < 0 ? errno : 0;
    for (unsigned i = 0; i < count; i++) {
        int refused = told < 0 ? error : (int)i < told ? (int)list->receipts[i].data : 0;
        list->receipts[i].data = refused;
        note_receipt(list, i, refused);
    }
    close_list(port, 0);
}

/* Begins an order, whose record is as it was. */
static void list_order(port_t *port, int descriptor, const record_t *before, ULONG_PTR key, uint32_t generation) {
    struct list *list = port->kernel.list;
    list->orders[list->order_count++] = (order_t){
        .key = key,
        .index = list->results->index,
        .descriptor = descriptor,
        .generation = generation,
        .before = *before,
    };
}

static void list_change(port_t *port, int descriptor, record_t *record, int knote, unsigned flags, bool of_an_order) {
    struct list *list = port->kernel.list;
    list->order_of[list->change_count] = of_an_order ? (UINT16)(list->order_count - 1) : NO_ORDER;
    list->changes[list->change_count++] = change_of(descriptor, knote, flags, record->generation);
    record->kernel.pending |= of_an_order;
}

/* Before an order for this record: there is room, and nothing is to be told of it yet. */
static void make_room(port_t *port, const record_t *record) {
    if (record->kernel.pending || port->kernel.list->change_count + MOST_OF_AN_ORDER > MAX_CHANGES)
        flush(port);
}

static bool wake_one(port_t *port) {
    struct kevent trigger;
    EV_SET(&trigger, 0, EVFILT_USER, 0, NOTE_TRIGGER, 0, NULL);
    int result;
    do
        result = kevent(port->kernel.queue, &trigger, 1, NULL, 0, &no_time);
    while (result < 0 && errno == EINTR);
    return result >= 0;
}

/* Each thread that leaves wakes the next. */
static void wake_all(port_t *port) {
    wake_one(port);
}

/* A thread that waits with changes in flight is the only one that waits, for whoever else would first comes by here. */
static void begin_orders(port_t *port, results_t *results) {
    while (port->kernel.in_flight) {
        wake_one(port);
        pthread_cond_wait(&port->left, &port->lock);
    }
    port->kernel.list->results = results;
}

static void finish_orders(port_t *port) {
    flush(port);
}
