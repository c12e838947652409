/* A stand-in for ProcessSocketNotifications of ws2_32.dll, to test the provider "winsock" where Windows does not have it: under wine.
 *
 * What it can prove: that the structures are laid out as Windows lays them out and the call is called as Windows wants it (the declarations
 * below are written after the SDK's, not after ours); that batches, results, timeouts and errors are passed on rightly; that packets are told
 * apart by their key alone, for it fills what is reserved with nonsense; that closing, threads and late packets do no harm.
 *
 * What only Windows itself can prove: whatever its kernel decides. Which condition brings which events, what happens to a socket that is
 * registered twice, duplicated or closed, edges (refused here), the numbers of errors, and what it costs. Where this file had to decide, it
 * does what the provider "afd" does.
 *
 * It works as that one does, by polls of the socket driver, but has fewer of them, for a conversation with wine's server costs more than all
 * else. One poll can ask for any number of sockets, so what a call is to poll is one group, with one poll in flight. Its answer names the
 * members that have something to report, often only the first; the others are polled again at once. Answers set an event, for a packet would
 * take three more conversations, and whoever waits, waits for the port and the event.
 *
 *     x86_64-w64-mingw32-gcc -O2 -shared -o socket_notifications.dll socket_notifications.c -lws2_32 -lntdll
 */

#define WIN32_LEAN_AND_MEAN
#define _WIN32_WINNT 0x0A00
#define SOCK_NOTIFY_REGISTRATION ITS_SOCK_NOTIFY_REGISTRATION /* newer headers have what is declared here once more */
#define ProcessSocketNotifications ItsProcessSocketNotifications
#include <winsock2.h>
#undef SOCK_NOTIFY_REGISTRATION
#undef ProcessSocketNotifications
#include <windows.h>
#include <winternl.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

typedef struct SOCK_NOTIFY_REGISTRATION {
    SOCKET socket;
    PVOID completionKey;
    UINT16 eventFilter;
    UINT8 operation;
    UINT8 triggerFlags;
    DWORD registrationResult;
} SOCK_NOTIFY_REGISTRATION;

#ifdef _WIN64
_Static_assert(sizeof(SOCK_NOTIFY_REGISTRATION) == 24, "layout");
_Static_assert(offsetof(SOCK_NOTIFY_REGISTRATION, registrationResult) == 20, "layout");
_Static_assert(sizeof(OVERLAPPED_ENTRY) == 32, "layout");
#endif

enum { FILTER_IN = 0x01, FILTER_OUT = 0x02, FILTER_HANGUP = 0x04, FILTER_ALL = 0x07 };
enum { EVENT_IN = 0x01, EVENT_OUT = 0x02, EVENT_HANGUP = 0x04, EVENT_ERR = 0x40, EVENT_REMOVE = 0x80 };
enum { OP_NONE = 0, OP_ENABLE = 1, OP_DISABLE = 2, OP_REMOVE = 4 };
enum { ONESHOT = 1, PERSISTENT = 2, LEVEL = 4, EDGE = 8 };

enum {
    AFD_POLL_RECEIVE = 0x001,
    AFD_POLL_SEND = 0x004,
    AFD_POLL_DISCONNECT = 0x008,
    AFD_POLL_ABORT = 0x010,
    AFD_POLL_LOCAL_CLOSE = 0x020,
    AFD_POLL_ACCEPT = 0x080,
    AFD_POLL_CONNECT_FAIL = 0x100,
};

#define IOCTL_AFD_POLL 0x00012024
#define NONSENSE ((ULONG_PTR)0xDEADBEEF) /* in what is reserved */

typedef struct {
    LARGE_INTEGER timeout;
    ULONG number;
    ULONG exclusive;
    struct {
        HANDLE socket;
        ULONG events;
        NTSTATUS status;
    } sockets[];
} poll_info_t;

