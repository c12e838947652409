"""A simple replacement for poll: the first program of "Winsock socket state notifications".

One thread, one persistent, level-triggered registration. As long as there is something to read, every wait
reports it, so nothing has to be registered again; the peer's hang-up ends the program.

    python integration/winsock_samples/simple_poll_replacement.py

Exits with 0 if every byte that the client sent was received, and with a message otherwise.
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
    """Send the payload ten times, then disconnect."""
    with socket.create_connection(address) as client:
        for _ in range(CLIENT_LOOP_COUNT):
            client.sendall(PAYLOAD)
        client.shutdown(socket.SHUT_RDWR)


def receive_until_hang_up(port: CompletionPort) -> int:
    """Serve the one connection that is registered, and return how many bytes came."""
    received = 0
    while True:
        print("Waiting for client action...")
        # No registrations in this call: it only dequeues, as GetQueuedCompletionStatusEx does. When nothing
        # happens for a second the list is empty, which is no error.
        for notification in port.process(timeout=MAX_TIMEOUT, max_notifications=1):
            # The completion key is the object that was registered with the socket: here, the socket.
            connection: socket.socket = notification.key
            events = notification.events

            if events & Event.ERR:
                print("The socket was ungracefully reset or another error occurred. Exiting.")
                connection.recv(512)  # raises the error itself
                raise ConnectionError("an error was reported, but receiving shows none")

            if events & (Event.IN | Event.HANGUP):
                data = connection.recv(512)
                if data:
                    print("Received client data.")
                    received += len(data)
                    # The hang-up may come together with the last data. It is a level: until everything
                    # before it has been received, the next wait reports both again.
                    continue

            if events & Event.HANGUP:
                print("Client hung up. Exiting.")
                return received


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
    with CompletionPort() as port, socket.create_server(("127.0.0.1", 0)) as listener:
        client = threading.Thread(target=run_client, args=[listener.getsockname()])
        client.start()
        connection, _ = listener.accept()
        with connection:
            connection.setblocking(False)
            registration = Registration(
                connection,
                key=connection,
                events=Event.IN | Event.HANGUP,
                trigger=Trigger.LEVEL | Trigger.PERSISTENT,
                operation=Operation.ENABLE,
            )
            port.process([registration], max_notifications=0)  # only registers
            registration.check()
            try:
                received = receive_until_hang_up(port)
            finally:
                deregister_and_wait(port, registration)
        client.join()

    expected = CLIENT_LOOP_COUNT * len(PAYLOAD)
    if received != expected:
        return f"received {received} bytes where {expected} were sent"
    return None


if __name__ == "__main__":
    sys.exit(main())
