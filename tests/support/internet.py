#!/usr/bin/env python3
"""An Internet of one's own: run in an empty network namespace, whose every address it makes its own, and listens at.

usage: internet.py NAMES

NAMES is what its name server at port 53 answers: an object from a name to `records`, each with an owner, a type, seconds to live
and data in hexadecimal digits, and, where the answer is to another question, that `question`. Other names do not exist.

The first line printed is `ready`. Each line on standard input is answered by what was heard up to then, as a JSON array: `tcp
ADDRESS:PORT` for a connection, and `end ADDRESS:PORT BYTES` when its caller has said all; `udp ADDRESS:PORT` for a datagram, and
`name NAME TYPE` for a question. What is said is sent back. Callers at port 4 are connected, and that is all;
those at port 5 are sent zeroes without an end; `poured BYTES`, as the last of all, is how many all of them took.
"""
import ipaddress
import json
import selectors
import signal
import socket
import struct
import subprocess
import sys

# In linux/in6.h; Python has no name for it.
IPV6_FREEBIND = 78

SILENT = 4
ENDLESS = 5
STREAMS = [9, 80, 443, 853, 5355, 8080]
DATAGRAMS = [53, 80, 137, 443, 853, 5353, 5355, 8080]

names = json.loads(sys.argv[1])
heard = []
poured = 0
selector = selectors.DefaultSelector()


def shown(address, port):
    address = ipaddress.ip_address(address)
    address = getattr(address, "ipv4_mapped", None) or address
    return f"{address}:{port}" if address.version == 4 else f"[{address}]:{port}"


def encoded(name):
    return b"".join(bytes([len(label)]) + label.encode() for label in name.split(".")) + b"\0"


def question(message):
    labels, at = [], 12
    while message[at]:
        labels.append(message[at + 1 : at + 1 + message[at]].decode("latin-1"))
        at += 1 + message[at]
    return ".".join(labels).lower(), struct.unpack(">H", message[at + 1 : at + 3])[0], at + 5


def resolve(message):
    name, kind, end = question(message)
    heard.append(f"name {name} {kind}")
    known = names.get(name)
    records = [record for record in (known or {}).get("records", []) if record[1] in (kind, 5)]
    asked = message[12:end]
    if known and "question" in known:
        asked = encoded(known["question"]) + message[end - 4 : end]
    flags = 0x8180 if known else 0x8183
    answer = message[:2] + struct.pack(">5H", flags, 1, len(records), 0, 0) + asked
    for owner, kind, life, data in records:
        data = bytes.fromhex(data)
        answer += encoded(owner) + struct.pack(">HHIH", kind, 1, life, len(data)) + data
    return answer


def accept(listener):
    try:
        stream, _ = listener.accept()
        place = shown(*stream.getsockname()[:2])
    except OSError:
        # There are no descriptors left, or the caller is gone.
        return
    heard.append(f"tcp {place}")
    said = bytearray()

    def take(stream):
        try:
            some = stream.recv(65536)
        except OSError:
            some = b""
        said.extend(some)
        if not some:
            heard.append(f"end {place} {len(said)}")
            selector.unregister(stream)
            try:
                stream.sendall(said)
            except OSError:
                pass
            stream.close()

    selector.register(stream, selectors.EVENT_READ, take)


def pour(listener):
    stream, _ = listener.accept()
    stream.setblocking(False)

    def give(stream):
        global poured
        try:
            poured += stream.send(bytes(65536))
        except BlockingIOError:
            pass
        except OSError:
            selector.unregister(stream)
            stream.close()

    selector.register(stream, selectors.EVENT_WRITE, give)


def receive(listener):
    message, ancillary, _, peer = listener.recvmsg(65536, 1024)
    for _, kind, data in ancillary:
        if kind == socket.IPV6_PKTINFO:
            place = socket.inet_ntop(socket.AF_INET6, data[:16])
    port = listener.getsockname()[1]
    if port == 53:
        message = resolve(message)
    else:
        heard.append(f"udp {shown(place, port)}")
    # From the address that it was sent to.
    listener.sendmsg([message], [(socket.IPPROTO_IPV6, socket.IPV6_PKTINFO, data[:16] + bytes(4))], 0, peer)


def listen(kind, port, take):
    listener = socket.socket(socket.AF_INET6, kind)
    listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    if kind == socket.SOCK_DGRAM:
        listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
        # Answers leave from addresses that no interface has.
        listener.setsockopt(socket.IPPROTO_IPV6, IPV6_FREEBIND, 1)
    listener.bind(("::", port))
    if kind == socket.SOCK_STREAM:
        listener.listen(4096)
    if take:
        selector.register(listener, selectors.EVENT_READ, take)
    return listener


def serve(events):
    for key, _ in events:
        if key.data:
            key.data(key.fileobj)


def remove_routes(*_):
    """Nothing is reachable any more. Only this process may change the routes of the namespace."""
    for family in ("-4", "-6"):
        subprocess.run(["ip", family, "route", "del", "local", "default", "dev", "lo"], check=True)
    print("removed", flush=True)


def main():
    for words in ["link set lo up", "-4 route add local default dev lo", "-6 route add local default dev lo"]:
        subprocess.run(["ip", *words.split()], check=True)
    silent = listen(socket.SOCK_STREAM, SILENT, None)
    listen(socket.SOCK_STREAM, ENDLESS, pour)
    for port in STREAMS:
        listen(socket.SOCK_STREAM, port, accept)
    for port in DATAGRAMS:
        listen(socket.SOCK_DGRAM, port, receive)
    selector.register(sys.stdin, selectors.EVENT_READ, None)
    signal.signal(signal.SIGUSR1, remove_routes)
    print("ready", flush=True)
    while True:
        events = selector.select()
        serve(events)
        if any(key.fileobj is sys.stdin for key, _ in events):
            if not sys.stdin.buffer.raw.read(1):
                silent.close()
                return
            # What has come before the question.
            while others := [event for event in selector.select(0) if event[0].data]:
                serve(others)
            print(json.dumps(heard + [f"poured {poured}"] * (poured > 0)), flush=True)


main()