typedef struct registration {
    struct registration *next;
    SOCKET socket;
    PVOID key;
    UINT16 filter;
    UINT8 trigger;
    bool enabled;
    unsigned silent;                 /* for so many answers of its groups */
    struct group *group;             /* that it is polled with, or will be */
    unsigned place;                  /* in the group */
    SOCK_NOTIFY_REGISTRATION *order; /* of the present call, until it is polled */
} registration_t;

typedef struct {
    SOCKET socket;
    registration_t *registration; /* NULL: has left, and what the answer says is for nobody */
} member_t;

/* Sockets that are polled together: those who speak often, those who seldom do, and those who have just been reported and are persistent,
 * and so are polled with the next call, when whoever was notified has looked after them. */
typedef enum { OFTEN, SELDOM, REPORTED } kind_t;

typedef struct group {
    IO_STATUS_BLOCK status;
    struct group *next;
    kind_t kind;
    unsigned number, room;
    unsigned left;        /* so many of the members are still there */
    unsigned seen, named; /* of the members, and of those that the answer names, when it has come */
    member_t *members;
    poll_info_t *info;
} group_t;

enum {
    BUCKETS = 1024,
    /* Who has been silent for so many answers speaks seldom. */
    SILENT = 8,
    /* So many of them are together, for when one speaks, all are polled again. */
    MOST_TOGETHER = 64,
    /* More small groups than that become larger ones, for each call looks at them all. */
    MOST_SMALL = 16,
};

typedef struct port {
    struct port *next;
    HANDLE handle; /* the caller's */
    HANDLE own;    /* a duplicate: numbers of handles come back, and only the object tells whether it is still this port */
    HANDLE helper; /* of the driver, which polls are sent to */
    HANDLE answer; /* an event, set when a poll is answered */
    registration_t *registrations[BUCKETS]; /* by socket */
    group_t *unsent, *sent;
    bool sockets_first;
    unsigned users;
} port_t;

NTSTATUS NTAPI NtDeviceIoControlFile(HANDLE, HANDLE, PIO_APC_ROUTINE, PVOID, PIO_STATUS_BLOCK, ULONG, PVOID, ULONG, PVOID, ULONG);
NTSTATUS NTAPI NtCancelIoFileEx(HANDLE, PIO_STATUS_BLOCK, PIO_STATUS_BLOCK);
NTSTATUS NTAPI NtCompareObjects(HANDLE, HANDLE);

static CRITICAL_SECTION lock;
static port_t *ports;

BOOL WINAPI DllMain(HINSTANCE dll, DWORD reason, LPVOID reserved) {
    (void)dll, (void)reserved;
    if (reason == DLL_PROCESS_ATTACH)
        InitializeCriticalSection(&lock);
    return TRUE;
}

/* ---- polls ------------------------------------------------------------------------------------------------------------------------ */

static ULONG asked_for(UINT16 filter) {
    ULONG events = AFD_POLL_ABORT | AFD_POLL_CONNECT_FAIL | AFD_POLL_LOCAL_CLOSE;
    if (filter & FILTER_IN)
        events |= AFD_POLL_RECEIVE | AFD_POLL_ACCEPT | AFD_POLL_DISCONNECT;
    if (filter & FILTER_OUT)
        events |= AFD_POLL_SEND;
    if (filter & FILTER_HANGUP)
        events |= AFD_POLL_DISCONNECT;
    return events;
}

static DWORD reported(ULONG answer, UINT16 filter) {
    DWORD events = 0;
    if (answer & (AFD_POLL_RECEIVE | AFD_POLL_ACCEPT))
        events |= EVENT_IN;
    if (answer & AFD_POLL_DISCONNECT)
        events |= EVENT_IN | EVENT_HANGUP;
    if (answer & (AFD_POLL_ABORT | AFD_POLL_CONNECT_FAIL))
        return ((events | EVENT_HANGUP) & filter) | EVENT_ERR;
    if (answer & AFD_POLL_SEND)
        events |= EVENT_OUT;
    return events & filter;
}

static void free_group(group_t *group) {
    free(group->members);
    free(group->info);
    free(group);
}

static bool was_answered(const group_t *group) {
    return *(const volatile NTSTATUS *)&group->status.Status != STATUS_PENDING;
}

