"""Every attempt, by name: what a device can put into its tunnel to get where it may not.

An attempt is made of packets, written with scapy, that are sent as they are: nothing of the sender's own system is asked.
"""

import struct

from scapy.all import raw
from scapy.layers.inet import (
    ICMP,
    IP,
    TCP,
    UDP,
    IPOption_LSRR,
    IPOption_RR,
    IPOption_Router_Alert,
    IPOption_SSRR,
    IPOption_Timestamp,
)
from scapy.layers.inet6 import (
    ICMPv6DestUnreach,
    ICMPv6EchoReply,
    ICMPv6EchoRequest,
    ICMPv6MLQuery,
    ICMPv6MLReport,
    ICMPv6ND_NA,
    ICMPv6ND_NS,
    ICMPv6ND_RA,
    ICMPv6ND_Redirect,
    ICMPv6ND_RS,
    ICMPv6NDOptPrefixInfo,
    ICMPv6NDOptDstLLAddr,
    ICMPv6NDOptRedirectedHdr,
    ICMPv6PacketTooBig,
    ICMPv6ParamProblem,
    ICMPv6TimeExceeded,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
    IPv6ExtHdrSegmentRouting,
    PadN,
    RouterAlert,
    in6_chksum,
)
from scapy.layers.dns import DNS, DNSQR
from scapy.packet import Raw

from mark import SOURCE_PORT, mark, sequence

FAMILIES = (4, 6)


class Case:
    def __init__(self, name, build, passes, frees, refused, needs_driver):
        self.name = name
        self.build = build
        # What must work: else the attempts would prove nothing.
        self.passes = passes
        # Which client of an open server can send it, for it looks at where packets are from: any, or one that the server is
        # told has networks behind it: the "outside" ones, the "gateway", or the address of the other device that has "gone".
        self.frees = frees
        # Which of the open controls ("open", the server; "kernel") shows nothing, and why that is not for want of trying.
        self.refused = refused
        # What the kernel's rules alone let through, for only the server knows which device has which of its addresses.
        self.needs_driver = needs_driver


class Table:
    """All cases in a world: who has which addresses. The number of a case is its place."""

    def __init__(self, world):
        global SOURCE_PORT
        SOURCE_PORT = world.get("source_port", SOURCE_PORT)
        self.world = world
        self.cases = []
        for group in GROUPS:
            group(self, world)

    def add(self, name, build, passes=False, frees="any", refused=None, needs_driver=False):
        """`build` makes a packet, or several, of a mark and a number that is the sequence number of TCP."""
        self.cases.append(Case(name, build, passes, frees, refused or {}, needs_driver))

    def both(self, name, build, **more):
        """The same over IPv4 and IPv6. `build` gets the family besides."""
        refused = more.pop("refused", None) or {}
        for family in FAMILIES:
            own = {key.removesuffix(f"/ipv{family}"): why for key, why in refused.items()}
            self.add(
                f"{name}/ipv{family}",
                lambda text, number, family=family: build(family, text, number),
                refused=own,
                **more,
            )

    def each(self, name, to, source=None, **more):
        """TCP, UDP and ICMP over IPv4 and IPv6, to an address of the world."""
        for what, payload in (("tcp", tcp(22)), ("udp", udp(53)), ("icmp", echo)):
            self.both(f"{name}/{what}", plain(self.world, to, payload, source), **more)

    def packets(self, number, count=0):
        made = self.cases[number].build(mark(number, count), sequence(number, count))
        return [bytes(packet) for packet in (made if isinstance(made, list) else [made])]


def ip(family, source, destination, protocol=None, **more):
    if family == 4:
        return IP(src=source, dst=destination, **({} if protocol is None else {"proto": protocol}), **more)
    return IPv6(src=source, dst=destination, **({} if protocol is None else {"nh": protocol}), **more)


def plain(world, to, payload, source=None, **more):
    def build(family, text, number):
        return ip(family, world[source or "own"][family], world[to][family], **more) / payload(family, text, number)

    return build


def tcp(port, flags="S", source_port=None):
    def payload(_, text, number):
        acknowledges = 1 if "A" in flags else 0
        header = TCP(sport=source_port or SOURCE_PORT, dport=port, seq=number, ack=acknowledges, flags=flags)
        return header / Raw(text)

    return payload


