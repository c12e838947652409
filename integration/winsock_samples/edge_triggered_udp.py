"""An edge-triggered UDP server: the second program of "Winsock socket state notifications".

An edge is reported once, when data arrives where there was none. So the socket is registered before data can
arrive, and every notification is followed by receiving until it would block: only from there on can the next
edge be seen. Datagram sockets never report a hang-up.

    python integration/winsock_samples/edge_triggered_udp.py

Exits with 0 if every datagram that the client sent was received, and with a message otherwise.
"""

from __future__ import annotations

import socket
import sys
import threading

from notifyloop.port import CompletionPort, Event, Operation, Registration, Trigger

PAYLOAD = bytes.fromhex("deadbeef")
CLIENT_LOOP_COUNT = 10
MAX_TIMEOUT = 1.0  # seconds


def run_client(address: tuple[str, int]) -> None:
    """Send ten datagrams."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        for _ in range(CLIENT_LOOP_COUNT):
            client.sendto(PAYLOAD, address)


def receive_all(port: CompletionPort) -> list[bytes]:
    """Serve the one socket that is registered, until all datagrams have come; return them."""
    datagrams: list[bytes] = []
    while len(datagrams) < CLIENT_LOOP_COUNT:
        print("Waiting for client action...")
        for notification in port.process(timeout=MAX_TIMEOUT, max_notifications=1):
            server: socket.socket = notification.key
            if notification.events & Event.HANGUP:
                raise AssertionError("a datagram socket reported a hang-up")
            if notification.events & Event.ERR:
                server.recv(512)  # raises the error itself
            # Also without Event.IN: a notification that says too much costs one call, a drain that was
            # left out costs all that follows.
            while True:
                try:
                    datagrams.append(server.recv(512))
                except BlockingIOError:
                    break  # drained: what arrives from now on is an edge again
                print("Received client data.")
    print("Received all data. Exiting...")
    return datagrams


def deregister_and_wait(port: CompletionPort, registration: Registration) -> None:
    """Remove the registration, and return when nothing refers to it any more.

    For a port with a single socket: notifications that were queued before the removal are dropped here.
    """
    # Removed once, without waiting, so that a failure (of which no notification would tell) is raised.
    port.remove(registration)
    while True:
        for notification in port.process(timeout=MAX_TIMEOUT, max_notifications=1):
            if notification.events & Event.REMOVE:
                return


def main() -> str | None:
    with CompletionPort() as port, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.setblocking(False)
        # Before it is bound, so that no data can be there already: for data that came first there may be
        # no edge, and the server would wait for ever. Not one-shot: what happens while a one-shot
        # registration is disarmed is no edge for it, and would need another drain after re-arming.
        registration = Registration(
            server,
            key=server,
            events=Event.IN,
            trigger=Trigger.EDGE | Trigger.PERSISTENT,
            operation=Operation.ENABLE,
        )
        port.process([registration], max_notifications=0)  # only registers
        registration.check()
        try:
            server.bind(("127.0.0.1", 0))
            client = threading.Thread(target=run_client, args=[server.getsockname()])
            client.start()
            datagrams = receive_all(port)
            client.join()
        finally:
            deregister_and_wait(port, registration)

    if datagrams != [PAYLOAD] * CLIENT_LOOP_COUNT:
        return f"received {datagrams!r} where {CLIENT_LOOP_COUNT} payloads were sent"
    return None


if __name__ == "__main__":
    sys.exit(main())