/* Into a group that is to be polled. Returns false if there is no memory for that. */
static bool join(port_t *port, registration_t *registration, kind_t kind) {
    group_t *group = port->unsent;
    while (group && (group->kind != kind || (kind == SELDOM && group->number == MOST_TOGETHER)))
        group = group->next;
    if (!group) {
        group = calloc(1, sizeof *group);
        if (!group)
            return false;
        group->kind = kind;
        group->next = port->unsent;
        port->unsent = group;
    }
    if (group->number == group->room) {
        unsigned room = group->room ? 2 * group->room : 4;
        member_t *members = realloc(group->members, room * sizeof *members);
        if (!members)
            return false;
        group->members = members;
        group->room = room;
    }
    registration->group = group;
    registration->place = group->number;
    group->members[group->number++] = (member_t){registration->socket, registration};
    group->left++;
    return true;
}

/* The others of the group are not disturbed. */
static void leave(port_t *port, registration_t *registration) {
    group_t *group = registration->group;
    if (!group)
        return;
    registration->group = NULL;
    group->members[registration->place].registration = NULL;
    if (!--group->left && group->info && !was_answered(group)) {
        IO_STATUS_BLOCK status;
        NtCancelIoFileEx(port->helper, &group->status, &status);
    }
}

static DWORD send_poll(port_t *port, group_t *group) {
    unsigned number = 0;
    for (unsigned i = 0; i < group->number; i++)
        if (group->members[i].registration) {
            group->members[number] = group->members[i];
            group->members[number].registration->place = number;
            number++;
        }
    group->number = number;
    ULONG size = offsetof(poll_info_t, sockets[number]);
    poll_info_t *info = calloc(1, size);
    if (!info)
        return ERROR_NOT_ENOUGH_MEMORY;
    info->timeout.QuadPart = INT64_MAX;
    info->number = number;
    for (unsigned i = 0; i < number; i++) {
        info->sockets[i].socket = (HANDLE)group->members[i].socket;
        info->sockets[i].events = asked_for(group->members[i].registration->filter);
    }
    group->info = info;
    group->status.Status = STATUS_PENDING;
    NTSTATUS status = NtDeviceIoControlFile(port->helper, port->answer, NULL, NULL, &group->status, IOCTL_AFD_POLL, info, size, info, size);
    if (status == 0 || status == STATUS_PENDING)
        return ERROR_SUCCESS;
    group->info = NULL;
    free(info);
    return RtlNtStatusToDosError(status);
}

/* ---- registrations ---------------------------------------------------------------------------------------------------------------- */

static registration_t **bucket_of(port_t *port, SOCKET socket) {
    return &port->registrations[socket / sizeof(DWORD) % BUCKETS]; /* as handles are numbered */
}

static registration_t **find(port_t *port, SOCKET socket) {
    registration_t **place = bucket_of(port, socket);
    while (*place && (*place)->socket != socket)
        place = &(*place)->next;
    return place;
}

static void forget(port_t *port, registration_t *registration) {
    leave(port, registration);
    *find(port, registration->socket) = registration->next;
    free(registration);
}

static bool is_socket(SOCKET socket) {
    int type, size = sizeof type;
    return getsockopt(socket, SOL_SOCKET, SO_TYPE, (char *)&type, &size) == 0;
}