def udp(port, source_port=None):
    return lambda _, text, number: UDP(sport=source_port or SOURCE_PORT, dport=port) / Raw(text)


def echo(family, text, number):
    return (ICMP() if family == 4 else ICMPv6EchoRequest()) / Raw(text)


def echo_reply(family, text, number):
    return (ICMP(type=0) if family == 4 else ICMPv6EchoReply()) / Raw(text)


def query(_, text, number):
    question = DNSQR(qname=text.decode() + ".example.")
    return UDP(sport=SOURCE_PORT, dport=53) / DNS(id=number >> 6 & 0xFFFF, rd=1, qd=question)


def unknown(protocol):
    """A payload that no header describes."""
    return lambda _, text, number: Raw(text * 4)


def must_pass(table, world):
    table.both("allowed/ping-gateway", plain(world, "gateway", echo), passes=True)
    table.both("allowed/link-port", plain(world, "gateway", link_port(world)), passes=True)


def places(table, world):
    table.each("device/tunnel-address", "victim")
    table.each("device/site-address", "victim_site")
    table.each("node/outer-address", "outer")
    table.each("node/cable-address", "cable")
    table.each("internet", "internet")
    table.each("other-node/gateway", "other_gateway")
    table.each("other-node/device", "other_device")
    table.add(
        "internet/metadata-service/ipv4",
        lambda text, number: IP(src=world["own"][4], dst="169.254.169.254") / tcp(80)(4, text, number),
    )
    table.both("internet/ttl-1", lambda family, text, number: short_lived(family, world) / echo(family, text, number))
    table.both("internet/quic", plain(world, "internet", udp(443)))


def short_lived(family, world):
    packet = ip(family, world["own"][family], world["internet"][family])
    setattr(packet, "ttl" if family == 4 else "hlim", 1)
    return packet


def ports(table, world):
    for what, port in world["tcp_ports"].items():
        table.both(f"gateway/tcp/{what}", plain(world, "gateway", tcp(port)))
    for what, port in world["udp_ports"].items():
        table.both(f"gateway/udp/{what}", plain(world, "gateway", udp(port)))
    table.both("gateway/udp/closed", plain(world, "gateway", udp(39_999)))
    table.both("gateway/udp/link-port", plain(world, "gateway", udp(world["link_port"])))
    table.both("outer/tcp/link-port", plain(world, "outer", link_port(world)))
    table.both("outer/tcp/device-port", plain(world, "outer", tcp(world["device_port"])))
    # What slips past filters that look at beginnings, or at where answers come from.
    for what, flags in (("ack", "A"), ("syn-ack", "SA"), ("fin", "F"), ("xmas", "FPU"), ("null", ""), ("reset", "R")):
        table.both(f"gateway/tcp-{what}", plain(world, "gateway", tcp(22, flags)))
    table.both("gateway/from-link-port/tcp", plain(world, "gateway", tcp(22, source_port=world["link_port"])))
    table.both("gateway/from-link-port/udp", plain(world, "gateway", udp(53, source_port=world["link_port"])))
    table.both("gateway/from-dns", plain(world, "gateway", udp(39_998, source_port=53)))
    table.both("dns/gateway/udp", plain(world, "gateway", query))
    table.both("dns/gateway/tcp", plain(world, "gateway", tcp(53)))
    table.both("dns/outer/udp", plain(world, "outer", query))
    table.both("dns/internet/udp", plain(world, "internet", query))


OWN = "OpenVPN drops what comes from its own address"


