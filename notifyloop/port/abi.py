"""The declarations of Winsock's socket state notifications, written once for every provider.

The text below is C for a compiler (the Linux provider is built with it) and a `cdef` for cffi (the Windows
providers are bound with it). Layouts and values are those of winsock2.h and ioapiset.h; they are the same
on every platform, so what runs on Linux is called exactly as on Windows. What is ours is marked so: a timeout
finer than a millisecond, the packed form of the call, an operation and a call for those who use it, errors that
carry an errno, and the counters.

Sources: "ProcessSocketNotifications function (winsock2.h)", "SOCK_NOTIFY_REGISTRATION structure
(winsock2.h)", "Winsock socket state notifications" and "GetQueuedCompletionStatusEx function (ioapiset.h)"
of Microsoft's reference.
"""

from __future__ import annotations

from struct import Struct, calcsize

TYPES = """
typedef uintptr_t SOCKET;
typedef uintptr_t ULONG_PTR;
typedef void *HANDLE;
typedef void *PVOID;
typedef uint32_t DWORD;
typedef uint32_t ULONG;
typedef uint32_t UINT32;
typedef uint16_t UINT16;
typedef uint8_t UINT8;
typedef int BOOL;

typedef struct {
    SOCKET socket;
    PVOID completionKey;
    UINT16 eventFilter;
    UINT8 operation;
    UINT8 triggerFlags;
    DWORD registrationResult;
} SOCK_NOTIFY_REGISTRATION;

typedef struct {
    ULONG_PTR lpCompletionKey;
    PVOID lpOverlapped;
    ULONG_PTR Internal;
    DWORD dwNumberOfBytesTransferred;
} OVERLAPPED_ENTRY;
"""

CONSTANTS = """
#define SOCK_NOTIFY_REGISTER_EVENT_NONE 0x00
#define SOCK_NOTIFY_REGISTER_EVENT_IN 0x01
#define SOCK_NOTIFY_REGISTER_EVENT_OUT 0x02
#define SOCK_NOTIFY_REGISTER_EVENT_HANGUP 0x04
#define SOCK_NOTIFY_REGISTER_EVENTS_ALL 0x07

#define SOCK_NOTIFY_EVENT_IN 0x01
#define SOCK_NOTIFY_EVENT_OUT 0x02
#define SOCK_NOTIFY_EVENT_HANGUP 0x04
#define SOCK_NOTIFY_EVENT_ERR 0x40
#define SOCK_NOTIFY_EVENT_REMOVE 0x80
#define SOCK_NOTIFY_EVENTS_ALL 0xC7

#define SOCK_NOTIFY_OP_NONE 0x00
#define SOCK_NOTIFY_OP_ENABLE 0x01
#define SOCK_NOTIFY_OP_DISABLE 0x02
#define SOCK_NOTIFY_OP_REMOVE 0x04

#define SOCK_NOTIFY_TRIGGER_ONESHOT 0x01
#define SOCK_NOTIFY_TRIGGER_PERSISTENT 0x02
#define SOCK_NOTIFY_TRIGGER_LEVEL 0x04
#define SOCK_NOTIFY_TRIGGER_EDGE 0x08
#define SOCK_NOTIFY_TRIGGER_ALL 0x0F

#define ERROR_SUCCESS 0
#define ERROR_INVALID_HANDLE 6
#define ERROR_NOT_ENOUGH_MEMORY 8
#define ERROR_INVALID_PARAMETER 87
#define WAIT_IO_COMPLETION 192
#define WAIT_TIMEOUT 258
#define ERROR_ABANDONED_WAIT_0 735
#define ERROR_TIMEOUT 1460
#define INFINITE 0xFFFFFFFF
"""

FUNCTIONS = """
HANDLE CreateIoCompletionPort(HANDLE file, HANDLE existing, ULONG_PTR key, DWORD threads);

BOOL CloseHandle(HANDLE port);

BOOL PostQueuedCompletionStatus(HANDLE port, DWORD bytes, ULONG_PTR key, PVOID overlapped);

DWORD ProcessSocketNotifications(HANDLE port,
                                 UINT32 registrationCount, SOCK_NOTIFY_REGISTRATION *registrations,
                                 UINT32 timeoutMs,
                                 ULONG completionCount, OVERLAPPED_ENTRY *entries,
                                 UINT32 *receivedEntryCount);
"""

# Windows' own way to wait on a port, which hands out all packets as they are.
WINDOWS_FUNCTIONS = """
BOOL GetQueuedCompletionStatusEx(HANDLE port, OVERLAPPED_ENTRY *entries, ULONG count, ULONG *removed, DWORD timeoutMs,
                                 BOOL alertable);

DWORD GetLastError(void);
"""

