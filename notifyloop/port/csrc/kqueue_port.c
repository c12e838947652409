/* Winsock's socket state notifications over kqueue: macOS, FreeBSD, NetBSD, OpenBSD.
 *
 * What these kernels offer: a queue keeps *knotes*, one for each (descriptor, filter), where a filter says what is waited for: EVFILT_READ,
 * EVFILT_WRITE. One call, kevent, applies a list of changes, each of which may fail by itself, and then waits, as the port's own does. A
 * knote with EV_DISPATCH is disabled by its report, and EV_ENABLE arms it again, with a fresh look. It goes when its descriptor is closed,
 * duplicates or not. EVFILT_USER is for wake-ups. A forked child has no queue.
 *
 * What we make of it: one port (`port.h`) has one queue, and a list of changes that the kernel was not told yet.
 *
 *   Orders wait for the wait. Most orders are to arm something: a change goes to the list, the record is as if it had been done, and the call
 *   that waits tells the kernel. So a turn is one kevent call, whatever it has ordered. If the kernel refuses a change it does not
 *   wait but says so, and the record is set right. Where several threads are in the port, its changes are applied before a thread waits, with
 *   the port locked. A thread that was alone may wait with changes of which nobody knows yet whether they were applied: before
 *   another orders anything, it has that one come back (`begin_orders`).
 *
 *   Two knotes, one notification. A one-shot registration is disarmed for both directions by one notification; of its two knotes only the
 *   one that was reported is disabled. The other's report is withheld if it comes, which disables it, too, and merged if it comes with the
 *   first. When the registration is enabled again, those of its knotes that were reported are.
 *
 *   Quiet watch. Who waits for HANGUP or for nothing is to hear of the end or of an error, and not of data. For that EVFILT_READ has no form
 *   that all these kernels share: so it is edge-triggered, and what only says that there are data is withheld, once for each arrival.
 *
 * `ident` is the descriptor, and `udata` the generation. What cannot be said in one list is told at once, by a call of its own: removals, whose
 * answer is awaited, and changes of a knote's mode, which a kernel takes from when it was added and never again.
 */

#include <poll.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include <sys/event.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <time.h>

struct list;

typedef struct {
    int queue;
    struct list *list; /* of changes to be told */
    bool in_flight;    /* a thread waits with them: they were applied, or are about to be */
} kernel_t;

enum { READ, WRITE, KNOTES };                      /* of a descriptor */
enum { LEVEL = 0, ONCE = EV_DISPATCH, EDGE = EV_CLEAR }; /* the modes of a knote, and ONCE | EDGE */

typedef struct {
    UINT8 mode[KNOTES];
    bool added[KNOTES];
    bool spent[KNOTES]; /* reported, and not to be again before it is enabled */
    bool pending;       /* there are changes in the list */
    UINT16 slot;        /* of its last notification, in the batch that it is in */
} kernel_record_t;

#include "port.h"
#include "handles.h"
#include "packets.h"
#include "registrations.h"
#include "kqueue_changes.h"
#include "kqueue_knotes.h"
#include "kqueue_reports.h"
#include "waiting.h"
#include "calls.h"