def spoofed(table, world):
    taken = {"open": "OpenVPN drops what comes from the address of another client"}
    for what in ("gateway", "internet", "outer"):
        table.both(f"source/other-device/to-{what}", plain(world, what, udp(53), "victim"), refused=taken)
    for what, payload in (("ping", echo), ("link-port", link_port(world))):
        table.both(
            f"source/other-device/{what}", plain(world, "gateway", payload, "victim"), refused=taken, needs_driver=True
        )
    for what, payload in (("to-device", udp(53)), ("ping-device", echo)):
        table.both(
            f"source/gateway/{what}", plain(world, "victim", payload, "gateway"), frees="gateway", refused={"open/ipv4": OWN}
        )
    table.both("source/gateway/to-gateway", plain(world, "gateway", udp(53), "gateway"), refused={"open": OWN})
    for what, source in (("outer", "outer"), ("internet", "internet"), ("other-node", "other_device"), ("nobody", "nobody")):
        table.both(f"source/{what}/to-device", plain(world, "victim", udp(53), source), frees="outside")
        table.both(f"source/{what}/ping-device", plain(world, "victim", echo, source), frees="outside")
        table.both(f"source/{what}/answer-device", plain(world, "victim", tcp(40_001, "SA"), source), frees="outside")
        table.both(f"source/{what}/to-gateway", plain(world, "gateway", udp(53), source), frees="outside")
        is_device = what == "nobody"
        for name, payload in (("ping", echo), ("link-port", link_port(world))):
            build = plain(world, "gateway", payload, source)
            table.both(f"source/{what}/{name}", build, frees="outside", needs_driver=is_device)
    for to in ("victim", "gateway"):
        table.add(
            f"source/loopback/to-{to}/ipv4",
            lambda text, number, to=to: IP(src="127.0.0.1", dst=world[to][4]) / udp(53)(4, text, number),
            frees="outside",
        )
    table.add(
        "source/unspecified/to-broadcast/ipv4",
        lambda text, number: IP(src="0.0.0.0", dst="255.255.255.255") / udp(67, 68)(4, text, number),
        frees="outside",
        refused={"open": "OpenVPN drops what comes from no address"},
    )
    for what, source, refused in (
        ("loopback", "::1", {"kernel": "Linux takes nothing from such an address"}),
        ("multicast", "ff02::1", {"kernel": "Linux takes nothing from such an address"}),
        ("unspecified", "::", {"open": "OpenVPN drops what comes from no address"}),
    ):
        table.add(
            f"source/{what}/to-device/ipv6",
            lambda text, number, source=source: IPv6(src=source, dst=world["victim"][6]) / udp(53)(6, text, number),
            frees="outside",
            refused=refused,
        )
    table.add(
        "source/unspecified/to-gateway/ipv6",
        lambda text, number: IPv6(src="::", dst=world["gateway"][6]) / udp(53)(6, text, number),
        frees="outside",
        refused={"open": "OpenVPN drops what comes from no address"},
    )


def link_port(world):
    return tcp(world["link_port"])


def gone(table, world):
    """After the other device has disconnected: its address belongs to nobody, and not to who takes it."""
    table.both("take-over/to-gateway", plain(world, "gateway", udp(53), "victim"), frees="gone")
    for what, payload in (("ping", echo), ("link-port", link_port(world))):
        table.both(f"take-over/{what}", plain(world, "gateway", payload, "victim"), frees="gone", needs_driver=True)
    table.both("take-over/to-internet", plain(world, "internet", udp(53), "victim"), frees="gone")


def link_local(table, world):
    """Addresses that are valid on one link: which a tunnel between two would be."""
    table.both("link-local/to-device/udp", plain(world, "victim_link", udp(53)))
    table.both("link-local/to-device/icmp", plain(world, "victim_link", echo))
    table.both("link-local/to-node/tcp", plain(world, "node_link", tcp(22)))
    table.both("link-local/to-node/udp", plain(world, "node_link", udp(53)))
    table.both("link-local/to-node/icmp", plain(world, "node_link", echo))
    table.both("link-local/to-node/link-port", plain(world, "node_link", link_port(world)))
    table.both("link-local/from/to-device", plain(world, "victim", udp(53), "own_link"), frees="outside")


def bits(family, world, to, protocol, payload, cuts, identification, source="own"):
    """A packet in fragments. `cuts`: where each begins and ends in the payload, in units of eight bytes; None: at its end."""
    packets = []
    for begin, end in cuts:
        part = payload[begin * 8 : None if end is None else end * 8]
        is_last = end is None or end * 8 >= len(payload)
        if family == 4:
            header = IP(
                src=world[source][4],
                dst=world[to][4],
                id=identification,
                frag=begin,
                flags=0 if is_last else "MF",
                proto=protocol,
            )
        else:
            header = IPv6(src=world[source][6], dst=world[to][6], nh=44) / IPv6ExtHdrFragment(
                nh=protocol, offset=begin, m=0 if is_last else 1, id=identification
            )
        packets.append(header / Raw(part))
    return packets


