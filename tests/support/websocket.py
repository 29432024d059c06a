#!/usr/bin/env python3
"""A WebSocket server (RFC 6455) for one client: gives back each message, and prints its kind and length until the client closes.

usage: websocket.py

The first line is the port at 127.0.0.1.
"""
import base64
import hashlib
import socket
import struct

GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10


def shake_hands(stream):
    headers = {}
    stream.readline()
    while line := stream.readline().strip():
        name, _, value = line.partition(b":")
        headers[name.lower()] = value.strip()
    accept = base64.b64encode(hashlib.sha1(headers[b"sec-websocket-key"] + GUID).digest())
    stream.write(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n")
    stream.write(b"Sec-WebSocket-Accept: " + accept + b"\r\n\r\n")
    stream.flush()


def frame(stream):
    first, length = stream.read(2)
    assert length & 0x80, "a client masks its frames"
    length &= 0x7F
    if length == 126:
        (length,) = struct.unpack(">H", stream.read(2))
    elif length == 127:
        (length,) = struct.unpack(">Q", stream.read(8))
    mask = stream.read(4)
    payload = bytes(byte ^ mask[place % 4] for place, byte in enumerate(stream.read(length)))
    return first & 15, payload


def send(stream, kind, payload):
    length = len(payload)
    if length < 126:
        head = struct.pack(">BB", 0x80 | kind, length)
    elif length < 65536:
        head = struct.pack(">BBH", 0x80 | kind, 126, length)
    else:
        head = struct.pack(">BBQ", 0x80 | kind, 127, length)
    stream.write(head + payload)
    stream.flush()


listener = socket.create_server(("127.0.0.1", 0))
print(listener.getsockname()[1], flush=True)
connection, _ = listener.accept()
with connection.makefile("rwb") as stream:
    shake_hands(stream)
    kind = None
    while kind != CLOSE:
        kind, payload = frame(stream)
        print(kind, len(payload), flush=True)
        send(stream, PONG if kind == PING else kind, payload)
