"""Frames and messages of the wire protocol msb-wire(5), and its limits."""

from __future__ import annotations

import json
import os
import struct
from dataclasses import dataclass
from typing import Any, Union

from .tool import Json

VERSION = 1
"""Version of the protocol."""
FRAME_BYTES_MAX = 65536
"""Longest payload of a frame."""
DATA_BYTES = 65524
"""Payload of a data frame that this client sends."""
MESSAGE_BYTES_MAX = 4 << 20
"""Longest message."""
WINDOW = 262144
"""Bytes that a sender may have unacknowledged on each channel."""
CREDIT_BYTES = 131048
"""Consumed bytes after which a receiver grants credit."""
STREAMS_MAX = 64
"""Open calls of a connection."""
INCOMPLETE_MAX = 64
"""Messages of a connection that may be incomplete at a time."""
HELLO_SECONDS = 10.0
"""Time for the handshake."""
ADDRESS_BYTES_MAX = 107
"""Longest path of a socket."""

HELLO, OPEN, DATA, CREDIT, CONTROL, EVENT, CLOSE = range(1, 8)
STDIN, STDOUT, STDERR = 0, 1, 2
MORE, END = 1, 2

HEADER = struct.Struct(">IIBBH")
U32 = struct.Struct(">I")


@dataclass(frozen=True)
class Data:
    """Bytes of a channel. An empty one with `end` closes the channel."""

    channel: int
    bytes: bytes
    end: bool


@dataclass(frozen=True)
class Event:
    """A message about a call. The last one ends it."""

    message: Json
    last: bool


Incoming = Union[Data, Event]
"""What a call receives."""


def frame(stream: int, kind: int, payload: bytes, channel: int = 0, flags: int = 0) -> bytes:
    """Returns a frame."""
    return HEADER.pack(len(payload), stream, kind, channel, flags) + payload


def message(stream: int, kind: int, value: Json) -> bytes:
    """Returns the frames of a JSON message."""
    payload = json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
    if len(payload) > MESSAGE_BYTES_MAX:
        raise ValueError(f"the request has {len(payload)} bytes; {MESSAGE_BYTES_MAX} are allowed")
    pieces: list[bytes] = []
    at = 0
    while True:
        piece = payload[at : at + FRAME_BYTES_MAX]
        at += len(piece)
        last = at >= len(payload)
        pieces.append(frame(stream, kind, piece, flags=0 if last else MORE))
        if last:
            return b"".join(pieces)


def unix(value: Union[str, bytes, os.PathLike[str]]) -> Any:
    """Returns a Unix string as the protocol has it: text, or `{"hex": …}` if it is not UTF-8."""
    raw = os.fsencode(value)
    if b"\0" in raw:
        raise ValueError(f"{value!r} contains a NUL")
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return {"hex": raw.hex()}