def payload_bytes(family, world, to, header):
    """The payload with its checksum, which covers the addresses."""
    whole = raw(ip(family, world["own"][family], world[to][family]) / header)
    return whole[20 if family == 4 else 40 :]


# Where the payload of a UDP datagram with six marks is cut.
HALVES = ((0, 3), (3, None))
TINY = tuple((at, at + 1) for at in range(6)) + ((6, None),)
# Within what is there already, which Linux forgives; other overlaps end the datagram.
OVERLAPPING = ((0, 3), (3, 5), (2, 4), (5, None))
REVERSED = tuple(reversed(HALVES))
FIRST = ((0, 3),)
LAST = ((3, None),)


def fragments(table, world):
    def datagram(to, cuts, port=53):
        def build(family, text, number):
            payload = payload_bytes(family, world, to, UDP(sport=SOURCE_PORT, dport=port) / Raw(text * 6))
            return bits(family, world, to, 17, payload, cuts, number >> 6 & 0xFFFF)

        return build

    def segment(to, cuts, port):
        def build(family, text, number):
            # The option makes its header end where a fragment can.
            header = TCP(sport=SOURCE_PORT, dport=port, seq=number, flags="S", options=[("MSS", 1200)])
            return bits(family, world, to, 6, payload_bytes(family, world, to, header / Raw(text * 4)), cuts, number >> 6 & 0xFFFF)

        return build

    def ping(to, cuts):
        def build(family, text, number):
            payload = payload_bytes(family, world, to, echo(family, text * 6, number))
            return bits(family, world, to, 1 if family == 4 else 58, payload, cuts, number >> 6 & 0xFFFF)

        return build

    for to, place in (("gateway", "gateway"), ("device", "victim"), ("internet", "internet")):
        table.both(f"fragment/{to}/halves", datagram(place, HALVES))
        table.both(f"fragment/{to}/reversed", datagram(place, REVERSED))
        table.both(f"fragment/{to}/tiny", datagram(place, TINY))
        table.both(f"fragment/{to}/overlapping", datagram(place, OVERLAPPING))
        table.both(f"fragment/{to}/first-only", datagram(place, FIRST))
    for to, place in (("device", "victim"), ("internet", "internet")):
        table.both(f"fragment/{to}/last-only", datagram(place, LAST))
    # What is allowed, in a form that nobody can look at.
    table.both("fragment/gateway/link-port", segment("gateway", ((0, 1), (1, 3), (3, None)), world["link_port"]))
    table.both("fragment/gateway/ping", ping("gateway", HALVES))
    # A first fragment that is whole: the header says that there could be more.
    table.add(
        "fragment/gateway/atomic/ipv6",
        lambda text, number: IPv6(src=world["own"][6], dst=world["gateway"][6], nh=44)
        / IPv6ExtHdrFragment(nh=17, id=number)
        / udp(53)(6, text, number),
    )


def quoted(family, world, text):
    """A packet that an ICMP message claims to be about: of the one that is told, to the Internet."""
    return ip(family, world["victim"][family], world["internet"][family]) / UDP(sport=1, dport=53) / Raw(text)


def redirects(table, world):
    def redirect(to, source):
        def build(family, text, number):
            about = raw(quoted(family, world, text))
            if family == 4:
                header = IP(src=world[source][4], dst=world[to][4])
                return header / ICMP(type=5, code=1, gw=world["own"][4]) / Raw(about)
            message = ICMPv6ND_Redirect(tgt=world["own_link"][6], dst=world["internet"][6])
            option = ICMPv6NDOptRedirectedHdr(pkt=about + bytes(-len(about) % 8))
            return IPv6(src=world[source][6], dst=world[to][6], hlim=255) / message / option

        return build

    table.both("redirect/device", redirect("victim", "own"))
    table.both("redirect/device/from-gateway", redirect("victim", "gateway"), frees="gateway", refused={"open/ipv4": OWN})
    table.both("redirect/node", redirect("gateway", "own"))
    table.add(
        "redirect/node/from-link-local/ipv6",
        lambda text, number: redirect("gateway", "own_link")(6, text, number),
        frees="outside",
    )


