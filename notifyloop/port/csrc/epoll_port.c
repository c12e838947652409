/* Winsock's socket state notifications over epoll and an eventfd.
 *
 * What Linux offers: an epoll set keeps (open file, descriptor) pairs; it reports level- or edge-triggered readiness, as often as asked
 * or once (EPOLLONESHOT), and any number of threads may wait on it. It has no packets that a program posts, no notice that a
 * registration is gone, and a change of a registration is a system call of its own.
 *
 * What we make of it: one port (`port.h`) has one epoll set, which carries (generation, descriptor) for us, and one eventfd that wakes a
 * waiting thread for the queue. A record's `state` and what the kernel was told may differ, and that is the point:
 *
 *   Lazy disarm. A one-shot registration that has been delivered stays armed in the kernel. Its owner nearly always enables it again
 *   unchanged, and then there is nothing to tell the kernel. Only if the kernel reports it while it is not enabled is the report
 *   withheld and the descriptor parked: it stays in the set, so that the set knows whether the descriptor still names the same file, but
 *   reports nothing. So a steady stream costs no epoll_ctl at all. When several threads wait, a descriptor left armed would wake them
 *   for nothing, so then the kernel's own EPOLLONESHOT is used.
 *
 *   Orphans. epoll drops a file when its last descriptor is closed. If a duplicate survives (a forked child holds one), the set goes on
 *   reporting a descriptor that can no longer be named in epoll_ctl. Reports without a record that keep coming are that; the set is then
 *   built anew from the records. Who knows that a fork has made duplicates of a descriptor has it taken out before it is closed.
 */

#include <poll.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/syscall.h>

enum { ORPHAN_REPORTS = 8 };

typedef struct {
    int epoll;
    int wake;
    uint64_t wake_up; /* what epoll carries for `wake`: another for each port */
    uint32_t stale_run;
} kernel_t;

typedef struct {
    uint32_t events; /* what the epoll set holds, with KERNEL_ARMED; 0 = nothing */
    uint32_t forks;  /* before it was registered; a later one has made a duplicate of the descriptor */
    bool fired;      /* the kernel's own one-shot has fired: it reports nothing until told again */
    UINT8 believed;  /* times that it was enabled again without asking the kernel */
} kernel_record_t;

#include "port.h"
#include "handles.h"
#include "packets.h"
#include "registrations.h"
#include "epoll_set.h"
#include "epoll_forks.h"
#include "epoll_orphans.h"
#include "epoll_reports.h"
#include "waiting.h"
#include "calls.h"
