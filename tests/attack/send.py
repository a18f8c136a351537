"""Sends what case.py describes.

send.py WORLD list
    every case, as one JSON array
send.py WORLD cases THROUGH [KIND...]
    each case of these kinds (Case.frees; without, all), twice; THROUGH is an interface, INTERFACE/MAC of the next hop on
    Ethernet, or queue:INTERFACE
send.py WORLD scan THROUGH PROTOCOL PLACE FAMILY KIND
    a packet to each port of an address: tcp, udp, or ack, as of a connection from the world's source port; KIND is a letter that tells
    its marks from others'
send.py WORLD stream THROUGH RATE COUNT PATTERN
    packets of the cases whose names match, one after the other, so many a second, until its standard input ends; COUNT is in
    their marks
send.py WORLD talk
    what takes a conversation: asks proxies for the way out, over connections of the system

WORLD is a file of JSON: who has which addresses.
"""

import fcntl
import json
import re
import select
import socket
import struct
import sys
import time

from mark import SOURCE_PORT, mark, scan_mark, scan_sequence

ROUNDS = 2


def main():
    with open(sys.argv[1], encoding="utf-8") as file:
        world = {key: by_family(value) for key, value in json.load(file).items()}
    verb, rest = sys.argv[2], sys.argv[3:]
    VERBS[verb](world, *rest)


def by_family(value):
    is_pair = isinstance(value, dict) and set(value) == {"4", "6"}
    return {4: value["4"], 6: value["6"]} if is_pair else value


class Interface:
    """Sends through an interface of this namespace, past its system."""

    SOL_PACKET, QDISC_BYPASS = 263, 20

    def __init__(self, name):
        self.name, _, hop = name.partition("/")
        # Of what goes to which machine on the cable; a tunnel has no such thing.
        self.hop = (0, 0, bytes.fromhex(hop.replace(":", ""))) if hop else ()
        self.link = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM if hop else socket.SOCK_RAW, 0)
        # What has no room is refused then, not lost.
        self.link.setsockopt(self.SOL_PACKET, self.QDISC_BYPASS, 1)

    def send(self, packet):
        protocol = 0x0800 if packet[0] >> 4 == 4 else 0x86DD
        while True:
            try:
                return self.link.sendto(packet, (self.name, protocol, *self.hop))
            except OSError as error:
                if error.errno not in (105, 11):
                    raise
                time.sleep(0.0005)


class Queue:
    """Writes into a TUN interface that another process reads, as if that process had: one queue more of it."""

    TUNSETIFF, TUNSETQUEUE, TUNGETVNETHDRSZ = 0x400454CA, 0x400454D9, 0x800454D7
    TUN, MULTI_QUEUE, NO_PI, VNET_HDR, DETACH_QUEUE = 0x0001, 0x0100, 0x1000, 0x4000, 0x0400

    def __init__(self, name):
        flags = self.TUN | self.NO_PI | self.MULTI_QUEUE
        # All queues are of the kind of the last.
        offloads = name.endswith("+")
        name = name.removesuffix("+")
        if offloads:
            flags |= self.VNET_HDR
        self.file = open("/dev/net/tun", "r+b", buffering=0)
        fcntl.ioctl(self.file, self.TUNSETIFF, struct.pack("16sH22x", name.encode(), flags))
        length = struct.unpack("i", fcntl.ioctl(self.file, self.TUNGETVNETHDRSZ, bytes(4)))[0]
        self.header = bytes(length if offloads else 0)
        # The kernel sends nothing through it: that all belongs to the other process.
        fcntl.ioctl(self.file, self.TUNSETQUEUE, struct.pack("16sH22x", name.encode(), self.DETACH_QUEUE))

    def send(self, packet):
        try:
            self.file.write(self.header + packet)
        except OSError as error:
            # What the kernel takes for no packet at all.
            if error.errno != 22:
                raise


def through(name):
    return Queue(name.removeprefix("queue:")) if name.startswith("queue:") else Interface(name)


def table(world):
    # scapy takes its time to start: only who needs it waits.
    from case import Table

    return Table(world)


def list_cases(world):
    cases = table(world).cases
    print(json.dumps([{key: value for key, value in vars(case).items() if key != "build"} for case in cases]))