def multicast(table, world):
    for what, to, port in (
        ("all-hosts", "224.0.0.1", 53),
        ("all-routers", "224.0.0.2", 53),
        ("mdns", "224.0.0.251", 5353),
        ("ssdp", "239.255.255.250", 1900),
        ("global", "233.252.0.1", 53),
        ("broadcast", "255.255.255.255", 53),
        ("subnet-broadcast", world["broadcast"], 53),
    ):
        table.add(
            f"multicast/{what}/ipv4",
            lambda text, number, to=to, port=port: IP(src=world["own"][4], dst=to) / udp(port)(4, text, number),
        )
    table.add(
        "multicast/ping-all/ipv4", lambda text, number: IP(src=world["own"][4], dst="224.0.0.1") / echo(4, text, number)
    )
    table.add(
        "multicast/ping-broadcast/ipv4",
        lambda text, number: IP(src=world["own"][4], dst=world["broadcast"]) / echo(4, text, number),
    )
    for what, to, port in (
        ("all-nodes", "ff02::1", 53),
        ("all-routers", "ff02::2", 53),
        ("mdns", "ff02::fb", 5353),
        ("dhcp", "ff02::1:2", 547),
        ("site", "ff05::2", 53),
        ("global", "ff0e::1", 53),
        ("interface-local", "ff01::1", 53),
    ):
        table.add(
            f"multicast/{what}/ipv6",
            lambda text, number, to=to, port=port: IPv6(src=world["own"][6], dst=to) / udp(port)(6, text, number),
            refused={"kernel": "Linux takes such an address for one of its own processes"}
            if what == "interface-local"
            else None,
        )
    table.add(
        "multicast/ping-all/ipv6", lambda text, number: IPv6(src=world["own"][6], dst="ff02::1") / echo(6, text, number)
    )
    # Who asks for groups, and who says that he is in one.
    table.add(
        "multicast/igmp/ipv4",
        lambda text, number: IP(src=world["own"][4], dst="224.0.0.1", ttl=1, proto=2) / igmp(text),
    )
    table.add(
        "multicast/mld-query/ipv6",
        lambda text, number: IPv6(src=world["own_link"][6], dst="ff02::1", hlim=1)
        / IPv6ExtHdrHopByHop(options=[RouterAlert()])
        / ICMPv6MLQuery()
        / Raw(text),
        frees="outside",
    )
    table.add(
        "multicast/mld-report/ipv6",
        lambda text, number: IPv6(src=world["own"][6], dst="ff02::1", hlim=1)
        / IPv6ExtHdrHopByHop(options=[RouterAlert()])
        / ICMPv6MLReport(mladdr="ff02::1:ff00:1")
        / Raw(text),
    )


def igmp(text):
    return with_checksum(bytes((0x11, 10, 0, 0, 0, 0, 0, 0)) + text)


def source_routes(table, world):
    for what, option in (("lsrr", IPOption_LSRR), ("ssrr", IPOption_SSRR)):
        for to in ("victim", "internet", "other_gateway"):
            table.add(
                f"source-route/{what}/{to}/ipv4",
                lambda text, number, option=option, to=to: IP(
                    src=world["own"][4], dst=world["gateway"][4], options=[option(pointer=4, routers=[world[to][4]])]
                )
                / udp(53)(4, text, number),
            )
    # A route that is at its end: what is allowed, with an option.
    for what, option in (
        ("lsrr-done", IPOption_LSRR(pointer=8, routers=[world["victim"][4]])),
        ("record-route", IPOption_RR(routers=["0.0.0.0"] * 3)),
        ("timestamp", IPOption_Timestamp()),
        ("router-alert", IPOption_Router_Alert()),
    ):
        table.add(
            f"option/{what}/ping/ipv4",
            lambda text, number, option=option: IP(src=world["own"][4], dst=world["gateway"][4], options=[option])
            / echo(4, text, number),
        )
        table.add(
            f"option/{what}/link-port/ipv4",
            lambda text, number, option=option: IP(src=world["own"][4], dst=world["gateway"][4], options=[option])
            / link_port(world)(4, text, number),
        )
    for to in ("victim", "internet"):
        for what, header in (
            ("rh0", lambda to=to: IPv6ExtHdrRouting(type=0, segleft=1, addresses=[world[to][6]])),
            ("rh2", lambda to=to: IPv6ExtHdrRouting(type=2, segleft=1, addresses=[world[to][6]])),
            ("srh", lambda to=to: segments(world, to)),
        ):
            table.add(
                f"source-route/{what}/{to}/ipv6",
                lambda text, number, header=header: IPv6(src=world["own"][6], dst=world["gateway"][6])
                / header()
                / udp(53)(6, text, number),
            )


