"""TLS with OpenSSL's own client and server at the other end, in processes that can be stopped in the midst of it."""

from __future__ import annotations

import asyncio
import contextlib
import re
import shutil
import signal
import ssl
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

pytestmark = [
    pytest.mark.skipif(sys.platform == "win32", reason="a process is stopped and its output read as POSIX has it"),
    pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl, the program, is not installed"),
]

VERSIONS = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}
VERSION = pytest.mark.parametrize("version", VERSIONS)
CHUNK = 64 * 1024  # bytes
MUCH = 3_000_000  # bytes, more than the buffers between two processes hold


def option(version: str) -> str:
    return "-tls" + version.replace(".", "_")


@dataclass
class Identity:
    """What a server named localhost shows, as files, and whom to trust."""

    certificate: str
    authority: str

    def server(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.certificate)
        context.set_alpn_protocols(["spoken", "also spoken"])
        return context

    def client(self) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=self.authority)
        context.set_alpn_protocols(["unknown", "spoken"])
        return context


@pytest.fixture(scope="module")
def identity(tmp_path_factory: pytest.TempPathFactory) -> Identity:
    import trustme  # noqa: PLC0415

    folder: Path = tmp_path_factory.mktemp("identity")
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(folder / "authority.pem"))
    authority.issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(str(folder / "certificate.pem"))
    return Identity(str(folder / "certificate.pem"), str(folder / "authority.pem"))


@contextlib.asynccontextmanager
async def openssl(*arguments: str, stderr: int | None = None) -> AsyncIterator[asyncio.subprocess.Process]:
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        "openssl", *arguments, stdin=pipe, stdout=pipe, stderr=stderr, limit=1 << 24
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()  # also if it is stopped
        await process.communicate()