def send_cases(world, name, *kinds):
    made = table(world)
    chosen = [number for number, case in enumerate(made.cases) if not kinds or case.frees in kinds]
    packets = [made.packets(number, count) for count in range(ROUNDS) for number in chosen]
    link = through(name)
    for parts in packets:
        for packet in parts:
            link.send(packet)
    print(len(chosen), sum(len(parts) for parts in packets))


def scan(world, name, protocol, place, family, kind):
    family = int(family)
    link = through(name)
    source_port = world.get("source_port", SOURCE_PORT)
    for packet in scan_packets(protocol, world["own"][family], world[place][family], family, kind, source_port):
        link.send(packet)


def scan_packets(protocol, source, destination, family, kind, source_port):
    """Made by hand: scapy would take a minute for as many."""
    which = socket.AF_INET if family == 4 else socket.AF_INET6
    source, destination = socket.inet_pton(which, source), socket.inet_pton(which, destination)
    number, header_length = (17, 8) if protocol == "udp" else (6, 20)
    length = header_length + 8
    if family == 4:
        head = bytearray(struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + length, 0, 0, 64, number, 0, source, destination))
        head[10:12] = struct.pack("!H", ~folded(words(head)) & 0xFFFF)
    else:
        head = struct.pack("!IHBB16s16s", 6 << 28, length, number, 64, source, destination)
    head = bytes(head)
    pseudo = words(source) + words(destination) + number + length
    for port in range(1, 65_536):
        text = scan_mark(kind, port)
        if protocol == "udp":
            body = struct.pack("!HHHH", source_port, port, length, 0) + text
            at = 6
        else:
            sequence = scan_sequence(kind, port)
            acknowledged, flags = (sequence, 0x10) if protocol == "ack" else (0, 0x02)
            body = struct.pack("!HHIIBBHHH", source_port, port, sequence, acknowledged, 0x50, flags, 65_535, 0, 0) + text
            at = 16
        check = ~folded(pseudo + words(body)) & 0xFFFF or 0xFFFF
        yield head + body[:at] + struct.pack("!H", check) + body[at + 2 :]


def words(data):
    return sum(struct.unpack(f"!{len(data) // 2}H", data))


def folded(total):
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def stream(world, name, rate, count_of_marks, pattern):
    made = table(world)
    numbers = [number for number, case in enumerate(made.cases) if re.fullmatch(pattern, case.name)]
    packets = [packet for number in numbers for packet in made.packets(number, int(count_of_marks))]
    link, interval = through(name), 1 / float(rate)
    due, count = time.monotonic(), 0
    while not select.select([sys.stdin], [], [], max(0, due - time.monotonic()))[0]:
        try:
            link.send(packets[count % len(packets)])
            count += 1
        except OSError as error:
            # The interface has gone, or is down.
            if error.errno not in (5, 19, 6, 77, 100):
                raise
        due += interval


def talk(world):
    """Asks whatever listens at the gateway to fetch something from the Internet."""
    internet = world["internet"][4]
    print(json.dumps([ask(world, *question, internet) for question in questions(world)]))


def questions(world):
    for port in (world["proxy_port"], world["link_port"]):
        for method in ("connect", "get"):
            yield f"{method}/{port}", port, method


def ask(world, name, port, method, internet):
    text = mark(36**3 - 1).decode()
    get = f"GET http://{internet}/{text} HTTP/1.1\r\nHost: {internet}\r\nConnection: close\r\n\r\n"
    try:
        with socket.create_connection((world["gateway"][4], port), timeout=2) as stream:
            stream.settimeout(2)
            if method == "get":
                stream.sendall(get.encode())
                return {"name": name, "said": status(stream)}
            stream.sendall(f"CONNECT {internet}:443 HTTP/1.1\r\nHost: {internet}:443\r\n\r\n".encode())
            said = status(stream)
            stream.sendall(get.encode())
            stream.recv(4096)
            return {"name": name, "said": said}
    except OSError as error:
        return {"name": name, "said": type(error).__name__}


def status(stream):
    return stream.recv(4096).split(b"\r\n")[0].decode(errors="replace")[:80]


VERBS = {"list": list_cases, "cases": send_cases, "scan": scan, "stream": stream, "talk": talk}

if __name__ == "__main__":
    main()
