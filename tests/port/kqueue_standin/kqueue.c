/* kqueue(2) for tests on Linux: a stand-in that goes by the manual pages of FreeBSD and macOS, and where they are silent by what FreeBSD's
 * kernel does (sys/kern/kern_event.c). It is slow, and in no wheel.
 *
 * How it works. As in the kernel, a *knote* is what a queue keeps for an (ident, filter). It is looked at (`holds`) when it is changed and when
 * its file's state changes; if its condition holds it is *active*; and whoever asks for events looks at the active ones once more. An
 * epoll set, edge-triggered for everything, plays the part of the kernel's notice that a file's state has changed; what the state
 * is, poll says. The queue's descriptor is the epoll set's.
 *
 * What it can prove: that a program keeps to the rules which test_kqueue_standin.py states one by one: which changes fail, and how that is told;
 * what a mode does; what a knote keeps from when it was added; that a knote goes with its descriptor; that a child has no queue; how
 * many calls are made.
 *
 * What only a real kernel can:
 *   - A knote goes when its descriptor is closed. Here that is noticed at the next look: (file, descriptor) is in the epoll set no more. If the
 *     same file is back under the same number by then, from a duplicate, nobody can tell, and the knote lives on.
 *   - The error in `fflags` beside EV_EOF. On Linux to read a socket's error is to take it away. So it says EIO, whatever it is.
 *   - EV_EOF of EVFILT_WRITE when the socket was shut down for writing by its owner only: Linux does not tell.
 *   - A Unix socket becomes writable when it connects: Linux tells nobody, so here it is writable before, as Linux has it.
 *   - Regular files, which kernels with kqueue do watch: here EPERM.
 *   - `data` is the number of bytes to read, and 1 for a listener; for EVFILT_WRITE it is 1.
 *   - The times of events between threads, memory that runs out, and speed.
 */

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "sys/event.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { MAX_QUEUES = 256, CHUNK = 64 };

#define KICK UINT64_MAX
#define MODES (EV_ONESHOT | EV_CLEAR | EV_DISPATCH)

typedef struct knote {
    struct knote *next;
    struct kevent event; /* ident, filter, udata; its flags are the modes that it was added with */
    int descriptor;      /* in the epoll set; -1 if it needs none */
    bool active, disabled, triggered;
} knote_t;

typedef struct {
    int epoll; /* 0 = free */
    int sleepers;
    knote_t *knotes; /* those that were reported come last */
} queue_t;

static queue_t queues[MAX_QUEUES];
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static unsigned long calls;
static int kick = -1; /* an eventfd in every set, which wakes the threads that sleep; it stays open */
static bool interrupt;

unsigned long kqueue_standin_calls(void) {
    return __atomic_load_n(&calls, __ATOMIC_RELAXED);
}

void kqueue_standin_interrupt(void) {
    interrupt = true;
}

static int countdown = -1, chosen_error, failures;

void kqueue_standin_fail(int after, int error) {
    pthread_mutex_lock(&lock);
    countdown = after;
    chosen_error = error;
    failures = 0;
    pthread_mutex_unlock(&lock);
}

int kqueue_standin_failed(void) {
    return failures;
}

/* The error of what is to fail, or 0. Only a wait is interrupted. */
static int failing(bool wait) {
    if (countdown < 0 || (chosen_error == EINTR && !wait) || countdown-- > 0)
        return 0;
    failures++;
    return chosen_error;
}

static void drop_queue(queue_t *queue) {
    while (queue->knotes) {
        knote_t *knote = queue->knotes;
        queue->knotes = knote->next;
        if (knote->event.filter == EVFILT_PROC)
            close(knote->descriptor);
        free(knote);
    }
    *queue = (queue_t){0};
}

/* ---- forks: "The queue is not inherited by a child created with fork(2)" ---------------------------------------------------------- */

static void before_fork(void) {
    pthread_mutex_lock(&lock);
}

static void after_fork_in_parent(void) {
    pthread_mutex_unlock(&lock);
}

static void after_fork_in_child(void) {
    for (int i = 0; i < MAX_QUEUES; i++)
        if (queues[i].epoll) {
            close(queues[i].epoll);
            drop_queue(&queues[i]);
        }
    if (kick >= 0)
        close(kick);
    kick = -1;
    pthread_mutex_unlock(&lock);
}

/* Before anybody else does: who holds locks of his own while he calls kevent takes those first, also before a fork. And who counts his
 * descriptors is not to find one more than he opens. */
__attribute__((constructor)) static void prepare(void) {
    kick = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    pthread_atfork(before_fork, after_fork_in_parent, after_fork_in_child);
}

/* ---- queues ------------------------------------------------------------------------------------------------------------------------ */

static queue_t *find_queue(int epoll) {
    for (int i = 0; i < MAX_QUEUES; i++)
        if (queues[i].epoll == epoll && epoll > 0)
            return &queues[i];
    return NULL;
}

