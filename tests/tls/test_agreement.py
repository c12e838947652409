"""What both ends of TLS agree on, and what a program can ask of that."""

from __future__ import annotations

import asyncio
import ssl
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator
    from typing import Any

    Contexts = tuple[ssl.SSLContext, ssl.SSLContext]

pytestmark = pytest.mark.asyncio


class Recorder(asyncio.Protocol):
    def __init__(self) -> None:
        self.arrived: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self.lost: asyncio.Future[Exception | None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: Any = transport

    def data_received(self, data: bytes) -> None:
        self.arrived.set_result(data)

    def connection_lost(self, error: Exception | None) -> None:
        self.lost.set_result(error)


@pytest.fixture
def authority() -> Any:
    import trustme  # noqa: PLC0415

    return trustme.CA()


@pytest.fixture
def contexts(authority: Any) -> Iterator[Contexts]:
    """Of this test alone, which may change them."""
    server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context()
    authority.issue_cert("localhost").configure_cert(server)
    authority.configure_trust(client)
    return server, client


async def connect(
    ours: socket.socket, peer: Any, contexts: Contexts, session: ssl.SSLSession | None = None
) -> Recorder:
    """Our server's end, which has heard what the peer has said after the handshake."""
    server, client = contexts
    peer.speak(client, server_side=False)
    if session is not None:
        peer.tls.session = session
    protocol = Recorder()
    accepting = asyncio.ensure_future(
        asyncio.get_running_loop().connect_accepted_socket(lambda: protocol, ours, ssl=server)
    )
    await peer.send(await peer.shake_hands() + peer.encrypt(b"hello"))
    await accepting
    assert await protocol.arrived == b"hello"
    return protocol


async def end(protocol: Recorder) -> None:
    protocol.transport.abort()
    await protocol.lost


async def test_what_can_be_asked(ours: socket.socket, peer: Any, contexts: Contexts) -> None:
    for context in contexts:
        context.set_alpn_protocols(["unspoken", "spoken"])
    protocol = await connect(ours, peer, contexts)
    agreed = protocol.transport.get_extra_info("ssl_object")
    assert isinstance(agreed, ssl.SSLObject)
    assert agreed.context is contexts[0]
    assert agreed.server_side
    assert agreed.version() == peer.tls.version()
    assert agreed.selected_alpn_protocol() == "unspoken"
    assert agreed.cipher() == peer.tls.cipher() == protocol.transport.get_extra_info("cipher")
    assert agreed.shared_ciphers()
    assert agreed.getpeercert() is None
    assert agreed.compression() is None
    assert not agreed.session_reused
    assert protocol.transport.get_extra_info("sslcontext") is contexts[0]
    await end(protocol)


async def test_limits_of_what_is_read_ahead(ours: socket.socket, peer: Any, contexts: Contexts) -> None:
    transport = (await connect(ours, peer, contexts)).transport
    assert transport.get_read_buffer_limits() == (64 * 1024, 256 * 1024)
    transport.set_read_buffer_limits(high=1000)
    assert transport.get_read_buffer_limits() == (250, 1000)
    with pytest.raises(ValueError, match="must be >= low"):
        transport.set_read_buffer_limits(high=1, low=2)
    assert transport.get_read_buffer_limits() == (250, 1000)
    assert transport.get_read_buffer_size() == 0
    transport.abort()


async def test_a_connection_of_old_can_be_bound_to(ours: socket.socket, peer: Any, contexts: Contexts) -> None:
    contexts[0].maximum_version = ssl.TLSVersion.TLSv1_2
    protocol = await connect(ours, peer, contexts)
    binding = protocol.transport.get_extra_info("ssl_object").get_channel_binding("tls-unique")
    assert binding == peer.tls.get_channel_binding("tls-unique")
    assert binding
    await end(protocol)


async def test_the_name_that_is_asked_for_chooses_the_context(
    ours: socket.socket, peer: Any, contexts: Contexts, authority: Any
) -> None:
    server, client = contexts
    chosen = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost", common_name="chosen").configure_cert(chosen)
    asked: list[Any] = []

    def choose(connection: Any, name: str | None, context: ssl.SSLContext) -> None:
        asked.append((type(connection), name, context))
        connection.context = chosen

    server.sni_callback = choose  # type: ignore[assignment]
    protocol = await connect(ours, peer, (server, client))
    assert asked == [(ssl.SSLObject, "localhost", server)]
    assert (("commonName", "chosen"),) in peer.tls.getpeercert()["subject"]
    assert protocol.transport.get_extra_info("ssl_object").context is chosen
    assert protocol.transport.get_extra_info("sslcontext") is server
    await end(protocol)


async def test_a_name_that_is_not_known(ours: socket.socket, peer: Any, contexts: Contexts) -> None:
    server, client = contexts
    server.sni_callback = lambda *_: ssl.ALERT_DESCRIPTION_UNRECOGNIZED_NAME  # type: ignore[assignment]
    peer.speak(client, server_side=False)
    accepting = asyncio.ensure_future(asyncio.get_running_loop().connect_accepted_socket(Recorder, ours, ssl=server))
    await peer.send(peer.hello())
    with pytest.raises(ssl.SSLError):
        await accepting


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_a_client_that_shows_a_certificate(
    ours: socket.socket, peer: Any, contexts: Contexts, authority: Any, version: ssl.TLSVersion
) -> None:
    server, client = contexts
    server.maximum_version = version
    server.verify_mode = ssl.CERT_REQUIRED
    authority.configure_trust(server)
    authority.issue_cert("client@example.org").configure_cert(client)
    protocol = await connect(ours, peer, contexts)
    shown = protocol.transport.get_extra_info("peercert")
    assert shown["subjectAltName"] == (("email", "client@example.org"),)
    assert shown == protocol.transport.get_extra_info("ssl_object").getpeercert()
    await end(protocol)


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_a_session_is_resumed(
    ours: socket.socket, peer: Any, contexts: Contexts, version: ssl.TLSVersion
) -> None:
    contexts[0].maximum_version = version
    first = await connect(ours, peer, contexts)
    first.transport.write(b"and a ticket before")
    assert await peer.receive() == b"and a ticket before"
    session = peer.tls.session
    await end(first)
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Recorder, "127.0.0.1", 0, ssl=contexts[0])
    with type(ours)() as sock:
        sock.setblocking(False)
        await loop.sock_connect(sock, server.sockets[0].getsockname())
        again = type(peer)(sock)
        again.incoming, again.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        again.tls = contexts[1].wrap_bio(again.incoming, again.outgoing, False, "localhost", session)
        await again.send(await again.shake_hands() + again.goodbye())
        assert again.tls.session_reused
        with pytest.raises(EOFError):
            while True:
                await again.hear()
    server.close()


async def test_what_a_context_makes_of_its_own_is_used(ours: socket.socket, peer: Any, contexts: Contexts) -> None:
    class Special(ssl.SSLObject):
        pass

    contexts[0].sslobject_class = Special
    protocol = await connect(ours, peer, contexts)
    assert isinstance(protocol.transport.get_extra_info("ssl_object"), Special)
    await end(protocol)


async def test_a_context_that_has_another_way_is_asked(
    ours: socket.socket, peer: Any, contexts: Contexts, authority: Any
) -> None:
    asked: list[Any] = []

    class Special(ssl.SSLContext):
        def wrap_bio(self, *arguments: Any, **options: Any) -> ssl.SSLObject:
            asked.append(options)
            return super().wrap_bio(*arguments, **options)

    server = Special(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(server)
    protocol = await connect(ours, peer, (server, contexts[1]))
    assert len(asked) == 1
    await end(protocol)