static DWORD enable(port_t *port, SOCK_NOTIFY_REGISTRATION *order) {
    bool once = order->triggerFlags & ONESHOT, always = order->triggerFlags & PERSISTENT;
    bool level = order->triggerFlags & LEVEL, edge = order->triggerFlags & EDGE;
    if (once == always || level == edge || order->triggerFlags & ~(ONESHOT | PERSISTENT | LEVEL | EDGE) ||
        order->eventFilter & ~FILTER_ALL)
        return ERROR_INVALID_PARAMETER;
    if (edge)
        return ERROR_NOT_SUPPORTED;
    registration_t *registration = *find(port, order->socket);
    if (!registration || registration->key != order->completionKey) {
        if (!is_socket(order->socket))
            return WSAENOTSOCK;
        if (registration)
            forget(port, registration);
        registration = calloc(1, sizeof *registration);
        if (!registration)
            return ERROR_NOT_ENOUGH_MEMORY;
        registration->socket = order->socket;
        registration->key = order->completionKey;
        registration_t **bucket = bucket_of(port, order->socket);
        registration->next = *bucket;
        *bucket = registration;
    }
    leave(port, registration); /* whose answer may be older than this order */
    registration->filter = order->eventFilter;
    registration->trigger = order->triggerFlags;
    registration->order = order;
    registration->enabled = join(port, registration, OFTEN);
    return registration->enabled ? ERROR_SUCCESS : ERROR_NOT_ENOUGH_MEMORY;
}

static DWORD apply(port_t *port, SOCK_NOTIFY_REGISTRATION *order) {
    if (order->operation == OP_NONE)
        return ERROR_SUCCESS;
    if (order->operation == OP_ENABLE)
        return enable(port, order);
    if (order->operation != OP_DISABLE && order->operation != OP_REMOVE)
        return ERROR_INVALID_PARAMETER;
    registration_t *registration = *find(port, order->socket);
    if (!registration || registration->key != order->completionKey)
        return ERROR_NOT_FOUND;
    if (order->operation == OP_DISABLE) {
        registration->enabled = false;
        return ERROR_SUCCESS;
    }
    if (!is_socket(order->socket)) {
        forget(port, registration);
        return ERROR_NOT_FOUND;
    }
    if (!PostQueuedCompletionStatus(port->own, EVENT_REMOVE, (ULONG_PTR)registration->key, (OVERLAPPED *)NONSENSE))
        return GetLastError();
    forget(port, registration);
    return ERROR_SUCCESS;
}

/* It cannot be polled: it is gone, and if it was ordered just now, the order has failed. */
static void refuse(port_t *port, registration_t *registration, DWORD code) {
    if (registration->order)
        registration->order->registrationResult = code;
    forget(port, registration);
}

/* Polls a group, without those who prevent it: the driver refuses all if one is no socket any more. */
static void send_group(port_t *port, group_t *group) {
    DWORD code;
    while (group->left && (code = send_poll(port, group)) != ERROR_SUCCESS) {
        unsigned left = group->left;
        for (unsigned i = 0; i < group->number; i++)
            if (!is_socket(group->members[i].socket))
                refuse(port, group->members[i].registration, WSAENOTSOCK);
        if (group->left == left)
            for (unsigned i = 0; i < group->number; i++)
                refuse(port, group->members[i].registration, code);
    }
    if (!group->left) {
        free_group(group);
        return;
    }
    for (unsigned i = 0; i < group->number; i++)
        group->members[i].registration->order = NULL;
    group->next = NULL;
    group_t **place = &port->sent;
    while (*place)
        place = &(*place)->next;
    *place = group; /* last, so that no answer has to wait for later ones */
}

static void unite_small_groups(port_t *port) {
    unsigned small = 0;
    for (group_t *group = port->sent; group; group = group->next)
        small += group->left && group->left < MOST_TOGETHER;
    if (small <= MOST_SMALL)
        return;
    for (group_t *group = port->sent; group; group = group->next)
        if (group->left && group->left < MOST_TOGETHER && !was_answered(group))
            for (unsigned i = 0; i < group->number; i++) {
                registration_t *registration = group->members[i].registration;
                if (registration) {
                    leave(port, registration);
                    registration->silent = SILENT;
                    if (registration->enabled && !join(port, registration, SELDOM))
                        forget(port, registration);
                }
            }
}

static void send_polls(port_t *port, bool reported_too) {
    if (port->unsent)
        unite_small_groups(port);
    for (group_t **place = &port->unsent, *group; (group = *place);)
        if (group->kind == REPORTED && !reported_too)
            place = &group->next;
        else {
            *place = group->next;
            send_group(port, group);
        }
}

/* ---- notifications ---------------------------------------------------------------------------------------------------------------- */

