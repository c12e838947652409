"""A multithreaded server: the third program of "Winsock socket state notifications".

Sixteen threads dequeue from one port. Every registration is one-shot and level-triggered, so a notification
makes the thread that dequeued it the owner of the connection, alone, until it enables the registration again.
It does so in the same call that waits for the next notifications: one call per turn, whatever has happened.

When a client hangs up, its owner removes the registration; whoever dequeues the notice of that is the last
to know the connection, and closes it. After the last one a thread exits, and wakes the next by posting a
packet, which exits and wakes the next.

    python integration/winsock_samples/multithreaded_server.py

Exits with 0 if every connection was served completely and released once, and with a message otherwise.
"""

from __future__ import annotations

import socket
import sys
import threading

from notifyloop.port import CompletionPort, Event, Operation, Registration

PAYLOAD = bytes.fromhex("deadbeef")
CLIENT_LOOP_COUNT = 10
CLIENT_THREAD_COUNT = 100
SERVER_THREAD_COUNT = 16
SERVER_DEQUEUE_COUNT = 3
SERVER_EXIT_KEY = 1  # of posted packets; registrations have objects for keys


def run_client(address: tuple[str, int]) -> None:
    """Send the payload ten times, then disconnect."""
    with socket.create_connection(address) as client:
        for _ in range(CLIENT_LOOP_COUNT):
            client.sendall(PAYLOAD)
        client.shutdown(socket.SHUT_RDWR)


class Connection:
    """What the server knows of one client. Used by its owner only."""

    def __init__(self, client: socket.socket, owner: int) -> None:
        client.setblocking(False)
        self.socket = client
        self.registration = Registration(client, key=self, events=Event.IN | Event.HANGUP)
        self.owner = owner  # the thread that dequeued its last notification
        self.received = 0
        self.released = False


class Server:
    """The listener, the port, and what its threads share."""

    def __init__(self) -> None:
        self.port = CompletionPort()
        # The article listens without a backlog. A hundred clients at once would be turned away, and most of
        # them would try again only a second later.
        self.socket = socket.create_server(("127.0.0.1", 0), backlog=CLIENT_THREAD_COUNT)
        self.socket.setblocking(False)
        # One-shot from the start: with a persistent registration all threads would come for one client.
        self.registration = Registration(self.socket, key=self, events=Event.IN)
        self.port.enable(self.registration)

        self.lock = threading.Lock()  # of those who change what follows
        self.deregistered = 0
        self.received = 0
        self.should_exit = False
        self.failures: list[str] = []

    def run_thread(self) -> None:
        """What each server thread does."""
        me = threading.get_ident()
        try:
            self.process_notifications(me)
        except Exception as error:
            self.fail(f"server thread {me}: {error!r}")
        finally:
            self.port.post(SERVER_EXIT_KEY)  # wake a remaining server thread
            say(f"Server thread {me} exited")

    def process_notifications(self, me: int) -> None:
        changes: list[Registration] = []
        while not self.should_exit:
            say(f"Server thread {me} waiting for client action...")
            # Re-arm what the last turn has served, and wait.
            notifications = self.port.process(changes, timeout=None, max_notifications=SERVER_DEQUEUE_COUNT)
            self.clean_up_failed(changes, me)

            changes = []
            for notification in notifications:
                if notification.key == SERVER_EXIT_KEY:
                    return
                if notification.key is self:
                    changes += self.accept(me)
                elif notification.events & Event.REMOVE:
                    self.release(notification.key)
                else:
                    changes.append(self.receive(notification.key, me))

    def accept(self, me: int) -> list[Registration]:
        """Accept one client; returns the registrations that this calls for: the listener's, and the new
        connection's.
        """
        # Whatever the notification said: an error of the listener shows here too.
        try:
            client, _ = self.socket.accept()
        except (BlockingIOError, ConnectionAbortedError):  # the client has changed its mind
            return [self.registration]
        return [self.registration, Connection(client, me).registration]

    def receive(self, connection: Connection, me: int) -> Registration:
        """Receive once; returns the registration, to be enabled again or to be removed.

        The notification's mask is not looked at: a hang-up may come with the last data, and then receiving
        comes first. As the registration is level-triggered, what is left is reported again.
        """
        connection.owner = me
        if connection.released:
            raise AssertionError("a connection was used after its last notification")
        registration = connection.registration
        registration.operation = Operation.ENABLE
        try:
            data = connection.socket.recv(512)
        except BlockingIOError:
            return registration
        except ConnectionError as error:
            self.fail(f"a client was lost: {error}")
            data = b""
        connection.received += len(data)
        if not data:
            registration.operation = Operation.REMOVE
        return registration

    def clean_up_failed(self, changes: list[Registration], me: int) -> None:
        """A thread whose registration failed still owns the connection, and has to clean it up."""
        for registration in changes:
            connection = registration.key
            # After the wait, a registration that did not fail may belong to another thread, and so does the
            # result that it shows then.
            if not registration.result or not isinstance(connection, Connection) or connection.owner != me:
                continue
            self.fail(f"registration failed with {registration.result}: {registration!r}")
            if registration.operation == Operation.ENABLE:
                try:
                    self.port.remove(registration)
                    continue  # the notice will come
                except OSError:
                    pass  # it was never registered
            self.release(connection)

    def release(self, connection: Connection) -> None:
        """Free what belongs to a connection that no notification will name again."""
        if connection.released:
            raise AssertionError("a connection was released twice")
        connection.released = True
        connection.socket.close()
        with self.lock:
            self.received += connection.received
            self.deregistered += 1
            if self.deregistered >= CLIENT_THREAD_COUNT:
                self.should_exit = True

    def fail(self, message: str) -> None:
        with self.lock:
            self.failures.append(message)

    def close(self) -> None:
        self.port.remove(self.registration)
        self.port.close()
        self.socket.close()


print_lock = threading.Lock()


def say(line: str) -> None:
    with print_lock:
        print(line)


def main() -> str | None:
    server = Server()
    # More threads than processors. On Windows the port lets only as many run as there are processors.
    server_threads = [threading.Thread(target=server.run_thread) for _ in range(SERVER_THREAD_COUNT)]
    address = server.socket.getsockname()
    clients = [threading.Thread(target=run_client, args=[address]) for _ in range(CLIENT_THREAD_COUNT)]
    for thread in server_threads + clients:
        thread.start()
    say(f"Waiting for {len(server_threads)} server threads to exit...")
    for thread in server_threads + clients:
        thread.join()
    server.close()

    expected = CLIENT_THREAD_COUNT * CLIENT_LOOP_COUNT * len(PAYLOAD)
    if server.received != expected:
        server.fail(f"received {server.received} bytes where {expected} were sent")
    if server.deregistered != CLIENT_THREAD_COUNT:
        server.fail(f"{server.deregistered} connections were released where {CLIENT_THREAD_COUNT} were made")
    return "\n".join(server.failures) or None


if __name__ == "__main__":
    sys.exit(main())