@contextlib.asynccontextmanager
async def s_client(identity: Identity, port: int, *arguments: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """It sends its input, and ends when the server closes. One that does not trust the server fails."""
    address = ("-connect", f"127.0.0.1:{port}", "-servername", "localhost")
    trust = ("-CAfile", identity.authority, "-verify_return_error", "-verify_hostname", "localhost")
    async with openssl("s_client", "-quiet", *address, *trust, "-alpn", "unknown,spoken", *arguments) as process:
        yield process


@contextlib.asynccontextmanager
async def s_server(identity: Identity, *arguments: str) -> AsyncIterator[tuple[asyncio.subprocess.Process, int]]:
    """It answers each line with the same, reversed. Yields its port, too."""
    certificate = ("-cert", identity.certificate, "-key", identity.certificate)
    async with openssl("s_server", "-accept", "127.0.0.1:0", *certificate, "-alpn", "spoken", *arguments) as process:
        assert process.stdout is not None
        while not (port := re.match(rb"ACCEPT .*:(\d+)$", (await process.stdout.readline()).strip())):
            assert not process.stdout.at_eof()
        yield process, int(port[1])


class Recorder(asyncio.Protocol):
    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.received = bytearray()
        self.news = asyncio.Event()
        self.lost: asyncio.Future[Exception | None] = loop.create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: Any = transport

    def data_received(self, data: bytes) -> None:
        self.received += data
        self.news.set()

    def connection_lost(self, error: Exception | None) -> None:
        self.lost.set_result(error)

    async def until(self, size: int) -> None:
        while len(self.received) < size:
            self.news.clear()
            await self.news.wait()


@contextlib.asynccontextmanager
async def listening(context: ssl.SSLContext, **timeouts: float) -> AsyncIterator[tuple[int, asyncio.Queue[Recorder]]]:
    """A server of this loop. Yields its port, and where its connections come."""
    connections: asyncio.Queue[Recorder] = asyncio.Queue()

    class Accepted(Recorder):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            super().connection_made(transport)
            connections.put_nowait(self)

    loop = asyncio.get_running_loop()
    async with await loop.create_server(Accepted, "127.0.0.1", 0, ssl=context, **timeouts) as server:
        yield server.sockets[0].getsockname()[1], connections


async def connect(identity: Identity, port: int, **options: Any) -> Recorder:
    context = options.pop("ssl", None) or identity.client()
    _, protocol = await asyncio.get_running_loop().create_connection(
        Recorder, "127.0.0.1", port, ssl=context, server_hostname="localhost", **options
    )
    return protocol


class TestTheirClient:
    @VERSION
    @pytest.mark.asyncio
    async def test_name_and_protocol_are_negotiated(self, identity: Identity, version: str) -> None:
        context, names = identity.server(), []
        context.sni_callback = lambda connection, name, context: names.append(name)
        async with (
            listening(context) as (port, connections),
            s_client(identity, port, option(version)),
        ):
            connection = await connections.get()
            tls = connection.transport.get_extra_info("ssl_object")
            assert names == ["localhost"]
            assert tls.selected_alpn_protocol() == "spoken"
            assert tls.version() == f"TLSv{version}"
            connection.transport.abort()

    @VERSION
    @pytest.mark.asyncio
    async def test_much_there_and_back(self, identity: Identity, version: str) -> None:
        data = bytes(range(256)) * (MUCH // 256)
        async with (
            listening(identity.server()) as (port, connections),
            s_client(identity, port, option(version)) as client,
        ):
            talking = asyncio.ensure_future(client.communicate(data))
            connection = await connections.get()
            await connection.until(len(data))
            connection.transport.write(connection.received)
            connection.transport.close()
            output, _ = await talking
            assert output == data
            assert client.returncode == 0
            assert await connection.lost is None

    @pytest.mark.asyncio
    async def test_it_ends_the_connection(self, identity: Identity) -> None:
        async with (
            listening(identity.server()) as (port, connections),
            s_client(identity, port, "-no_ign_eof") as client,
        ):
            output, _ = await client.communicate(b"the last words\n")
            connection = await connections.get()
            assert await connection.lost is None
            assert (connection.received, output) == (b"the last words\n", b"")

    @pytest.mark.asyncio
    async def test_it_does_not_trust_us(self, identity: Identity, caplog: pytest.LogCaptureFixture) -> None:
        import trustme  # noqa: PLC0415

        stranger = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        trustme.CA().issue_cert("localhost").configure_cert(stranger)
        stranger.maximum_version = ssl.TLSVersion.TLSv1_2  # whose handshake ends only when the client agrees
        async with listening(stranger) as (port, connections), s_client(identity, port) as client:
            await client.communicate()
            assert client.returncode != 0
            assert connections.empty()


class TestTheirServer:
    @VERSION
    @pytest.mark.asyncio
    async def test_protocol_is_negotiated(self, identity: Identity, version: str) -> None:
        async with s_server(identity, "-rev", option(version)) as (_, port):
            connection = await connect(identity, port)
            tls = connection.transport.get_extra_info("ssl_object")
            assert tls.selected_alpn_protocol() == "spoken"
            assert tls.version() == f"TLSv{version}"
            connection.transport.abort()

    @pytest.mark.asyncio
    async def test_name_is_told(self, identity: Identity, tmp_path: Path) -> None:
        """Only to those who ask for localhost it shows the certificate that they trust."""
        import trustme  # noqa: PLC0415

        stranger = str(tmp_path / "stranger.pem")
        trustme.CA().issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(stranger)
        names = ("-servername", "localhost", "-cert2", identity.certificate, "-key2", identity.certificate)
        async with s_server(Identity(stranger, stranger), *names, "-rev") as (_, port):
            connection = await connect(identity, port)
            assert connection.transport.get_extra_info("peercert")["subjectAltName"] == (("DNS", "localhost"),)
            connection.transport.abort()

    @pytest.mark.asyncio
    async def test_we_do_not_trust_it(self, identity: Identity) -> None:
        async with s_server(identity, "-rev") as (_, port):
            with pytest.raises(ssl.SSLCertVerificationError):
                await connect(identity, port, ssl=ssl.create_default_context())

    @VERSION
    @pytest.mark.asyncio
    async def test_lines_there_and_back(self, identity: Identity, version: str) -> None:
        lines = [b"%d" % number * 100 for number in range(10, 100)]
        expected = b"".join(line[::-1] + b"\n" for line in lines)
        async with s_server(identity, "-rev", option(version)) as (_, port):
            connection = await connect(identity, port)
            for line in lines:
                connection.transport.write(line + b"\n")
            await connection.until(len(expected))
            assert connection.received == expected
            connection.transport.close()
            assert await connection.lost is None

    @pytest.mark.asyncio
    async def test_much_is_received(self, identity: Identity) -> None:
        data = b"x" * MUCH  # no letter that is a command to s_server
        async with s_server(identity, "-naccept", "1") as (server, port):
            connection = await connect(identity, port)
            assert server.stdin is not None
            server.stdin.write(data)
            await connection.until(len(data))
            assert connection.received == data
            connection.transport.close()
            assert await connection.lost is None


class Holding:
    """Stands between a client and a server, and can hold what the client says until it has said all."""

    def __init__(self, port: int) -> None:
        self.server_port = port
        self.hold = False
        self.held = bytearray()
        self.news = asyncio.Event()
        self.all = asyncio.Event()

    async def __aenter__(self) -> Holding:
        self.server = await asyncio.start_server(self.relay, "127.0.0.1", 0)
        self.port = self.server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self.server.close()
        self.towards.close()
        self.back.cancel()

    async def relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        answers, self.towards = await asyncio.open_connection("127.0.0.1", self.server_port)

        async def answer() -> None:
            while data := await answers.read(CHUNK):
                writer.write(data)
            writer.close()

        self.back = asyncio.ensure_future(answer())
        while data := await reader.read(CHUNK):
            if self.hold:
                self.held += data
                self.news.set()
            else:
                self.towards.write(data)
        self.all.set()

    async def more(self) -> None:
        await self.news.wait()
        self.news.clear()

    async def go_on(self) -> None:
        await self.all.wait()
        self.towards.write(bytes(self.held))
        self.towards.write_eof()


async def converse(process: asyncio.subprocess.Process, connection: Recorder, commands: str, done: bytes = b"") -> None:
    """They do what each letter says, tell that it is done, unless they look at their input first, and both ends say
    something.
    """
    assert process.stdin is not None
    assert process.stdout is not None
    for command in commands:
        process.stdin.write(command.encode() + b"\n")
        if done:
            await process.stdout.readuntil(done)
        answer = b"<after %b>" % command.encode()
        connection.transport.write(answer)
        await process.stdout.readuntil(answer)
        process.stdin.write(b"a line\n")
        await connection.until(len(connection.received) + 7)
    assert connection.received == b"a line\n" * len(commands)
    connection.transport.abort()


class TestWhatIsAgreedAnew:
    """In the midst of a connection: keys (K asks for an answer, k does not), and handshakes (r, and R with a
    certificate asked for).
    """

    @pytest.mark.asyncio
    async def test_keys_of_their_client(self, identity: Identity) -> None:
        async with listening(identity.server()) as (port, connections):
            address = ("-connect", f"127.0.0.1:{port}", "-servername", "localhost")
            async with openssl("s_client", *address, stderr=asyncio.subprocess.STDOUT) as client:
                await converse(client, await connections.get(), "KkKK", b"KEYUPDATE\n")

    @pytest.mark.asyncio
    async def test_keys_between_two_lines_in_one_segment(self, identity: Identity) -> None:
        async with listening(identity.server()) as (port, connections), Holding(port) as relay:
            address = ("-connect", f"127.0.0.1:{relay.port}", "-servername", "localhost")
            async with openssl("s_client", *address, stderr=asyncio.subprocess.STDOUT) as client:
                assert client.stdin is not None
                assert client.stdout is not None
                connection = await connections.get()
                connection.transport.write(b"<shaken>")
                await client.stdout.readuntil(b"<shaken>")
                relay.hold = True
                for command in (b"one\n", b"K\n", b"two\n", b"k\n", b"Q\n"):  # Q: a close_notify
                    client.stdin.write(command)
                    await relay.more()  # else it takes the next command for a part of the line
                await relay.go_on()
                assert await connection.lost is None
                assert connection.received == b"one\ntwo\n"

    @pytest.mark.asyncio
    async def test_keys_of_their_server(self, identity: Identity) -> None:
        async with s_server(identity) as (server, port):
            await converse(server, await connect(identity, port), "KkKK")

    @pytest.mark.asyncio
    async def test_handshakes_of_their_server(self, identity: Identity) -> None:
        async with s_server(identity, "-tls1_2") as (server, port):
            await converse(server, await connect(identity, port), "rRr", b"SSL_do_handshake -> 1\n")


class TestThoseWhoFallSilent:
    """The process at the other end is stopped: its system still takes what comes, and nobody answers."""

    @pytest.mark.asyncio
    async def test_in_our_clients_handshake(self, identity: Identity) -> None:
        async with s_server(identity, "-rev") as (server, port):
            server.send_signal(signal.SIGSTOP)
            with pytest.raises(ConnectionAbortedError, match="SSL handshake is taking longer"):
                await connect(identity, port, ssl_handshake_timeout=0.1)

    @pytest.mark.asyncio
    async def test_in_our_servers_handshake(self, identity: Identity) -> None:
        """Whoever connects and says nothing is left, and nobody hears of him."""
        async with listening(identity.server(), ssl_handshake_timeout=0.1) as (port, connections):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            assert await reader.read() == b""
            writer.close()
            await writer.wait_closed()
            assert connections.empty()

    @pytest.mark.asyncio
    async def test_in_our_clients_shutdown(self, identity: Identity) -> None:
        async with s_server(identity, "-rev") as (server, port):
            connection = await connect(identity, port, ssl_shutdown_timeout=0.1)
            server.send_signal(signal.SIGSTOP)
            connection.transport.close()
            assert isinstance(await connection.lost, TimeoutError)

    @pytest.mark.asyncio
    async def test_in_our_servers_shutdown(self, identity: Identity) -> None:
        async with (
            listening(identity.server(), ssl_shutdown_timeout=0.1) as (port, connections),
            s_client(identity, port) as client,
        ):
            connection = await connections.get()
            client.send_signal(signal.SIGSTOP)
            connection.transport.close()
            assert isinstance(await connection.lost, TimeoutError)