/* Whether the epoll set has this descriptor's file, under its number: to add it again would fail then, and change nothing. */
static bool is_there(const queue_t *queue, int descriptor) {
    struct epoll_event event = {.events = 0};
    if (epoll_ctl(queue->epoll, EPOLL_CTL_ADD, descriptor, &event) < 0)
        return errno == EEXIST;
    epoll_ctl(queue->epoll, EPOLL_CTL_DEL, descriptor, NULL);
    return false;
}

int kqueue(void) {
    pthread_mutex_lock(&lock);
    queue_t *queue = NULL;
    for (int i = 0; i < MAX_QUEUES; i++) {
        if (queues[i].epoll && !is_there(&queues[i], kick))
            drop_queue(&queues[i]);
        if (!queues[i].epoll)
            queue = &queues[i];
    }
    if (kick < 0) /* in a child */
        kick = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    int fault = failing(false), epoll = !queue || kick < 0 || fault ? -1 : epoll_create1(0), error = !queue ? EMFILE : fault ? fault : errno;
    struct epoll_event event = {.events = EPOLLIN | EPOLLET, .data.u64 = KICK};
    if (epoll >= 0 && epoll_ctl(epoll, EPOLL_CTL_ADD, kick, &event) < 0) {
        error = errno;
        close(epoll);
        epoll = -1;
    }
    if (epoll >= 0)
        *queue = (queue_t){.epoll = epoll};
    else
        errno = error;
    pthread_mutex_unlock(&lock);
    return epoll;
}

/* Wakes all that sleep, also at other queues: they look, and sleep again. */
static void kick_sleepers(const queue_t *queue) {
    uint64_t one = 1;
    if (queue->sleepers && write(kick, &one, sizeof one) < 0)
        abort();
}

/* ---- what holds -------------------------------------------------------------------------------------------------------------------- */

static int option_of(int descriptor, int name) {
    int value = -1;
    socklen_t length = sizeof value;
    return getsockopt(descriptor, SOL_SOCKET, name, &value, &length) < 0 ? -1 : value;
}

/* poll is interrupted even where it does not wait. */
static short state_of(int descriptor) {
    struct pollfd now = {.fd = descriptor, .events = POLLIN | POLLOUT | POLLRDHUP};
    int count;
    do
        count = poll(&now, 1, 0);
    while (count < 0 && errno == EINTR);
    return count > 0 ? now.revents : 0;
}

/* Of a file: what poll says, as the kernel's filters have it. */
static bool file_holds(knote_t *knote) {
    struct kevent *event = &knote->event;
    short now = state_of(knote->descriptor);
    event->flags &= (unsigned short)~EV_EOF;
    event->fflags = 0;
    event->data = 0;
    int type = option_of(knote->descriptor, SO_TYPE);
    bool stream = type == SOCK_STREAM || type == SOCK_SEQPACKET, reads = event->filter == EVFILT_READ;
    bool error = now & POLLERR, broken = now & POLLHUP;
    if (stream && broken && !error && !(now & (POLLIN | POLLRDHUP))) {
        struct sockaddr_storage peer;
        socklen_t length = sizeof peer;
        if (getpeername(knote->descriptor, (struct sockaddr *)&peer, &length) < 0) /* neither connected nor listening */
            return option_of(knote->descriptor, SO_DOMAIN) == AF_UNIX && !reads && now & POLLOUT;
    }
    if (type >= 0 && !stream) { /* the end of a stream it has not, but an error, until somebody has read it */
        event->data = !reads;
        if (reads && !error)
            ioctl(knote->descriptor, FIONREAD, (int *)&event->data);
        return error || now & (reads ? POLLIN : POLLOUT);
    }
    bool end = error || (broken && (reads || stream)) || (reads && now & POLLRDHUP);
    if (end) {
        event->flags |= EV_EOF;
        event->fflags = error && stream ? EIO : 0;
    }
    if (!reads)
        event->data = 1;
    else if (stream && option_of(knote->descriptor, SO_ACCEPTCONN) == 1)
        event->data = (now & POLLIN) != 0;
    else
        ioctl(knote->descriptor, FIONREAD, (int *)&event->data);
    return end || now & (reads ? POLLIN : POLLOUT);
}

static bool holds(knote_t *knote) {
    if (knote->event.filter == EVFILT_USER)
        return knote->triggered;
    if (knote->event.filter == EVFILT_PROC) {
        knote->event.fflags = NOTE_EXIT;
        return state_of(knote->descriptor) & POLLIN;
    }
    return file_holds(knote);
}

/* ---- knotes ------------------------------------------------------------------------------------------------------------------------ */

