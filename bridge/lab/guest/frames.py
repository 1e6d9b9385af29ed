"""Frames: what host and guest say to each other over a virtio-serial port.

A frame is a line: a verb, then fields in base64, separated by one space.

    host to guest                           guest to host
    HELLO nonce time_ns                     HELLO nonce release uptime_s key
    EXEC argv env cwd terminal              STDOUT data | STDERR data
    STDIN data | EOF                        TAKEN size_bytes
    SIGNAL number | WINCH rows cols         EXIT status     (negative: a signal)
    PUT path mode, DATA..., END             OK | FAIL message
    GET path                                DATA..., OK | FAIL message
    TREE directory                          HAVE manifest | FAIL message
      then FILE path meta | LINK path target meta, DATA..., GONE path, END
                                            OK | FAIL message

A HELLO ends whatever the port did before; the host opens with an empty line and
drops what it reads until its nonce comes back, so a client killed in the middle
of a frame harms nobody. Standard input is not sent faster than the command reads
it (TAKEN), so that the guest always reads its port and a signal is never stuck
behind data.
"""

import binascii
import os

CHUNK = 32768  # bytes of payload in one frame
WINDOW = 262144  # bytes of standard input under way to a command at most
LINE_LIMIT = 1 << 20  # a longer line is no frame


def encode(verb: str, *fields: bytes) -> bytes:
    """Return one frame."""
    parts = [verb.encode(), *(binascii.b2a_base64(field, newline=False) for field in fields)]
    return b" ".join(parts) + b"\n"


def decode(line: bytes) -> tuple[str, list[bytes]]:
    """Return verb and fields of one frame without its newline; raises ValueError."""
    verb, *fields = line.split(b" ")
    return verb.decode("ascii"), [binascii.a2b_base64(field) for field in fields]


def pack(items: list[str]) -> bytes:
    """Return strings as one field."""
    return b"".join(os.fsencode(item) + b"\0" for item in items)


def unpack(field: bytes) -> list[str]:
    """Return the strings that ``pack`` made one field."""
    return [os.fsdecode(item) for item in field.split(b"\0")[:-1]]


class Lines:
    """Cuts a byte stream into lines; overlong ones are dropped."""

    def __init__(self) -> None:
        self._rest = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """Return the lines that ``data`` completes."""
        self._rest += data
        if b"\n" not in data:
            if len(self._rest) > LINE_LIMIT:
                self._rest = bytearray()
            return []
        *lines, rest = bytes(self._rest).split(b"\n")
        self._rest = bytearray(rest)
        return lines
