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
 * It works as that one does: an enabled registration is one poll of the socket driver in flight, on a helper handle that is associated with the
 * caller's port. Waiting takes packets from the port and turns the answers of polls into notifications.
 *
 *     x86_64-w64-mingw32-gcc -O2 -shared -o socket_notifications.dll socket_notifications.c -lws2_32 -lntdll
 */

#define WIN32_LEAN_AND_MEAN
#define _WIN32_WINNT 0x0A00
#include <winsock2.h>
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
#define POLL_KEY ((ULONG_PTR)-3)                   /* nobody's generation */
#define NONSENSE ((ULONG_PTR)0xDEADBEEF)           /* in what is reserved */

typedef struct {
    LARGE_INTEGER timeout;
    ULONG number;
    ULONG exclusive;
    HANDLE socket;
    ULONG events;
    NTSTATUS status;
} poll_info_t;

struct registration;

typedef struct poll {
    IO_STATUS_BLOCK status;
    poll_info_t info;
    struct registration *owner; /* NULL: given up, the answer is nobody's */
} poll_t;

typedef struct registration {
    struct registration *next;
    SOCKET socket;
    PVOID key;
    UINT16 filter;
    UINT8 trigger;
    bool enabled;
    bool to_poll; /* persistent, and notified since */
    poll_t *poll;
} registration_t;

enum { BUCKETS = 1024 };