def segments(world, to):
    return IPv6ExtHdrSegmentRouting(segleft=1, lastentry=1, addresses=[world[to][6], world["gateway"][6]])


def extensions(table, world):
    headers = {
        "hop-by-hop": lambda: IPv6ExtHdrHopByHop(options=[PadN(optdata=b"\0\0\0\0")]),
        "destination": lambda: IPv6ExtHdrDestOpt(options=[PadN(optdata=b"\0\0\0\0")]),
        "routing-done": lambda: IPv6ExtHdrRouting(type=0, segleft=0, addresses=[world["victim"][6]]),
        "two": lambda: IPv6ExtHdrHopByHop(options=[PadN(optdata=b"\0\0\0\0")]) / IPv6ExtHdrDestOpt(),
    }
    for what, header in headers.items():
        for name, payload in (("ping", echo), ("link-port", link_port(world)), ("dns", udp(53))):
            table.add(
                f"extension/{what}/{name}/ipv6",
                lambda text, number, header=header, payload=payload: IPv6(
                    src=world["own"][6], dst=world["gateway"][6]
                )
                / header()
                / payload(6, text, number),
            )
    table.add(
        "extension/jumbo/ipv6",
        lambda text, number: IPv6(src=world["own"][6], dst=world["gateway"][6], nh=60)
        / Raw(bytes((59, 1, 0x3E, 10)) + text + bytes(4)),
    )


# What is not TCP, UDP or ICMP, by number: among them those that hold another packet.
PROTOCOLS = {
    "ipip": 4,
    "6in4": 41,
    "gre": 47,
    "esp": 50,
    "ah": 51,
    "ospf": 89,
    "vrrp": 112,
    "l2tp": 115,
    "sctp": 132,
    "udp-lite": 136,
    "experiment": 253,
}


def protocols(table, world):
    inner = {
        "ipip": lambda family, text, to: ip(4, world["own"][4], world[to][4]) / UDP(sport=1, dport=53) / Raw(text),
        "6in4": lambda family, text, to: ip(6, world["own"][6], world[to][6]) / UDP(sport=1, dport=53) / Raw(text),
        "gre": lambda family, text, to: Raw(b"\0\0\x08\0")
        / ip(4, world["own"][4], world[to][4])
        / UDP(sport=1, dport=53)
        / Raw(text),
    }
    for what, number in PROTOCOLS.items():

        def build(to, end="victim", what=what, protocol=number):
            def made(family, text, number):
                header = ip(family, world["own"][family], world[to][family], protocol)
                return header / (inner[what](family, text, end) if what in inner else Raw(text * 3))

            return made

        table.both(f"protocol/{what}/gateway", build("gateway"))
        table.both(f"protocol/{what}/device", build("victim"))
        if what in inner:
            table.both(f"protocol/{what}/gateway/to-internet", build("gateway", "internet"))
            table.both(f"protocol/{what}/outer", build("outer"))
            table.both(f"protocol/{what}/internet", build("internet"))


def neighbours(table, world):
    """Neighbour discovery: all that a tunnel carries of what ARP does elsewhere, for it carries no frames."""
    own, victim, gateway = world["own"][6], world["victim"][6], world["gateway"][6]
    messages = {
        "solicit-gateway": (gateway, lambda: ICMPv6ND_NS(tgt=gateway)),
        "solicit-device": (victim, lambda: ICMPv6ND_NS(tgt=victim)),
        "advertise-device-to-node": (gateway, lambda: ICMPv6ND_NA(tgt=victim, O=1, S=0)),
        "advertise-gateway-to-device": (victim, lambda: ICMPv6ND_NA(tgt=gateway, O=1, R=1)),
        "advertise-gateway-to-all": ("ff02::1", lambda: ICMPv6ND_NA(tgt=gateway, O=1, R=1)),
        "router-solicit": ("ff02::2", lambda: ICMPv6ND_RS()),
        "router-advertise-to-node": (gateway, router),
        "router-advertise-to-device": (victim, router),
        "router-advertise-to-all": ("ff02::1", router),
    }
    for what, (to, message) in messages.items():
        table.add(
            f"neighbour/{what}/ipv6",
            lambda text, number, to=to, message=message: IPv6(src=own, dst=to, hlim=255)
            / message()
            / ICMPv6NDOptDstLLAddr(lladdr="02:00:00:00:00:01")
            / Raw(bytes((253, 2)) + text + bytes(6)),
        )
    # As a router has to: from its link-local address.
    table.add(
        "neighbour/router-advertise/from-link-local/ipv6",
        lambda text, number: IPv6(src=world["own_link"][6], dst=victim, hlim=255)
        / router()
        / Raw(bytes((253, 2)) + text + bytes(6)),
        frees="outside",
    )
    table.add(
        "neighbour/address-in-use/ipv6",
        lambda text, number: IPv6(src="::", dst="ff02::1", hlim=255)
        / ICMPv6ND_NS(tgt=gateway)
        / Raw(bytes((253, 2)) + text + bytes(6)),
        frees="outside",
        refused={"open": "OpenVPN drops what comes from no address"},
    )


