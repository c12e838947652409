/* What a completion port is made of, and what the part for a kernel adds to it. A provider is one translation unit: the part for its kernel
 * (`epoll_port.c`), and these files, which are the same for all. Its kernel's part defines, before it includes this one,
 *
 *     kernel_t           what a port has of the kernel
 *     kernel_record_t    what it remembers of a descriptor
 *
 * and after it what is declared at the end.
 *
 * One port = what the kernel has + one queue of packets (posted ones and REMOVE notices, first in first out) + one record per descriptor, which
 * says what its owner ordered (`state`) and what the kernel was told (`kernel`). The two may differ.
 *
 *   Generations. One is drawn anew with every registration, and the kernel carries it. So a report that was already on its way when its
 *   registration was removed, or when its descriptor was closed and reused, matches no record and is dropped.
 *
 *   Forks. A forked child has the records, and makes what the kernel has anew when it first enters an inherited port.
 *
 * The rules that the caller sees are in docs/port.md. Results of single registrations are errno values: what a program can act upon.
 *
 * Whoever asked hears of what failed: a registration by its result, and then the call does not wait; a wait by the call. What nobody
 * asked for is tried again. While that fails, the call returns to its caller now and then, for it may have signals to handle.
 *
 * Locking: one mutex per port guards everything but the wait itself. A handle is looked up, never dereferenced, so a call on a closed
 * port fails instead of touching freed memory; CloseHandle waits until the last thread has left. A fork takes all the mutexes, so that
 * the child finds every port whole.
 */

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

/* LOST: closed behind its owner's back, who does not know yet. SPENT: disabled by a notification, which may enable it again. */
enum { ABSENT, LOST, ENABLED, DISABLED, SPENT };
enum { MAX_PORTS = 1 << 16, MAX_BATCH = 512 };

#define HIGHEST_BIT ((ULONG_PTR)1 << (8 * sizeof(ULONG_PTR) - 1))

typedef struct {
    ULONG_PTR key;       /* the owner's completion key, returned verbatim */
    uint32_t generation; /* 0 = never used */
    UINT16 filter;
    UINT8 trigger;
    UINT8 state;
    bool connected; /* seen as more than a fresh stream socket */
    kernel_record_t kernel;
} record_t;

typedef struct {
    _Atomic(uintptr_t) handle; /* 0 = free or closing */
    _Atomic(uint32_t) users;   /* threads inside a call */
    _Atomic(bool) closing;
    pthread_mutex_t lock;
    pthread_cond_t left;
    uint32_t process; /* whose `kernel` is, as `this_process` counts */
    kernel_t kernel;
    uint32_t waiters;
    uint32_t generation;
    bool queue_last;
    bool unwoken;    /* there are packets that nobody could be woken for */
    bool unarmed;    /* there are persistent registrations that could not be armed again */
    int64_t left_at; /* when a wait last returned */
    record_t *records; /* by descriptor */
    size_t record_count;
    OVERLAPPED_ENTRY *queue; /* ring; its size is a power of two */
    size_t queue_size, queue_head, queue_length;
    PORT_COUNTERS counters;
} port_t;

typedef struct {
    ULONG delivered;  /* notifications */
    bool interrupted; /* by a signal, or there was no look at all */
    bool stuck;       /* something could not be silenced: it would be reported again at once, and again */
    bool again;       /* it has not seen all that is ready: reports that were withheld have taken the room, or it was to be brief */
} look_t;

/* Where the results of a call's orders go. A kernel may be told of an order with the wait only, so its result comes as late as that. */
typedef struct {
    SOCK_NOTIFY_REGISTRATION *registrations; /* each has room for its result; or */
    PACKED_CALL *call;                       /* it lists those that failed */
    UINT32 index;                            /* of the order that is being applied */
    bool failed;                             /* one has; then the call does not wait */
} results_t;

static void fail(results_t *results, UINT32 index, ULONG_PTR key, int error) {
    if (results->registrations)
        results->registrations[index].registrationResult = (DWORD)error;
    else
        results->call->failures[results->call->failed++] = (FAILED_REGISTRATION){.key = key, .index = index, .result = (DWORD)error};
    results->failed = true;
}

/* ---- what the part for a kernel defines; errors are errno values, and 0 is none ------------------------------------------------- */

/* Whether there may be another answer later. The others say that the descriptor was closed, or names another file by now. */
static bool passes(int error);

/* Makes what a new port with this handle needs. */
static int open_kernel(kernel_t *kernel, uintptr_t handle);

/* Takes back what a port had, in whatever process it is. */
static void close_kernel(const port_t *port);

/* Makes an inherited port this process's own. If that fails nothing is changed, and the next call tries again. */
static DWORD adopt(port_t *port);

/* Ends the wait of one thread, or of the next that waits; sets errno. */
static bool wake_one(port_t *port);

/* Ends all waits on a port that is being closed. */
static void wake_all(port_t *port);

/* Registers a descriptor, and makes `fresh` its record. */
static int watch(port_t *port, int descriptor, record_t *record, record_t *fresh);

/* Enables what is registered, with this filter and trigger. */
static int arm(port_t *port, int descriptor, record_t *record, UINT16 filter, UINT8 trigger);

/* Enables again what is SPENT, unchanged. */
static int arm_again(port_t *port, int descriptor, record_t *record);

/* Finds out whether the descriptor is still the file that was registered: if not, it is LOST. Only what passes is an error. */
static int look_again(port_t *port, int descriptor, record_t *record, UINT16 filter, UINT8 trigger);

/* Takes out what is about to be removed. */
static int unwatch(port_t *port, int descriptor, record_t *record);

/* Takes out what is about to be closed, or was just now, unless that does it. */
static void abandon(port_t *port, int descriptor, record_t *record);

/* Tries again to arm what goes on after a notification. Its owner has no part in that, and would never hear that it failed. */
static void arm_persistent(port_t *port);

/* Orders are to come, whose results go there; and they have come, and must have them. */
static void begin_orders(port_t *port, results_t *results);
static void finish_orders(port_t *port);

/* Waits for the kernel's reports, with the port unlocked meanwhile, and makes notifications of them. */
static DWORD look(port_t *port, int64_t ns, ULONG room, OVERLAPPED_ENTRY *entries, look_t *seen);
