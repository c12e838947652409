"""What a peer goes on sending over TLS when OpenSSL does not read it any more, because it has read a record that came
after our goodbye: only where records begin and end can be told.
"""

from __future__ import annotations

__all__ = ["Undeciphered"]

HEAD = 5  # bytes of each record that anybody can read: its kind, the version, and how much follows
ALERT = 21  # the kind, before TLS 1.3, which hides it
LARGEST_GOODBYE = 2 + 1 + 16  # bytes of TLS 1.3: the alert, its kind, and a code that tells whether it is intact


class Undeciphered:
    """The stream from the beginning of a record."""

    __slots__ = ("_rest",)

    def __init__(self) -> None:
        self._rest = b""

    def ends_with_goodbye(self, data: bytes) -> bool:
        """Whether the last that has come can be a close_notify: as short as one, and nothing behind it."""
        stream = self._rest + data
        begin, can_be = 0, False
        while len(stream) - begin >= HEAD:
            size = int.from_bytes(stream[begin + 3 : begin + HEAD], "big")
            if len(stream) - begin < HEAD + size:
                break
            can_be = stream[begin] == ALERT or size <= LARGEST_GOODBYE
            begin += HEAD + size
        self._rest = stream[begin:]
        return can_be and not self._rest