/* Turns what was answered of a member into a notification. Returns whether it is one. */
static bool notified(port_t *port, registration_t *registration, ULONG answer, OVERLAPPED_ENTRY *entry) {
    registration->group = NULL;
    if (answer & AFD_POLL_LOCAL_CLOSE) { /* closing deregisters, without a notice */
        forget(port, registration);
        return false;
    }
    if (!registration->enabled)
        return false;
    DWORD events = reported(answer, registration->filter);
    if (events) {
        *entry = (OVERLAPPED_ENTRY){.lpCompletionKey = (ULONG_PTR)registration->key,
                                    .lpOverlapped = (OVERLAPPED *)NONSENSE,
                                    .Internal = NONSENSE,
                                    .dwNumberOfBytesTransferred = events};
        registration->enabled = !(registration->trigger & ONESHOT);
    }
    registration->silent = events ? 0 : registration->silent + 1;
    if (registration->enabled && !join(port, registration, events ? REPORTED : registration->silent < SILENT ? OFTEN : SELDOM))
        forget(port, registration);
    return events;
}

static bool any_answered(const port_t *port) {
    for (const group_t *group = port->sent; group; group = group->next)
        if (was_answered(group))
            return true;
    return false;
}

/* Takes notifications from the answers that are there. Returns how many. */
static ULONG take_once(port_t *port, ULONG room, OVERLAPPED_ENTRY *entries) {
    ULONG taken = 0;
    for (group_t **place = &port->sent, *group; taken < room && (group = *place);) {
        if (!was_answered(group)) {
            place = &group->next;
            continue;
        }
        /* It is cancelled when the thread ends that has sent it: then it names nobody. */
        ULONG names = group->status.Status == 0 ? group->info->number : 0;
        for (; group->seen < group->number && taken < room; group->seen++) {
            member_t *member = &group->members[group->seen];
            ULONG answer = 0;
            if (group->named < names && group->info->sockets[group->named].socket == (HANDLE)member->socket)
                answer = group->info->sockets[group->named++].events;
            if (member->registration)
                taken += notified(port, member->registration, answer, &entries[taken]);
        }
        if (group->seen == group->number) {
            *place = group->next;
            free_group(group);
        }
    }
    return taken;
}

/* The same, and as long as there are any, what the others of these groups have to report by now; then those are polled in any case. */
static ULONG take(port_t *port, ULONG room, OVERLAPPED_ENTRY *entries) {
    ULONG taken = 0, more;
    do {
        more = take_once(port, room - taken, entries + taken);
        taken += more;
        send_polls(port, false);
    } while (more);
    return taken;
}

static DWORD dequeue(port_t *port, UINT32 timeout, ULONG room, OVERLAPPED_ENTRY *entries, UINT32 *received) {
    ULONGLONG deadline = GetTickCount64() + timeout;
    HANDLE handles[] = {port->own, port->answer};
    for (;;) {
        EnterCriticalSection(&lock);
        send_polls(port, true);
        bool answered = any_answered(port);
        port->sockets_first = answered && !port->sockets_first; /* in turns, where there is room for one kind only */
        ULONG found = port->sockets_first ? take(port, room, entries) : 0, packets = 0;
        LeaveCriticalSection(&lock);
        DWORD which = WaitForMultipleObjects(2, handles, FALSE, answered ? 0 : timeout);
        if (which == WAIT_FAILED)
            return GetLastError();
        if (which == WAIT_OBJECT_0 && found < room) {
            if (GetQueuedCompletionStatusEx(port->own, entries + found, room - found, &packets, 0, FALSE))
                found += packets;
            else if (GetLastError() != WAIT_TIMEOUT) /* or another thread was faster */
                return GetLastError();
        }
        EnterCriticalSection(&lock);
        found += take(port, room - found, entries + found);
        LeaveCriticalSection(&lock);
        *received = found;
        if (found)
            return ERROR_SUCCESS;
        if (which == WAIT_TIMEOUT && !answered)
            return WAIT_TIMEOUT;
        if (timeout && timeout != INFINITE) {
            ULONGLONG now = GetTickCount64();
            timeout = now < deadline ? (UINT32)(deadline - now) : 0;
        }
    }
}

