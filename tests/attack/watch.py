"""Writes down which marked packets arrive where: one line of JSON each, on standard output. To SIGUSR1 it
answers with a line when it has written down everything that had arrived by then.

watch.py '{"packets": [...], "raw": "node", "tcp": [22], "udp": [53], "connects": "service"}'

packets   what passes interfaces, before any filter of a host that receives, and after those of one that sends:
          {"interface": "tun0", "way": "in", "place": "device", "destinations": {"10.0.0.2": "another place"}}
raw       what the host's own stack takes, after all filters: raw sockets of each protocol, under the name of this place
groups    interfaces of which the host listens to the groups below, as one does on which such services run
tcp, udp  ports to listen at on all addresses: something that answers whoever asks
"""

import errno
import ipaddress
import json
import selectors
import signal
import socket
import struct
import sys
import time

from mark import acknowledged, marked, scanned

ETH_P_ALL = 3
PACKET_OUTGOING = 4
SO_RCVBUFFORCE = 33
BUFFER_BYTES = 256 * 1024 * 1024
PACKET_BYTES_MAX = 65_536

PROTOCOLS_4 = [1, 2, 4, 6, 17, 41, 47, 50, 51, 89, 112, 115, 132, 136]
PROTOCOLS_6 = [4, 6, 17, 41, 43, 44, 47, 50, 51, 58, 59, 60, 89, 112, 132, 136]


GROUPS_4 = ["224.0.0.2", "224.0.0.251", "239.255.255.250", "233.252.0.1"]
GROUPS_6 = ["ff02::fb", "ff02::1:2", "ff0e::1"]


def main():
    told = json.loads(sys.argv[1])
    watch = Watch()
    for rule in told.get("packets", []):
        watch.packets(rule)
    if place := told.get("raw"):
        watch.raw(place)
    for interface in told.get("groups", []):
        watch.join(socket.if_nametoindex(interface))
    for port in told.get("tcp", []):
        watch.listen(port)
    for port in told.get("udp", []):
        watch.answer(port)
    watch.run()


def say(**line):
    line["t"] = time.time_ns()
    sys.stdout.write(json.dumps(line) + "\n")


class Watch:
    def __init__(self):
        self.selector = selectors.DefaultSelector()
        # (place, kind) → ports of which packets, or answers, were seen.
        self.scans = {}
        self.members = []
        # How many questions there were since the last answer.
        self.asked = 0

    def packets(self, rule):
        link = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, 0)
        link.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, BUFFER_BYTES)
        link.bind((rule["interface"], ETH_P_ALL))
        link.setblocking(False)
        is_out = rule["way"] == "out"
        others = {ipaddress.ip_address(a).packed: place for a, place in rule.get("destinations", {}).items()}

        def receive():
            packet, address = link.recvfrom(PACKET_BYTES_MAX)
            if (address[2] == PACKET_OUTGOING) == is_out:
                place = others.get(destination(packet), rule["place"]) if others else rule["place"]
                self.seen(place, packet)

        self.selector.register(link, selectors.EVENT_READ, receive)

    def raw(self, place):
        for family, protocols in ((socket.AF_INET, PROTOCOLS_4), (socket.AF_INET6, PROTOCOLS_6)):
            for protocol in protocols:
                link = socket.socket(family, socket.SOCK_RAW, protocol)
                link.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, BUFFER_BYTES)
                link.setblocking(False)

                def receive(link=link):
                    self.seen(place, link.recv(PACKET_BYTES_MAX))

                self.selector.register(link, selectors.EVENT_READ, receive)

    def join(self, index):
        members = socket.socket(socket.AF_INET, socket.SOCK_DGRAM), socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
        for group in GROUPS_4:
            member = struct.pack("=4s4si", socket.inet_pton(socket.AF_INET, group), bytes(4), index)
            members[0].setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, member)
        for group in GROUPS_6:
            member = socket.inet_pton(socket.AF_INET6, group) + struct.pack("=i", index)
            members[1].setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, member)
        # Who closes them leaves.
        self.members.extend(members)

    def listen(self, port):
        listener = socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=1024)
        listener.setblocking(False)

        def accept():
            stream, _ = listener.accept()
            stream.setblocking(False)

            def receive():
                data = stream.recv(PACKET_BYTES_MAX)
                if data:
                    stream.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(data) + data)
                else:
                    raise ConnectionResetError

            self.selector.register(stream, selectors.EVENT_READ, receive)

        self.selector.register(listener, selectors.EVENT_READ, accept)

    def answer(self, port):
        for family in (socket.AF_INET, socket.AF_INET6):
            link = socket.socket(family, socket.SOCK_DGRAM)
            if family == socket.AF_INET6:
                link.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            link.bind(("", port))
            link.setblocking(False)

            def receive(link=link):
                data, sender = link.recvfrom(PACKET_BYTES_MAX)
                link.sendto(data, sender)

            self.selector.register(link, selectors.EVENT_READ, receive)

    def seen(self, place, packet):
        found = marked(packet)
        if found is not None:
            return say(place=place, case=found[0], count=found[1])
        scan = scanned(packet)
        if scan is not None:
            return self.scan(place, *scan)
        answer = acknowledged(packet)
        if answer is None:
            return None
        if answer[0] == "case":
            return say(place=place, case=answer[1], count=answer[2])
        return self.scan(place, *answer)

    def scan(self, place, kind, port):
        self.scans.setdefault((place, kind), set()).add(port)

    def run(self):
        questions, wakes = socket.socketpair()
        for end in (questions, wakes):
            end.setblocking(False)
        signal.signal(signal.SIGUSR1, lambda *_: None)
        signal.set_wakeup_fd(wakes.fileno())
        self.selector.register(questions, selectors.EVENT_READ, lambda: self.ask(questions))
        say(ready=True)
        sys.stdout.flush()
        while True:
            for key, _ in self.selector.select():
                self.drain(key)
            if self.asked and not self.selector.select(0):
                self.answer_all()
            sys.stdout.flush()

    def ask(self, questions):
        self.asked += len(questions.recv(PACKET_BYTES_MAX))

    def answer_all(self):
        for (place, kind), ports in self.scans.items():
            say(place=place, scan=kind, ports=ranges(ports))
        self.scans, self.asked = {}, 0
        say(answer=True)

    def drain(self, key):
        # As many as there are, but others have their turn.
        for _ in range(1000):
            try:
                key.data()
            except BlockingIOError:
                return
            except ConnectionError:
                if isinstance(key.fileobj, socket.socket) and key.fileobj.type == socket.SOCK_STREAM:
                    self.selector.unregister(key.fileobj)
                    key.fileobj.close()
                    return
            except OSError as error:
                # An interface that goes down or away; a datagram that could not be answered.
                if error.errno == errno.ENETDOWN:
                    continue
                if error.errno not in (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EPERM, errno.EINVAL, errno.EACCES):
                    raise


def ranges(numbers):
    """Numbers as pairs of the first and the last of each row of them."""
    rows = []
    for number in sorted(numbers):
        if rows and rows[-1][1] == number - 1:
            rows[-1][1] = number
        else:
            rows.append([number, number])
    return rows


def destination(packet):
    version = packet[0] >> 4 if packet else 0
    return packet[16:20] if version == 4 else packet[24:40] if version == 6 else b""


if __name__ == "__main__":
    main()