typedef struct port {
    struct port *next;
    HANDLE handle; /* the caller's */
    HANDLE own;    /* a duplicate: numbers of handles come back, and only the object tells whether it is still this port */
    HANDLE helper;
    registration_t *registrations[BUCKETS]; /* by socket */
    unsigned to_poll;                       /* how many of them */
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

static void will_poll(port_t *port, registration_t *registration, bool will) {
    port->to_poll += will - registration->to_poll;
    registration->to_poll = will;
}

static DWORD send_poll(port_t *port, registration_t *registration) {
    poll_t *poll = calloc(1, sizeof *poll);
    if (!poll)
        return ERROR_NOT_ENOUGH_MEMORY;
    poll->status.Status = STATUS_PENDING;
    poll->info.timeout.QuadPart = INT64_MAX;
    poll->info.number = 1;
    poll->info.socket = (HANDLE)registration->socket;
    poll->info.events = asked_for(registration->filter);
    poll->owner = registration;
    registration->poll = poll;
    will_poll(port, registration, false);
    NTSTATUS status = NtDeviceIoControlFile(port->helper, NULL, NULL, poll, &poll->status, IOCTL_AFD_POLL, &poll->info,
                                            sizeof poll->info, &poll->info, sizeof poll->info);
    if (status == 0 || status == STATUS_PENDING)
        return ERROR_SUCCESS;
    registration->poll = NULL;
    free(poll);
    DWORD code = RtlNtStatusToDosError(status);
    return code == ERROR_INVALID_HANDLE ? WSAENOTSOCK : code;
}

static void give_up(port_t *port, registration_t *registration) {
    IO_STATUS_BLOCK status;
    if (registration->poll) {
        registration->poll->owner = NULL;
        NtCancelIoFileEx(port->helper, &registration->poll->status, &status);
        registration->poll = NULL;
    }
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
    give_up(port, registration);
    will_poll(port, registration, false);
    *find(port, registration->socket) = registration->next;
    free(registration);
}

static bool is_socket(SOCKET socket) {
    int type, size = sizeof type;
    return getsockopt(socket, SOL_SOCKET, SO_TYPE, (char *)&type, &size) == 0;
}

static DWORD enable(port_t *port, const SOCK_NOTIFY_REGISTRATION *order) {
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
    give_up(port, registration);
    registration->filter = order->eventFilter;
    registration->trigger = order->triggerFlags;
    DWORD code = send_poll(port, registration);
    registration->enabled = code == ERROR_SUCCESS;
    if (code == WSAENOTSOCK)
        forget(port, registration);
    return code;
}

static DWORD apply(port_t *port, const SOCK_NOTIFY_REGISTRATION *order) {
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

/* ---- notifications ---------------------------------------------------------------------------------------------------------------- */

static void poll_again(port_t *port, registration_t *registration) {
    if (send_poll(port, registration))
        forget(port, registration);
}

/* Turns the answer of a poll into a notification. Returns whether it is one. */
static bool answered(port_t *port, OVERLAPPED_ENTRY *entry) {
    poll_t *poll = (poll_t *)entry->lpOverlapped;
    registration_t *registration = poll->owner;
    ULONG answer = poll->status.Status == 0 && poll->info.number ? poll->info.events : 0;
    free(poll);
    if (!registration)
        return false;
    registration->poll = NULL;
    if (answer & AFD_POLL_LOCAL_CLOSE) { /* closing deregisters, without a notice */
        forget(port, registration);
        return false;
    }
    if (!registration->enabled)
        return false;
    DWORD events = reported(answer, registration->filter);
    if (!events) {
        poll_again(port, registration);
        return false;
    }
    *entry = (OVERLAPPED_ENTRY){.lpCompletionKey = (ULONG_PTR)registration->key,
                                .lpOverlapped = (OVERLAPPED *)NONSENSE,
                                .Internal = NONSENSE,
                                .dwNumberOfBytesTransferred = events};
    if (registration->trigger & ONESHOT)
        registration->enabled = false;
    else if (port->users > 1)
        poll_again(port, registration);
    else
        will_poll(port, registration, true);
    return true;
}

static void poll_persistent(port_t *port) {
    for (unsigned bucket = 0; port->to_poll && bucket < BUCKETS; bucket++)
        for (registration_t *registration = port->registrations[bucket], *next; registration; registration = next) {
            next = registration->next;
            if (registration->to_poll && registration->enabled && !registration->poll)
                poll_again(port, registration);
            else
                will_poll(port, registration, false);
        }
}

static DWORD dequeue(port_t *port, UINT32 timeout, ULONG room, OVERLAPPED_ENTRY *entries, UINT32 *received) {
    ULONGLONG deadline = GetTickCount64() + timeout;
    for (;;) {
        ULONG found = 0;
        EnterCriticalSection(&lock);
        poll_persistent(port);
        LeaveCriticalSection(&lock);
        if (!GetQueuedCompletionStatusEx(port->handle, entries, room, &found, timeout, FALSE))
            return GetLastError();
        EnterCriticalSection(&lock);
        for (ULONG i = 0; i < found; i++)
            if (entries[i].lpCompletionKey != POLL_KEY || answered(port, &entries[i]))
                entries[(*received)++] = entries[i];
        LeaveCriticalSection(&lock);
        if (*received)
            return ERROR_SUCCESS;
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
            free(registration); /* its poll is the kernel's until it is answered: nobody looks any more, so it is left to it */
        }
    NtCancelIoFileEx(port->helper, NULL, &status);
    CloseHandle(port->helper);
    CloseHandle(port->own);
    free(port);
}

static port_t *port_of(HANDLE handle) {
    for (port_t **place = &ports; *place; place = &(*place)->next)
        if ((*place)->handle == handle) {
            if (NtCompareObjects((*place)->own, handle) == 0)
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
            if (CreateIoCompletionPort(port->helper, port->own, POLL_KEY, 0)) {
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
    port_t *port = port_of(handle);
    if (!port) {
        LeaveCriticalSection(&lock);
        return ERROR_INVALID_HANDLE;
    }
    port->users++;
    for (UINT32 i = 0; i < registration_count; i++)
        registrations[i].registrationResult = apply(port, &registrations[i]);
    LeaveCriticalSection(&lock);
    DWORD code = ERROR_SUCCESS;
    if (room) {
        *received = 0;
        code = dequeue(port, timeout, room, entries, received);
    }
    EnterCriticalSection(&lock);
    port->users--;
    LeaveCriticalSection(&lock);
    return code;
}