# Ours. Winsock counts milliseconds; Linux can wait for nanoseconds, and an event loop's timers profit. A
# negative timeout is INFINITE. The packed form is the same call once more, for callers to whom an argument and a
# result are dear: the registrations are bytes that nobody changes; those that failed are listed apart; and what it
# returns is the number of packets and, in the upper half, of failures, or a negative error code.
#
# A loop makes the same call again and again, and so keeps its arguments: PACKED_CALL. `size` tells how many bytes of
# `packed` are still to be applied; the call that does sets it to 0. `dequeued` tells how many packets of the last call
# are still in `entries`. Of those sockets, the one-shot registrations that the packets have disarmed are enabled again
# as they were, each unless something else was ordered for it since, or is now: a program that goes on as before need
# not say so. `failed` tells how many registrations are in `failures`; until somebody has read them and set it to 0,
# the call does nothing but return that number again.
#
# And `words` has each packet as one number. A key whose highest bit is set has a number in its bits 8 to 31 (to 30
# where keys have 32 bits), and leaves the lowest 8 free for the event mask. What most packets say, that there is
# something to receive, is said by that number alone: an index, by which a program finds who is meant. It is not told
# then whether there will be no more: whoever receives all meets the end. With other events, the word is 2**32 and those
# 32 bits. A key without the highest bit is told by its lower 32 bits and 2**33.
#
# Whoever is about to close a registered descriptor, or has just closed it, may say so with SOCK_NOTIFY_OP_FORGET, which
# brings no notice and never fails; then the descriptor's next owner is not taken for the one that it had. A file that
# goes on being open in a forked child would go on being reported, if it were not said before it is closed:
# ForgetRegistration does so at once. `fork_count` is how many forks there were: only what was registered before the
# last one can be open in a child.
#
# SOCK_NOTIFY_OP_RENEW is ENABLE for a descriptor that may be another file's by now, because somebody has put that under
# the same number: then it is registered in the place of the one that is gone.
#
# PutBackPackets undoes the dequeuing of packets that nobody has looked at. And an error with the bit of
# ERROR_SYSTEM_CALL is the errno of a call of the system; with that of ERROR_AFTER_FORK, of one that should have made an
# inherited port the child's own. (Windows leaves bit 29 of an error to applications.)
EXTENSIONS = """
#define SOCK_NOTIFY_OP_FORGET 0x80
#define SOCK_NOTIFY_OP_RENEW 0x40

#define ERROR_SYSTEM_CALL 0x20000000
#define ERROR_AFTER_FORK 0x20010000

typedef struct {
    uint64_t calls;
    uint64_t waits;
    uint64_t kernel_waits;
    uint64_t kernel_changes;
    uint64_t registrations;
    uint64_t re_arms;
    uint64_t notifications;
    uint64_t withheld;
    uint64_t stale;
    uint64_t posted;
    uint64_t rebuilds;
    uint64_t busy_ns;
    uint64_t busy_recent_ns;
    uint64_t busy_longest_ns;
    uint64_t waiting_ns;
} PORT_COUNTERS;

typedef struct {
    ULONG_PTR key;
    UINT32 index;
    DWORD result;
} FAILED_REGISTRATION;

typedef struct {
    HANDLE port;
    const char *packed;
    size_t size;
    FAILED_REGISTRATION *failures;
    int64_t timeoutNs;
    ULONG completionCount;
    OVERLAPPED_ENTRY *entries;
    UINT32 dequeued;
    UINT32 failed;
    int64_t *words;
} PACKED_CALL;

extern uint32_t fork_count;

DWORD ProcessSocketNotificationsNs(HANDLE port,
                                   UINT32 registrationCount, SOCK_NOTIFY_REGISTRATION *registrations,
                                   int64_t timeoutNs,
                                   ULONG completionCount, OVERLAPPED_ENTRY *entries,
                                   UINT32 *receivedEntryCount);

int64_t ProcessPackedNotifications(HANDLE port,
                                   const char *packed, size_t size, FAILED_REGISTRATION *failures,
                                   int64_t timeoutNs,
                                   ULONG completionCount, OVERLAPPED_ENTRY *entries);

int64_t ProcessPackedCall(PACKED_CALL *call);

BOOL ForgetRegistration(HANDLE port, SOCKET socket, ULONG_PTR key);

BOOL PutBackPackets(HANDLE port, OVERLAPPED_ENTRY *entries, ULONG count);

BOOL GetPortCounters(HANDLE port, PORT_COUNTERS *counters);
"""

DECLARATIONS = TYPES + CONSTANTS + FUNCTIONS + EXTENSIONS

# The structures as Python's struct module sees them. Touching the fields of a foreign structure one by
# one is slow from Python; packing and unpacking whole arrays is not. "N" is as wide as a pointer. The
# result of a registration (out) is packed as zero, which is ERROR_SUCCESS: after the call, an unchanged
# array is an array without failures.
REGISTRATION = Struct("@NNHBBI")
ENTRY = Struct(
    "@N" + f"{calcsize('@NN')}x" + "I" + f"{calcsize('N') - 4}x"
)  # the key and the event mask of an OVERLAPPED_ENTRY
FULL_ENTRY = Struct("@NNNI" + f"{calcsize('N') - 4}x")
FAILURE = Struct("@NII")

if __name__ == "__main__":  # the C test programs include this output as abi.h
    print("#include <stdint.h>\n" + DECLARATIONS)