static knote_t **place_of(queue_t *queue, uintptr_t ident, short filter) {
    knote_t **place = &queue->knotes;
    while (*place && ((*place)->event.ident != ident || (*place)->event.filter != filter))
        place = &(*place)->next;
    return place;
}

static bool is_watched(const queue_t *queue, int descriptor) {
    for (const knote_t *knote = queue->knotes; knote; knote = knote->next)
        if (knote->descriptor == descriptor)
            return true;
    return false;
}

static void drop_knote(queue_t *queue, knote_t **place) {
    knote_t *knote = *place;
    *place = knote->next;
    if (knote->descriptor >= 0 && !is_watched(queue, knote->descriptor))
        epoll_ctl(queue->epoll, EPOLL_CTL_DEL, knote->descriptor, NULL);
    if (knote->event.filter == EVFILT_PROC)
        close(knote->descriptor);
    free(knote);
}

/* Drops the knotes of a descriptor that was closed. */
static void drop_closed(queue_t *queue, int descriptor) {
    if (is_there(queue, descriptor))
        return;
    for (knote_t **place = &queue->knotes; *place;) {
        knote_t *knote = *place;
        if (knote->descriptor == descriptor) {
            *place = knote->next;
            free(knote);
        } else {
            place = &knote->next;
        }
    }
}

static void activate_if_it_holds(const queue_t *queue, knote_t *knote) {
    if (!holds(knote))
        return;
    knote->active = true;
    if (!knote->disabled)
        kick_sleepers(queue);
}

static int add(queue_t *queue, const struct kevent *change) {
    int descriptor = -1;
    if (change->filter == EVFILT_PROC)
        descriptor = (int)syscall(SYS_pidfd_open, (pid_t)change->ident, 0);
    else if (change->filter != EVFILT_USER)
        descriptor = (int)change->ident;
    if (descriptor < 0 && change->filter != EVFILT_USER)
        return errno;
    struct epoll_event event = {.events = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLPRI | EPOLLET, .data.u64 = (uint32_t)descriptor};
    if (descriptor >= 0 && !is_watched(queue, descriptor) && epoll_ctl(queue->epoll, EPOLL_CTL_ADD, descriptor, &event) < 0 &&
        (errno != EEXIST || epoll_ctl(queue->epoll, EPOLL_CTL_MOD, descriptor, &event) < 0)) /* it was closed, and is back from a duplicate */
        return errno;
    knote_t *knote = calloc(1, sizeof *knote), **place = &queue->knotes;
    if (!knote)
        return ENOMEM;
    while (*place)
        place = &(*place)->next;
    *place = knote;
    knote->event = (struct kevent){.ident = change->ident, .filter = change->filter, .flags = change->flags & MODES, .udata = change->udata};
    knote->descriptor = descriptor;
    knote->disabled = change->flags & EV_DISABLE;
    activate_if_it_holds(queue, knote);
    return 0;
}

static int apply(queue_t *queue, const struct kevent *change) {
    bool file = change->filter == EVFILT_READ || change->filter == EVFILT_WRITE;
    if (!file && change->filter != EVFILT_USER && change->filter != EVFILT_PROC)
        return EINVAL;
    if (file) {
        if (change->ident > INT32_MAX || fcntl((int)change->ident, F_GETFD) < 0) {
            if (change->ident <= INT32_MAX && is_watched(queue, (int)change->ident))
                drop_closed(queue, (int)change->ident);
            return EBADF;
        }
        if (is_watched(queue, (int)change->ident))
            drop_closed(queue, (int)change->ident);
    }
    knote_t **place = place_of(queue, change->ident, change->filter), *knote = *place;
    if (!knote)
        return change->flags & EV_ADD ? add(queue, change) : ENOENT;
    if (change->flags & EV_DELETE) {
        drop_knote(queue, place);
        return 0;
    }
    knote->event.udata = change->udata; /* its modes stay what they were */
    if (change->filter == EVFILT_USER && change->fflags & NOTE_TRIGGER)
        knote->triggered = true;
    if (change->flags & EV_DISABLE)
        knote->disabled = true;
    else if (change->flags & (EV_ENABLE | EV_ADD))
        knote->disabled = false;
    activate_if_it_holds(queue, knote);
    return 0;
}

/* ---- events ------------------------------------------------------------------------------------------------------------------------ */

/* What has changed since makes knotes active. */
static void note_changes(queue_t *queue, const struct epoll_event *reports, int count) {
    for (int i = 0; i < count; i++)
        for (knote_t *knote = queue->knotes; knote && reports[i].data.u64 != KICK; knote = knote->next)
            if (knote->descriptor >= 0 && (uint64_t)knote->descriptor == reports[i].data.u64) {
                drop_closed(queue, knote->descriptor);
                if (!is_watched(queue, (int)reports[i].data.u64))
                    break;
                for (knote = queue->knotes; knote; knote = knote->next)
                    if ((uint64_t)knote->descriptor == reports[i].data.u64)
                        activate_if_it_holds(queue, knote);
                break;
            }
}

