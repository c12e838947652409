"""Transports of our own: from the notification to the protocol without a detour."""

from notifyloop.transports.base import SocketTransport, Writer
from notifyloop.transports.datagram import DatagramTransport
from notifyloop.transports.stream import StreamTransport
from notifyloop.transports.tls import TLSProtocol

__all__ = ["DatagramTransport", "SocketTransport", "StreamTransport", "TLSProtocol", "Writer"]
