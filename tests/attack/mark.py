"""What is written into each packet, so that whoever sees it knows which attempt it belongs to.

A mark is eight bytes: the least that a fragment carries. It is text, so that it also passes through proxies.
"""

MARK = b"cAtK"
SCAN = b"sCa"
LENGTH = 8
DIGITS = b"0123456789abcdefghijklmnopqrstuvwxyz"

# Answers of TCP carry no bytes of what they answer, but acknowledge its sequence number.
SEQUENCE = 0xA7
SCAN_SEQUENCES = {0xA8: "a", 0xA9: "b", 0xAA: "c", 0xAB: "d", 0xAC: "i", 0xAD: "j"}

# Where attempts over TCP and UDP are from, unless the world says otherwise. Not one of the ports that the system gives to
# programs that ask for none: their connections have numbers that look like these now and then.
SOURCE_PORT = 20_000
# As if from a port of the device that is open.
OPEN_PORT = 22


def mark(case, count=0):
    high, rest = divmod(case, 36 * 36)
    middle, low = divmod(rest, 36)
    return MARK + bytes((DIGITS[high], DIGITS[middle], DIGITS[low], DIGITS[count]))


def marked(data):
    """The number of the case that these bytes belong to, and which of its packets they are."""
    at = data.find(MARK)
    if at < 0 or len(data) < at + LENGTH:
        return None
    try:
        return int(data[at + 4 : at + 7], 36), int(data[at + 7 : at + 8], 36)
    except ValueError:
        return None


def sequence(case, count):
    return SEQUENCE << 24 | case << 12 | count << 6


def scan_mark(kind, port):
    return SCAN + kind.encode() + b"%04x" % port


def scanned(data):
    """The kind of scan and the port that these bytes belong to."""
    at = data.find(SCAN)
    if at < 0 or len(data) < at + LENGTH:
        return None
    try:
        return chr(data[at + 3]), int(data[at + 4 : at + 8], 16)
    except ValueError:
        return None


def scan_sequence(kind, port):
    first = next(first for first, known in SCAN_SEQUENCES.items() if known == kind)
    return first << 24 | port << 8


def tcp_header(packet):
    """The TCP header of an IP packet, unless that is a fragment or has extension headers."""
    if len(packet) < 40:
        return None
    version = packet[0] >> 4
    if version == 4 and packet[9] == 6 and not (packet[6] & 0x1F or packet[7]):
        header = packet[(packet[0] & 15) * 4 :]
    elif version == 6 and packet[6] == 6:
        header = packet[40:]
    else:
        return None
    return header if len(header) >= 20 else None


def acknowledged(packet):
    """What a TCP segment answers: ("case", number, count), or (kind of a scan with what it found, port)."""
    header = tcp_header(packet)
    if header is None or not header[13] & 0x14:
        return None
    source, destination = (int.from_bytes(header[at : at + 2], "big") for at in (0, 2))
    if destination not in (SOURCE_PORT, OPEN_PORT):
        return None
    # A reset that acknowledges nothing repeats what was acknowledged.
    number = int.from_bytes(header[8:12] if header[13] & 0x10 else header[4:8], "big")
    first = number >> 24
    if first == SEQUENCE:
        return "case", number >> 12 & 0xFFF, number >> 6 & 0x3F
    port = number >> 8 & 0xFFFF
    if first in SCAN_SEQUENCES and port == source:
        return SCAN_SEQUENCES[first] + (" open" if header[13] & 0x02 else " closed"), port
    return None