def router():
    return ICMPv6ND_RA(routerlifetime=9000, prf=1) / ICMPv6NDOptPrefixInfo(prefix="2001:db8:bad::", prefixlen=64)


def icmp(table, world):
    """Messages about packets that were never sent, and requests that hosts once answered."""
    own = world["own"]
    for to in ("gateway", "victim"):

        def about(family, text, to=to):
            return Raw(raw(ip(family, world[to][family], own[family]) / UDP(sport=1, dport=53) / Raw(text)))

        for what, kind, code, more in (
            ("unreachable", 3, 1, {}),
            ("too-big", 3, 4, {"nexthopmtu": 600}),
            ("quench", 4, 0, {}),
            ("time-exceeded", 11, 0, {}),
            ("parameter", 12, 0, {}),
        ):
            table.add(
                f"icmp/{what}/{to}/ipv4",
                lambda text, number, to=to, kind=kind, code=code, more=more, about=about: IP(
                    src=own[4], dst=world[to][4]
                )
                / ICMP(type=kind, code=code, **more)
                / about(4, text),
            )
        for what, message in (
            ("unreachable", lambda: ICMPv6DestUnreach(code=3)),
            ("too-big", lambda: ICMPv6PacketTooBig(mtu=1280)),
            ("time-exceeded", lambda: ICMPv6TimeExceeded()),
            ("parameter", lambda: ICMPv6ParamProblem()),
        ):
            table.add(
                f"icmp/{what}/{to}/ipv6",
                lambda text, number, to=to, message=message, about=about: IPv6(src=own[6], dst=world[to][6])
                / message()
                / about(6, text),
            )
    for what, kind in (("timestamp", 13), ("information", 15), ("mask", 17), ("router-solicit", 10), ("extended-echo", 42)):
        table.add(
            f"icmp/{what}/ipv4",
            lambda text, number, kind=kind: IP(src=own[4], dst=world["gateway"][4], proto=1) / control(kind, text),
        )
    table.add(
        "icmp/router-advertise/ipv4",
        lambda text, number: IP(src=own[4], dst="224.0.0.1", proto=1, ttl=1) / control(9, text),
    )
    table.add(
        "icmp/node-information/ipv6",
        lambda text, number: IPv6(src=own[6], dst=world["gateway"][6], nh=58) / node_information(world, text),
    )


def control(kind, text):
    """An ICMP message of any kind."""
    return with_checksum(bytes((kind, 0, 0, 0)) + bytes(16) + text)


def with_checksum(message):
    total = sum(struct.unpack(f"!{len(message) // 2}H", message))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return Raw(message[:2] + struct.pack("!H", ~total & 0xFFFF) + message[4:])


def node_information(world, text):
    message = bytes((139, 0, 0, 0, 0, 2, 0, 0)) + text + bytes(24)
    header = IPv6(src=world["own"][6], dst=world["gateway"][6], nh=58)
    total = in6_chksum(58, header, message)
    return Raw(message[:2] + struct.pack("!H", total) + message[4:])


GROUPS = (
    must_pass,
    places,
    ports,
    spoofed,
    link_local,
    fragments,
    redirects,
    multicast,
    source_routes,
    extensions,
    protocols,
    neighbours,
    icmp,
    gone,
)