static bool drop_one_closed(queue_t *queue) {
    for (const knote_t *knote = queue->knotes; knote; knote = knote->next)
        if (knote->active && knote->event.filter != EVFILT_PROC && knote->descriptor >= 0 && !is_there(queue, knote->descriptor)) {
            drop_closed(queue, knote->descriptor);
            return true;
        }
    return false;
}

static void move_to_the_end(knote_t **place) {
    knote_t *knote = *place;
    *place = knote->next;
    knote->next = NULL;
    while (*place)
        place = &(*place)->next;
    *place = knote;
}

/* Reports what is active and still holds. What was reported goes to the end, so that everybody has a turn. */
static int scan(queue_t *queue, struct kevent *events, int room) {
    int count = 0, left = 0;
    while (drop_one_closed(queue))
        continue;
    for (const knote_t *knote = queue->knotes; knote; knote = knote->next)
        left++;
    for (knote_t **place = &queue->knotes; left-- && *place && count < room;) {
        knote_t *knote = *place;
        bool active = knote->active && !knote->disabled;
        if (!active || !(knote->active = holds(knote))) {
            place = &knote->next;
            continue;
        }
        events[count++] = knote->event;
        if (knote->event.flags & EV_ONESHOT) {
            drop_knote(queue, place);
            continue;
        }
        if (knote->event.flags & (EV_CLEAR | EV_DISPATCH))
            knote->active = false;
        if (knote->event.flags & EV_CLEAR)
            knote->triggered = false;
        if (knote->event.flags & EV_DISPATCH)
            knote->disabled = true;
        move_to_the_end(place);
    }
    for (const knote_t *knote = queue->knotes; knote; knote = knote->next)
        if (knote->active && !knote->disabled) {
            kick_sleepers(queue);
            break;
        }
    return count;
}

static int64_t now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * INT64_C(1000000000) + time.tv_nsec;
}

/* Waits with the lock released. Finds the queue again, which may be another's by then. */
static int sleep_until(int epoll, struct epoll_event *reports, int64_t deadline) {
    int64_t ns = deadline < 0 ? -1 : deadline - now();
    struct timespec left = {.tv_sec = ns / 1000000000, .tv_nsec = ns % 1000000000};
    if (deadline >= 0 && ns <= 0)
        left = (struct timespec){0};
    return (int)syscall(SYS_epoll_pwait2, epoll, reports, CHUNK, deadline < 0 ? NULL : &left, NULL, (size_t)0);
}

int kevent(int epoll, const struct kevent *changes, int change_count, struct kevent *events, int room, const struct timespec *timeout) {
    if (timeout && (timeout->tv_sec < 0 || timeout->tv_nsec < 0 || timeout->tv_nsec >= 1000000000)) {
        errno = EINVAL;
        return -1;
    }
    __atomic_fetch_add(&calls, 1, __ATOMIC_RELAXED);
    int64_t deadline = !timeout ? -1 : timeout->tv_sec || timeout->tv_nsec ? now() + timeout->tv_sec * INT64_C(1000000000) + timeout->tv_nsec : 0;
    pthread_mutex_lock(&lock);
    queue_t *queue = find_queue(epoll);
    int count = 0, error = queue && is_there(queue, kick) ? 0 : EBADF;
    for (int i = 0; !error && i < change_count; i++) {
        int failed = failing(false);
        if (!failed)
            failed = apply(queue, &changes[i]);
        if (!failed && !(changes[i].flags & EV_RECEIPT))
            continue;
        if (count == room) {
            error = failed;
            if (failed)
                break;
            continue;
        }
        events[count] = changes[i];
        events[count].flags = EV_ERROR;
        events[count++].data = failed;
    }
    bool answered = count || error || !room; /* who hears of a change hears of nothing else */
    if (!answered && (error = failing(true)))
        answered = true;
    while (!answered) {
        struct epoll_event reports[CHUNK];
        int found;
        while ((found = epoll_wait(epoll, reports, CHUNK, 0)) > 0) {
            note_changes(queue, reports, found);
            if (found < CHUNK)
                break;
        }
        count = scan(queue, events, room);
        if (count || (deadline >= 0 && now() >= deadline))
            break;
        if (interrupt) {
            interrupt = false;
            error = EINTR;
            break;
        }
        queue->sleepers++;
        pthread_mutex_unlock(&lock);
        found = sleep_until(epoll, reports, deadline);
        error = found < 0 ? errno : 0;
        pthread_mutex_lock(&lock);
        queue->sleepers--;
        if (error)
            break;
        note_changes(queue, reports, found);
    }
    pthread_mutex_unlock(&lock);
    errno = error;
    return error ? -1 : count;
}