/* ---- ports ------------------------------------------------------------------------------------------------------------------------ */

static void discard(port_t **place) {
    port_t *port = *place;
    *place = port->next;
    IO_STATUS_BLOCK status;
    for (unsigned bucket = 0; bucket < BUCKETS; bucket++)
        for (registration_t *registration = port->registrations[bucket], *next; registration; registration = next) {
            next = registration->next;
            free(registration);
        }
    /* Groups are left to the kernel, which writes to them until they are answered; nobody looks any more. */
    NtCancelIoFileEx(port->helper, NULL, &status);
    CloseHandle(port->helper);
    CloseHandle(port->answer);
    CloseHandle(port->own);
    free(port);
}

/* Whether this port has what is ordered of this socket. Keys come once, so a later port with the same number has not. */
static bool has(port_t *port, const SOCK_NOTIFY_REGISTRATION *order) {
    const registration_t *registration = *find(port, order->socket);
    return registration && registration->key == order->completionKey;
}

static port_t *port_of(HANDLE handle, UINT32 order_count, const SOCK_NOTIFY_REGISTRATION *orders) {
    for (port_t **place = &ports; *place; place = &(*place)->next)
        if ((*place)->handle == handle) {
            if ((order_count && has(*place, orders)) || NtCompareObjects((*place)->own, handle) == 0)
                return *place;
            discard(place); /* was closed, and the number is another's */
            break;
        }
    UNICODE_STRING name;
    OBJECT_ATTRIBUTES attributes;
    IO_STATUS_BLOCK status;
    port_t *port = calloc(1, sizeof *port);
    if (!port)
        return NULL;
    RtlInitUnicodeString(&name, L"\\Device\\Afd\\notifications");
    InitializeObjectAttributes(&attributes, &name, 0, NULL, NULL);
    if (DuplicateHandle(GetCurrentProcess(), handle, GetCurrentProcess(), &port->own, 0, FALSE, DUPLICATE_SAME_ACCESS)) {
        if (NtCreateFile(&port->helper, SYNCHRONIZE, &attributes, &status, NULL, 0, FILE_SHARE_READ | FILE_SHARE_WRITE,
                         FILE_OPEN, 0, NULL, 0) == 0) {
            port->answer = CreateEventW(NULL, FALSE, FALSE, NULL);
            if (port->answer) {
                port->handle = handle;
                port->next = ports;
                return ports = port;
            }
            CloseHandle(port->helper);
        }
        CloseHandle(port->own);
    }
    free(port);
    return NULL;
}

__declspec(dllexport) DWORD WINAPI ProcessSocketNotifications(HANDLE handle, UINT32 registration_count,
                                                              SOCK_NOTIFY_REGISTRATION *registrations, UINT32 timeout,
                                                              ULONG room, OVERLAPPED_ENTRY *entries, UINT32 *received) {
    if (!registration_count != !registrations || !room != !entries || !room != !received || (!room && timeout) ||
        (!room && !registration_count))
        return ERROR_INVALID_PARAMETER;
    EnterCriticalSection(&lock);
    port_t *port = port_of(handle, registration_count, registrations);
    if (!port) {
        LeaveCriticalSection(&lock);
        return ERROR_INVALID_HANDLE;
    }
    port->users++;
    for (UINT32 i = 0; i < registration_count; i++)
        registrations[i].registrationResult = apply(port, &registrations[i]);
    send_polls(port, true);
    LeaveCriticalSection(&lock);
    DWORD code = ERROR_SUCCESS;
    if (room) {
        *received = 0;
        code = dequeue(port, timeout, room, entries, received);
    }
    EnterCriticalSection(&lock);
    if (--port->users) { /* others may be waiting already */
        send_polls(port, true);
        if (any_answered(port))
            SetEvent(port->answer);
    }
    LeaveCriticalSection(&lock);
    return code;
}
