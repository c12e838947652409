/* The declarations of kqueue(2), for the stand-in beside this one. The values are FreeBSD's, which programs do not rely on. */

#ifndef KQUEUE_STANDIN_EVENT_H
#define KQUEUE_STANDIN_EVENT_H

#include <stdint.h>
#include <sys/types.h>
#include <time.h>

struct kevent {
    uintptr_t ident;
    short filter;
    unsigned short flags;
    unsigned fflags;
    int64_t data;
    void *udata;
};

#define EV_SET(event, id, filt, flag, fflag, datum, user) \
    (*(event) = (struct kevent){(uintptr_t)(id), (filt), (flag), (fflag), (datum), (user)})

#define EVFILT_READ (-1)
#define EVFILT_WRITE (-2)
#define EVFILT_PROC (-5)
#define EVFILT_USER (-11)

#define EV_ADD 0x0001
#define EV_DELETE 0x0002
#define EV_ENABLE 0x0004
#define EV_DISABLE 0x0008
#define EV_ONESHOT 0x0010
#define EV_CLEAR 0x0020
#define EV_RECEIPT 0x0040
#define EV_DISPATCH 0x0080
#define EV_ERROR 0x4000
#define EV_EOF 0x8000

#define NOTE_TRIGGER 0x01000000u
#define NOTE_EXIT 0x80000000u

int kqueue(void);
int kevent(int queue, const struct kevent *changes, int change_count, struct kevent *events, int room, const struct timespec *timeout);

/* Not of the kernel: how often kevent was called in this process; the next call that would wait ends as one that a signal interrupts; and after so
 * many that do not, one thing fails with this errno: a queue is made, a change is applied, or a call comes to its wait. What has failed is counted. */
#define SHOWN __attribute__((visibility("default")))
SHOWN unsigned long kqueue_standin_calls(void);
SHOWN void kqueue_standin_interrupt(void);
SHOWN void kqueue_standin_fail(int after, int error);
SHOWN int kqueue_standin_failed(void);

#endif
