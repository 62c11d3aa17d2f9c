"""Synthetic payloads: what each application would plausibly say, in as many bytes as a flow carries.

A message is a fixed beginning and end around a filler of public words, with its lengths, identifiers and names patched
in. Names are those of a vocabulary: public words, or a language model's. Nothing here comes from a capture.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from simpe.simulators.network.profiles import NAMES
from simpe.simulators.network.vocabulary import PUBLIC, WORDS, Vocabulary

Integers = NDArray[np.int64]
Bytes = NDArray[np.uint8]

_NAME = b"canary.winner.example"  # stands for a flow's own name
_ZONE = b"\6winner\7example"  # and for that name less its first label, in DNS
_PRODUCT = b"simpe/1.0"  # the user agent, where no other is named or fits
_LETTERS = np.frombuffer("".join(WORDS).encode(), dtype=np.uint8)


@dataclass(frozen=True)
class Record:
    """What a stream is cut into: ``header``, the length of all behind it in ``width`` bytes, ``tail``, filler.

    A record is ``stride`` bytes long at most. A width of 0 stands for MQTT's variable-length number, in four bytes.
    """

    header: bytes
    width: int
    tail: bytes = b""
    stride: int = 1400

    @property
    def least(self) -> int:
        """The bytes of a record with one byte of filler."""
        return len(self.header) + (self.width or 4) + len(self.tail) + 1


@dataclass(frozen=True)
class Message:
    """A fixed ``prefix`` and ``suffix`` around filler.

    ``lengths``: (offset, width, less) of big-endian numbers in the prefix that hold the message's size less something;
    a negative width stands for decimal digits. ``ids``: offsets of two bytes that tell messages apart. ``record``: what
    follows the prefix is cut into records. ``opens``: what the filler begins with, "paths" or "agents".
    """

    prefix: bytes = b""
    suffix: bytes = b""
    lengths: tuple[tuple[int, int, int], ...] = ()
    ids: tuple[int, ...] = ()
    record: Record | None = None
    opens: str = ""

    @property
    def least(self) -> int:
        """The fewest bytes that hold it."""
        return len(self.prefix) + len(self.suffix) + (self.record.least if self.record else 0)


def filler(size: int) -> Bytes:
    """That many letters of public words: uint8 (size,)."""
    rows = np.empty((size // len(_LETTERS) + 1, len(_LETTERS)), dtype=np.uint8)
    rows[:] = _LETTERS
    return rows.ravel()[:size]


def fill(
    arena: Bytes,
    profile: Integers,
    way: str,
    at: Integers,
    size: Integers,
    flow: Integers,
    ordinal: Integers | None = None,
    asked: Integers | None = None,
    first: Integers | None = None,
    vocabulary: Vocabulary = PUBLIC,
) -> None:
    """Write messages of given profiles (m,) into ``arena``, from ``at`` (m,) on and ``size`` (m,) bytes long.

    ``arena`` holds :func:`filler`. ``flow`` and ``ordinal`` (m,) tell messages apart; ``asked`` (m,) is the size of the
    question that a message answers, ``first`` (m,) that of a stream's first packet.
    """
    ordinal = np.zeros_like(flow) if ordinal is None else ordinal
    asked = size if asked is None else asked
    whole = np.ones(len(size), dtype=bool) if first is None else size <= first
    for index in np.unique(profile).tolist():
        chosen = np.flatnonzero(profile == index)
        name = NAMES[index]
        if name == "icmp":  # an answer repeats the question
            copy(arena, at[chosen], filler(2048), np.zeros_like(chosen), size[chosen])
        if name in _RESOLVERS:
            rows = at[chosen], size[chosen], flow[chosen], ordinal[chosen], asked[chosen]
            _resolve(arena, *rows, way == "in", _RESOLVERS[name], vocabulary)
        for message, some in _variants(name, way, chosen, whole, ordinal):
            for own, mine in _with_agents(message, some, size, flow, vocabulary):
                _write(arena, own, at[mine], size[mine], flow[mine], ordinal[mine], vocabulary)


def _variants(
    name: str, way: str, chosen: Integers, whole: NDArray[np.bool_], ordinal: Integers
) -> Iterator[tuple[Message, Integers]]:
    """The messages of a profile, each with those of the chosen ones that it is for."""
    one, split, later = (*_MESSAGES.get((name, way), ()), None, None, None)[:3]
    groups = np.where((ordinal[chosen] > 0) & (later is not None), 2, ~whole[chosen] & (split is not None))
    for group, message in enumerate((one, split, later)):
        some = chosen[groups == group]
        if message is not None and len(some):
            yield message, some


def _with_agents(
    message: Message, chosen: Integers, size: Integers, flow: Integers, vocabulary: Vocabulary
) -> Iterator[tuple[Message, Integers]]:
    """A message with each user agent in it, and those of the chosen ones that have it and room for it."""
    own = scrambled(flow[chosen] + 2) % max(1, len(vocabulary.agents))
    for index, agent in enumerate(vocabulary.agents if _PRODUCT in message.suffix else ()):
        named = replace(message, suffix=message.suffix.replace(_PRODUCT, agent.encode()))
        fits = (own == index) & (size[chosen] >= named.least)
        yield named, chosen[fits]
        chosen, own = chosen[~fits], own[~fits]
    yield message, chosen


def _write(
    arena: Bytes, m: Message, at: Integers, size: Integers, flow: Integers, ordinal: Integers, vocabulary: Vocabulary
) -> None:
    for text, start in ((m.prefix, at), (m.suffix, at + size - len(m.suffix))):
        _put_text(arena, start, text, flow, vocabulary)
    if m.opens:
        _open(arena, m, at + len(m.prefix), size - len(m.prefix) - len(m.suffix), flow, vocabulary)
    for offset, width, less in m.lengths:
        put(arena, at + offset, _digits(size - less, -width) if width < 0 else _number(size - less, width))
    for offset in m.ids:
        put(arena, at + offset, _number((scrambled(flow) + ordinal) & 0x7FFF, 2))
    if m.record is not None:
        _cut(arena, m.record, at + len(m.prefix), size - len(m.prefix), flow, vocabulary)


def _put_text(arena: Bytes, at: Integers, text: bytes, flow: Integers, vocabulary: Vocabulary) -> None:
    """The same text at every place (m,), with its names replaced by those of the flows (m,)."""
    if text:
        put(arena, at, np.broadcast_to(np.frombuffer(text, np.uint8), (len(at), len(text))))
    for pattern, names in ((_NAME, vocabulary.texts), (_ZONE, vocabulary.zones)):
        offset = text.find(pattern)
        while offset >= 0:
            put(arena, at + offset, names[_hosts(flow, vocabulary)])
            offset = text.find(pattern, offset + 1)


def _hosts(flow: Integers, vocabulary: Vocabulary) -> Integers:
    return vocabulary.of(scrambled(flow), scrambled(flow + 1))


def _open(arena: Bytes, m: Message, at: Integers, room: Integers, flow: Integers, vocabulary: Vocabulary) -> None:
    """Begin the filler with a path or a user agent, cut where there is no room (m,) for all of it."""
    names = [name.lstrip("/").encode() for name in getattr(vocabulary, m.opens)]
    if names:
        length = np.array([len(name) for name in names])
        own = scrambled(flow + 2) % len(names)
        source = np.frombuffer(b"".join(names), dtype=np.uint8)
        copy(arena, at, source, (np.cumsum(length) - length)[own], np.minimum(length[own], room))
        more = np.flatnonzero(room > length[own])
        between = ord("?" if m.opens == "paths" else " ")
        put(arena, (at + length[own])[more], np.full((len(more), 1), between, dtype=np.uint8))


def _cut(arena: Bytes, record: Record, at: Integers, size: Integers, flow: Integers, vocabulary: Vocabulary) -> None:
    """Cut streams (m,) into records of nearly equal size."""
    count = -(-size // record.stride)
    owner, turn = ramps(count)
    each, more = (size // count)[owner], (size % count)[owner]
    start = at[owner] + turn * each + np.minimum(turn, more)
    behind = len(record.header) + (record.width or 4)
    _put_text(arena, start, record.header, flow[owner], vocabulary)
    put(arena, start + len(record.header), _number(each + (turn < more) - behind, record.width))
    _put_text(arena, start + behind, record.tail, flow[owner], vocabulary)


def _number(value: Integers, width: int) -> Bytes:
    """Big-endian numbers (m, width); width 0: MQTT's variable-length number, of four bytes (m, 4)."""
    if width == 0:
        groups: Integers = value[:, None] >> np.arange(0, 28, 7) & 0x7F
        groups |= np.array([128, 128, 128, 0])  # set in all bytes but the last
        return groups.astype(np.uint8)
    return (value[:, None] >> np.arange(8 * width - 8, -1, -8) & 0xFF).astype(np.uint8)


def _digits(value: Integers, width: int) -> Bytes:
    """Decimal digits (m, width)."""
    return (value[:, None] // 10 ** np.arange(width - 1, -1, -1) % 10 + ord("0")).astype(np.uint8)


# --- names: DNS (RFC 1035), multicast DNS (RFC 6762), LLMNR (RFC 4795); padding by EDNS(0) (RFC 7830)

_RESOLVERS: Mapping[str, tuple[int, int]] = {"dns": (0x0100, 0x8180), "mdns": (0, 0x8400), "llmnr": (0, 0x8000)}
"""Flags of a query and of a response."""
_FIXED = 33  # bytes of a question beside the first label: header 12, label lengths and "winner.example" 17, type 4
_LABEL = 60  # the longest first label
_FIRST = 6  # bytes of the first label of a flow's own name, with which longer ones begin
_SHORT_LABEL = 10  # of a query that is filled up with padding
_QUERY = b"\0\0\0\0\0\1\0\0\0\0\0\0"
_PADDING = b"\0\0\x29\x04\xd0\0\0\0\0\0\0\0\x0c\0\0"  # an OPT record with a padding option, both of length 0


def _resolve(
    arena: Bytes,
    at: Integers,
    size: Integers,
    flow: Integers,
    ordinal: Integers,
    asked: Integers,
    response: bool,
    flags: tuple[int, int],
    vocabulary: Vocabulary,
) -> None:
    """Queries for the address of a name of any length, or responses to them, in exactly ``size`` bytes (m,)."""
    label = np.where(asked - _FIXED <= _LABEL, asked - _FIXED, _SHORT_LABEL)
    if response:
        label = np.minimum(label, size - _FIXED - 16)  # leave room for an answer
    put(arena, at, np.broadcast_to(np.frombuffer(_QUERY, np.uint8), (len(at), 12)))
    put(arena, at, _number((scrambled(flow) + ordinal) & 0xFFFF if flags[0] or flags[1] == 0x8000 else 0 * at, 2))
    put(arena, at + 2, _number(np.full_like(at, flags[response]), 2))
    put(arena, at + 12, _number(label, 1))
    names = vocabulary.texts
    copy(arena, at + 13, names.ravel(), _hosts(flow, vocabulary) * names.shape[1], np.minimum(label, _FIRST))
    _put_text(arena, at + 13 + label, _ZONE + b"\0\0\1\0\1", flow, vocabulary)
    rest, end = size - _FIXED - label, at + _FIXED + label
    padded = rest > (_LABEL + 15 if response else 0)
    if response:
        put(arena, at + 6, _number(np.ones_like(at), 2))
        space = np.where(padded, 16, rest)
        put(
            arena,
            end,
            np.broadcast_to(np.frombuffer(b"\xc0\x0c\0\1\0\1\0\0\0\x3c\0\4\xc6\x12\0\1", np.uint8), (len(at), 16)),
        )
        # An answer of another length is an alias: a first label of filler, and a pointer to the rest of the name.
        alias = np.flatnonzero(space > 16)
        put(arena, end[alias] + 3, _number(np.full_like(alias, 5), 1))
        put(arena, end[alias] + 10, _number(space[alias] - 12, 2))
        put(arena, end[alias] + 12, _number(space[alias] - 15, 1))
        put(arena, end[alias] + 13, np.broadcast_to(_LETTERS[:3], (len(alias), 3)))
        put(arena, (end + space)[alias] - 2, _number(0xC000 + 13 + label[alias], 2))
        rest, end = rest - space, end + space
    more = np.flatnonzero(padded)
    put(arena, at[more] + 10, _number(np.ones_like(more), 2))
    put(arena, end[more], np.broadcast_to(np.frombuffer(_PADDING, np.uint8), (len(more), len(_PADDING))))
    put(arena, end[more] + 9, _number(rest[more] - 11, 2))
    put(arena, end[more] + 13, _number(rest[more] - 15, 2))


# --- the messages


def _sized(width: int, body: bytes) -> bytes:
    """A body behind its length."""
    return len(body).to_bytes(width, "big") + body


def _extension(kind: int, body: bytes) -> bytes:
    return kind.to_bytes(2, "big") + _sized(2, body)


def _handshake(kind: int, body: bytes) -> bytes:
    return b"\x16\3\1" + _sized(2, bytes([kind]) + _sized(3, body))


_RANDOM = bytes(range(7, 7 + 32))  # stands for every nonce and key share
_CLIENT_HELLO = _handshake(  # RFC 8446, 4.1.2
    1,
    b"\3\3" + _RANDOM + _sized(1, _RANDOM) + _sized(2, bytes.fromhex("130113021303c02fc030")) + b"\1\0"
    + _sized(2, b"".join((
        _extension(0, _sized(2, b"\0" + _sized(2, _NAME))),
        _extension(10, bytes.fromhex("0004001d0017")),
        _extension(13, bytes.fromhex("0006040308040401")),
        _extension(43, bytes.fromhex("0403040303")),
        _extension(45, b"\1\1"),
        _extension(51, _sized(2, b"\0\x1d" + _sized(2, _RANDOM))),
    ))),
)  # fmt: skip
_SERVER_HELLO = _handshake(
    2,
    b"\3\3" + _RANDOM[::-1] + _sized(1, _RANDOM) + b"\x13\1\0"
    + _sized(2, _extension(51, b"\0\x1d" + _sized(2, _RANDOM)) + _extension(43, b"\3\4")),
)  # fmt: skip
_CHANGE = bytes.fromhex("140303000101")
_APPLICATION = Record(b"\x17\3\3", 2)


def _key_exchange() -> bytes:
    """The algorithms on offer, as an SSH message (RFC 4253, 7.1)."""
    offers = ("curve25519-sha256", "ssh-ed25519", *("aes256-ctr",) * 2, *("hmac-sha2-256",) * 2, *("none",) * 2, "", "")
    message = b"\x14" + _RANDOM[:16] + b"".join(_sized(4, offer.encode()) for offer in offers) + bytes(5)
    padding = 4 + (-len(message) - 9) % 8
    return _sized(4, bytes([padding]) + message + bytes(padding))


_KEYS = _key_exchange()
_PRIVATE_USE = Record(b"", 4, b"\4\xc0", 32_000)  # messages that RFC 4250, 4.1 leaves to applications


def _smb(command: int, flags: int, body: bytes) -> bytes:
    """An SMB2 message over TCP ([MS-SMB2] 2.2.1)."""
    head = b"\xfeSMB" + struct.pack("<HHIHHIIQIIQ", 64, 0, 0, command, 1, flags, 0, 0, 0, 0, 0) + bytes(16)
    return b"\0" + _sized(3, head + body)


_ENCRYPTED_SMB = Record(b"\0", 3, b"\xfdSMB" + _RANDOM + struct.pack("<IHHQ", 1, 0, 1, 1))
_NEGOTIATE = _smb(0, 0, struct.pack("<HHHHI", 36, 1, 1, 0, 0x7F) + _RANDOM[:16] + bytes(8) + b"\2\3")
_NEGOTIATED = _smb(
    0, 1, struct.pack("<HHHH", 65, 1, 0x302, 0) + _RANDOM[:16]
    + struct.pack("<IIIIQQHHI", 0x7F, *(2**20,) * 3, 0, 0, 128, 0, 0),
)  # fmt: skip
_RTP = Record(b"$\0", 2, b"\x80\x60\0\1\0\0\0\1\0\0\0\1")
_PUBLISH = Record(b"\x30", 0, b"\0\6sensor", 2**28)
_TELNET = b"\xff\xfd\x18\xff\xfd\x20\xff\xfb\x1f"
_BOOTP = struct.pack(">4sIHH4s4s4s4s", b"\1\1\6\0", 0, 0, 0, bytes([10, 0, 0, 9]), b"", b"", b"")
_HARDWARE = b"\2\0\x0a\0\0\x09" + bytes(10 + 192) + b"\x63\x82\x53\x63"

_REQUEST = Message(_BOOTP + _HARDWARE + b"\x35\1\3\x37\3\1\3\6\xff" + bytes(51), ids=(4,))
_ACK = Message(b"\2" + _BOOTP[1:] + _HARDWARE + bytes.fromhex("350105330400000e1036040a000001ff") + bytes(44), ids=(4,))


def _snmp(kind: int) -> Message:
    """A version 2c message of one string (RFC 3416), its lengths in the long form."""
    prefix, lengths = b"", []

    def nest(tag: int) -> None:
        nonlocal prefix
        lengths.append((len(prefix) + 2, 2, len(prefix) + 4))
        prefix += bytes([tag, 0x82, 0, 0])

    nest(0x30)
    prefix += b"\2\1\1\4\6public"
    nest(kind)
    number = len(prefix) + 2
    prefix += b"\2\2\0\0\2\1\0\2\1\0"
    nest(0x30)
    nest(0x30)
    prefix += bytes.fromhex("06082b06010201010100")
    nest(0x04)
    return Message(prefix, lengths=tuple(lengths), ids=(number,))


def _posted(prefix: bytes) -> Message:
    """HTTP whose body is the filler; the prefix says its length in eight digits."""
    return Message(prefix, lengths=((prefix.index(b"00000000"), -8, len(prefix)),))


def _sip(first: bytes) -> Message:
    common = (
        b"Via: SIP/2.0/UDP " + _NAME + b";branch=z9hG4bK1\r\nMax-Forwards: 70\r\nFrom: <sip:a@" + _NAME
        + b">;tag=1\r\nTo: <sip:b@" + _NAME + b">\r\nCall-ID: 1@" + _NAME
        + b"\r\nCSeq: 1 OPTIONS\r\nContent-Length: 0\r\nSubject: "
    )  # fmt: skip
    return Message(first + common, b"\r\n\r\n")


_HOST = b" HTTP/1.1\r\nHost: " + _NAME + b"\r\nUser-Agent: " + _PRODUCT + b"\r\nAccept: */*\r\n\r\n"
_LINE = b"\r\n"
_MESSAGES: Mapping[tuple[str, str], tuple[Message | None, ...]] = {
    ("http", "out"): (
        Message(b"GET /", _HOST, opens="paths"),
        _posted(b"POST /put HTTP/1.1\r\nHost: " + _NAME + b"\r\nContent-Length: 00000000\r\n\r\n"),
    ),
    ("http", "in"): (
        _posted(b"HTTP/1.1 200 OK\r\nServer: simpe\r\nContent-Type: text/plain\r\nContent-Length: 00000000\r\n\r\n"),
    ),
    ("tls", "out"): (Message(_CLIENT_HELLO + _CHANGE, record=_APPLICATION),),
    ("tls", "in"): (Message(_SERVER_HELLO + _CHANGE, record=_APPLICATION),),
    ("ssh", "out"): (Message(b"SSH-2.0-OpenSSH_9.6\r\n" + _KEYS, record=_PRIVATE_USE),),
    ("ssh", "in"): (Message(b"SSH-2.0-OpenSSH_9.2\r\n" + _KEYS, record=_PRIVATE_USE),),
    ("smtp", "out"): (Message(b"EHLO " + _NAME + b"\r\nNOOP ", _LINE),),
    ("smtp", "in"): (Message(b"220 " + _NAME + b" ESMTP\r\n250 ", _LINE),),
    ("ftp", "out"): (Message(b"USER anonymous\r\nPASS ", _LINE),),
    ("ftp", "in"): (Message(b"220 " + _NAME + b" FTP ready\r\n331 ", _LINE),),
    ("telnet", "out"): (Message(_TELNET, _LINE),),
    ("telnet", "in"): (Message(_TELNET, _LINE),),
    ("imap", "out"): (Message(b"a001 CAPABILITY\r\na002 LOGIN reader ", _LINE),),
    ("imap", "in"): (Message(b"* OK " + _NAME + b" IMAP4rev1 ready\r\n* OK ", _LINE),),
    ("pop3", "out"): (Message(b"USER reader\r\nPASS ", _LINE),),
    ("pop3", "in"): (Message(b"+OK " + _NAME + b" POP3 ready\r\n+OK ", _LINE),),
    ("mqtt", "out"): (Message(b"\x10\x14\0\4MQTT\4\2\0\x3c\0\x08simpe-01", record=_PUBLISH),),
    ("mqtt", "in"): (Message(b"\x20\2\0\0", record=_PUBLISH),),
    ("rtsp", "out"): (
        Message(b"OPTIONS rtsp://" + _NAME + b"/ RTSP/1.0\r\nCSeq: 1\r\nUser-Agent: ", b"\r\n\r\n", opens="agents"),
        Message(b"OPTIONS rtsp://" + _NAME + b"/ RTSP/1.0\r\nCSeq: 1\r\n\r\n", record=_RTP),
    ),
    ("rtsp", "in"): (
        Message(b"RTSP/1.0 200 OK\r\nCSeq: 1\r\nPublic: OPTIONS, DESCRIBE, PLAY\r\nServer: ", b"\r\n\r\n"),
        Message(b"RTSP/1.0 200 OK\r\nCSeq: 1\r\nPublic: OPTIONS, DESCRIBE, PLAY\r\n\r\n", record=_RTP),
    ),
    ("smb", "out"): (Message(_NEGOTIATE, record=_ENCRYPTED_SMB),),
    ("smb", "in"): (Message(_NEGOTIATED, record=_ENCRYPTED_SMB),),
    ("rdp", "out"): (
        Message(bytes.fromhex("030000130ee000000000000100080001000000") + _CLIENT_HELLO + _CHANGE, record=_APPLICATION),
    ),
    ("rdp", "in"): (
        Message(bytes.fromhex("030000130ed000001234000200080001000000") + _SERVER_HELLO + _CHANGE, record=_APPLICATION),
    ),
    ("quic", "out"): (  # RFC 9000, 17.2.2 and 17.3.1
        Message(bytes.fromhex("c300000001088394c8f03e51570800004000"), lengths=((16, 2, 18 - 0x4000),)),
        None,
        Message(bytes.fromhex("408394c8f03e515708")),
    ),
    ("quic", "in"): (
        Message(bytes.fromhex("c3000000010008f067a5502a4262b5004000"), lengths=((16, 2, 18 - 0x4000),)),
        None,
        Message(b"\x40"),
    ),
    ("ntp", "out"): (Message(b"\x23\2\6\xec" + bytes(36) + b"\xe9\0\0\0\0\0\0\0", ids=(46,)),),
    ("ntp", "in"): (
        Message(b"\x24\2\6\xec\0\0\1\0\0\0\1\0\xc0\0\2\1" + 4 * b"\xe9\0\0\0\0\0\0\0", ids=(30,)),
    ),
    ("dhcp", "out"): (_REQUEST,),
    ("dhcp", "in"): (_ACK,),
    ("dhcp-server", "out"): (_ACK,),
    ("dhcp-server", "in"): (_REQUEST,),
    ("ssdp", "out"): (
        Message(
            b'M-SEARCH * HTTP/1.1\r\nHOST: 239.255.255.250:1900\r\nMAN: "ssdp:discover"\r\nMX: 3\r\n'
            b"ST: upnp:rootdevice\r\nUSER-AGENT: ", b"\r\n\r\n", opens="agents",
        ),
    ),
    ("ssdp", "in"): (
        Message(
            b"HTTP/1.1 200 OK\r\nCACHE-CONTROL: max-age=1800\r\nEXT:\r\nLOCATION: http://" + _NAME
            + b"/d.xml\r\nST: upnp:rootdevice\r\nUSN: uuid:1::upnp:rootdevice\r\nSERVER: ", b"\r\n\r\n",
        ),
    ),
    ("netbios", "out"): (
        Message(bytes.fromhex("000001100001000000000000") + b"\x20" + b"FHEJEMEMEPFHCACACACACACACACACAAA"
                + bytes.fromhex("0000200001"), ids=(0,)),
    ),
    ("netbios", "in"): (
        Message(bytes.fromhex("000085000000000100000000") + b"\x20" + b"FHEJEMEMEPFHCACACACACACACACACAAA"
                + bytes.fromhex("0000200001000493e000066000c6120001"), ids=(0,)),
    ),
    ("snmp", "out"): (_snmp(0xA3),),
    ("snmp", "in"): (_snmp(0xA2),),
    ("syslog", "out"): (Message(b"<134>1 2024-01-01T00:00:00Z " + _NAME + b" simpe - - - "),),
    ("syslog", "in"): (Message(b"<134>1 2024-01-01T00:00:00Z " + _NAME + b" simpe - - - "),),
    ("sip", "out"): (_sip(b"OPTIONS sip:" + _NAME + b" SIP/2.0\r\n"),),
    ("sip", "in"): (_sip(b"SIP/2.0 200 OK\r\n"),),
    # Longer ones end in zeros, which a receiver ignores and which leave the checksum as it is (RFC 2236, section 2.5).
    ("igmp", "out"): (Message(bytes.fromhex("1600f9feefff0001")),),
}  # fmt: skip
"""By profile and way: the message; the one in its place where it is split over packets, whose head fits the first of
them, since readers put bodies together more surely than heads; and the one for all messages but the first."""


# --- arrays


def ramps(count: Integers) -> tuple[Integers, Integers]:
    """For counts (n,): two of (sum,), the owner of each item and 0, 1, 2, ... within each owner."""
    owner = np.repeat(np.arange(len(count)), count)
    return owner, np.arange(len(owner)) - np.repeat(np.cumsum(count) - count, count)


def put(buffer: Bytes, at: Integers, values: Bytes) -> None:
    """Write rows (m, width) into a buffer, each from its place (m,) on."""
    if values.size:
        _pieces(buffer, values.shape[1])[at] = np.ascontiguousarray(values).view(f"V{values.shape[1]}")[:, 0]


def copy(buffer: Bytes, to: Integers, source: Bytes, at: Integers, size: Integers) -> None:
    """Copy pieces of several sizes (m,) below 2048, from places (m,) in a source to places (m,) in a buffer."""
    done = np.zeros_like(size)
    for width in (1 << bit for bit in range(11)):
        some = np.flatnonzero(size & width)
        if len(some):
            moved = done[some]
            _pieces(buffer, width)[to[some] + moved] = _pieces(source, width)[at[some] + moved]
            done[some] += width


def _pieces(buffer: Bytes, width: int) -> NDArray[np.void]:
    """Every piece of a buffer of some width, as one item each: a view."""
    return np.ndarray(len(buffer) - width + 1, f"V{width}", buffer, strides=(1,))


def scrambled(x: NDArray[Any]) -> Integers:
    """A fixed scramble of whole numbers, 0..2^31 - 1: splitmix64's finaliser (Steele, Lea and Flood, OOPSLA 2014)."""
    z = x.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return ((z ^ (z >> np.uint64(31))) >> np.uint64(33)).astype(np.int64)
