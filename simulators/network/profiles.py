"""Application profiles, end-system stacks and the table of well-known services.

Everything here is public knowledge: port numbers from IANA's registry, message sizes from the protocols' RFCs, typical
round figures for lengths and durations, and the defaults of common TCP/IP stacks. None of it is fitted to a capture.
"""

from __future__ import annotations

from dataclasses import dataclass

ICMP, IGMP, TCP, UDP, ICMPV6 = 1, 2, 6, 17, 58

ROLES = ("internal", "external", "multicast", "broadcast")
"""Where an address lies: in a declared internal prefix, elsewhere, or one that names many hosts."""

MOST_PACKETS = 10_000
"""Packets of a flow, each way, at most."""

MOST_BYTES = MOST_PACKETS * 1460
"""Payload bytes of a flow, each way, at most."""


@dataclass(frozen=True)
class Profile:
    """An application.

    ``ports``: server ports that are its own, its usual one first; none for one that may run anywhere. ``anywhere``:
    its payload tells what it is, so it may run on other ports too. ``client_port``: the client's, where it is fixed.
    ``least``, ``most``: payload bytes, out and in, of its shortest and longest message; of TCP, the shortest is what
    its opening message needs, there is no longest, and no packet has less than ``segment``. ``servers``: the roles
    that a server may have, the usual one first. ``versions``: of IP, the usual one first. ``ttl``: of every packet,
    where the protocol fixes it. ``packets``, ``sizes``, ``seconds``: typical packets out and in, payload bytes of a
    packet out and in, and duration; the middle of the prior. ``server_first``: the server greets.
    """

    name: str
    protocol: int
    ports: tuple[int, ...] = ()
    anywhere: bool = False
    client_port: int = 0
    least: tuple[int, int] = (1, 1)
    most: tuple[int, int] = (1452, 1452)  # 1500 less the headers of IPv6 and UDP
    servers: tuple[str, ...] = ("external", "internal")
    versions: tuple[int, ...] = (4, 6)
    ttl: int = 0
    packets: tuple[float, float] = (10, 10)
    sizes: tuple[float, float] = (300, 600)
    seconds: float = 1.0
    server_first: bool = False
    segment: int = 1

    @property
    def generic(self) -> bool:
        """Whether its payload is that of no protocol in particular."""
        return self.name in ("tcp", "udp", "bulk", "flood")


_MULTICAST = ("multicast",)
PROFILES = (
    Profile("http", TCP, (80, 8080, 8000, 8008), True, least=(120, 100), packets=(8, 10), sizes=(200, 900)),
    Profile("tls", TCP, (443, 8443, 993, 995), True, least=(240, 140), packets=(12, 14), sizes=(250, 800), seconds=5),
    Profile("ssh", TCP, (22,), least=(200, 200), packets=(25, 25), sizes=(100, 150), seconds=20, server_first=True,
            segment=16),
    Profile("smtp", TCP, (25, 587), least=(60, 60), packets=(14, 14), sizes=(300, 60), seconds=3, server_first=True),
    Profile("ftp", TCP, (21,), least=(40, 60), packets=(12, 12), sizes=(20, 50), seconds=10, server_first=True),
    Profile("telnet", TCP, (23,), least=(40, 40), packets=(30, 30), sizes=(10, 40), seconds=30, server_first=True),
    Profile("imap", TCP, (143,), least=(60, 60), packets=(15, 15), sizes=(40, 300), seconds=10, server_first=True),
    Profile("pop3", TCP, (110,), least=(40, 60), packets=(10, 12), sizes=(20, 300), seconds=3, server_first=True),
    Profile("mqtt", TCP, (1883,), least=(60, 20), packets=(12, 10), sizes=(60, 30), seconds=60),
    Profile("rtsp", TCP, (554, 8554), least=(160, 120), packets=(40, 60), sizes=(100, 800), seconds=30),
    Profile("smb", TCP, (445,), least=(180, 200), packets=(20, 20), sizes=(200, 300), servers=("internal", "external")),
    Profile("rdp", TCP, (3389,), least=(260, 160), packets=(60, 80), sizes=(150, 600), seconds=60),
    Profile("bulk", TCP, (5201,), True, packets=(400, 700), sizes=(1, 1400), seconds=10),
    Profile("scan", TCP, (), True, packets=(1, 1), sizes=(0, 0), seconds=0.05, servers=("internal", "external")),
    Profile("tcp", TCP, (), True, packets=(10, 10), sizes=(150, 300), seconds=5),
    Profile("dns", UDP, (53,), least=(34, 50), most=(512, 1232), packets=(1, 1), sizes=(36, 100), seconds=0.03,
            servers=("internal", "external")),
    Profile("quic", UDP, (443,), least=(1200, 1200), most=(1452, 1452), packets=(10, 14), sizes=(1200, 1250)),
    Profile("ntp", UDP, (123,), least=(48, 48), most=(48, 48), packets=(1, 1), sizes=(48, 48), seconds=0.03),
    Profile("dhcp", UDP, (67,), client_port=68, least=(300, 300), most=(576, 576), packets=(2, 1), sizes=(300, 320),
            servers=("broadcast", "internal"), versions=(4,)),
    Profile("dhcp-server", UDP, (68,), client_port=67, least=(300, 300), most=(576, 576), packets=(1, 0.3),
            sizes=(320, 300), servers=("broadcast", "internal"), versions=(4,)),
    Profile("mdns", UDP, (5353,), client_port=5353, least=(34, 50), packets=(3, 0.3), sizes=(120, 200), seconds=5,
            servers=_MULTICAST, ttl=255),
    Profile("llmnr", UDP, (5355,), least=(34, 50), most=(93, 512), packets=(2, 0.3), sizes=(40, 60), seconds=0.4,
            servers=_MULTICAST),
    Profile("ssdp", UDP, (1900,), least=(130, 220), packets=(3, 0.3), sizes=(140, 300), seconds=3,
            servers=("multicast", "internal"), versions=(4,)),
    Profile("netbios", UDP, (137,), least=(50, 62), most=(50, 62), client_port=137, packets=(3, 0.3), sizes=(50, 62),
            servers=("broadcast", "internal"), versions=(4,), seconds=1.5),
    Profile("snmp", UDP, (161,), least=(60, 60), packets=(3, 3), sizes=(80, 100), servers=("internal", "external")),
    Profile("syslog", UDP, (514,), least=(64, 64), packets=(5, 0.3), sizes=(150, 100), seconds=20,
            servers=("internal", "external")),
    Profile("sip", UDP, (5060,), least=(330, 260), packets=(4, 4), sizes=(500, 400), seconds=5),
    Profile("flood", UDP, (), True, packets=(500, 0.3), sizes=(512, 1), seconds=5, servers=("external", "internal")),
    Profile("udp", UDP, (), True, packets=(5, 5), sizes=(150, 200), seconds=2,
            servers=("external", "internal", "multicast", "broadcast")),
    Profile("icmp", ICMP, most=(1400, 1400), packets=(4, 4), sizes=(56, 56), seconds=3),
    Profile("igmp", IGMP, least=(8, 8), most=(72, 8), packets=(2, 0.3), sizes=(12, 8), seconds=5, servers=_MULTICAST,
            versions=(4,), ttl=1),
)  # fmt: skip
"""The applications, in the order of the parameter ``profile``."""

RESERVED = {
    TCP: frozenset((
        22, 53, 123, 161, 162, 199, 389, 500, 524, 639, 873, 988, 1102, 1153, 1521, 1723, 1861, 1998, 2269, 2321,
        2322, 2404, 2571, 2812, 2944, 3268, 3357, 3452, 3632, 3863, 4223, 4224, 4321, 4551, 4555, 4556, 5010, 5094,
        5353, 5355, 5555, 5683, *range(6000, 6064), 6160, 6666, 6668, 7911, 8023, 8085, 9600, 9956, 13400, 29418,
        34980, 48049, 48898,
    )),
    UDP: frozenset((
        49, 53, 67, 68, 69, 88, 123, 137, 138, 173, 177, 213, 319, 320, 389, 427, 434, 445, 464, 496, 500, 513, 520,
        521, 524, 525, 546, 547, 631, 664, 701, 750, 854, 910, 921, 1001, 1069, 1153, 1194, 1293, 1628, 1629, 1718,
        1719, 1745, 1755, 2048, 2055, 2222, 2268, 2269, 2313, 2345, 2428, 2944, 2945, 2948, 3130, 3250, 3343, 3357,
        3389, 3452, 3455, 3483, 3544, 3671, 3784, 3804, 3863, 4000, 4306, 4307, 4341, 4342, 4500, 4533, 4534, 4551,
        4555, 4569, 4729, 4739, 4754, 4784, 4789, 4790, 4791, 4991, 5000, 5001, 5031, 5072, 5094, 5246, 5247, 5353,
        5355, 5436, 5683, 6081, 6118, 6277, 6343, 6635, 6784, 6970, 7074, 7255, 7275, 7784, 8200, 8211, 8600, 8611,
        8612, 8613, 8614, 8767, 8805, 8848, 9200, 9875, 9899, 9901, 9956, 9996, 10253, 11273, 12000, 12001, 12002,
        12003, 12004, 12220, 12222, 12223, 13400, 17220, 17755, 17756, 18246, 23272, 24576, 24577, 25826, 26000,
        27500, 27910, 27950, 27951, 27952, 27953, 27960, 27961, 27962, 27963, 30030, 34962, 34980, 37008, 41170,
        44818, 47000, 54328,
    )),
}  # fmt: skip
"""Ports, by protocol, of formats that nothing here writes and that readers know by the port alone (Wireshark 4.0's
table). Data of no format in particular there would be a broken message, so it goes to another port."""

NAMES = tuple(profile.name for profile in PROFILES)


NDPI = {
    "http": "HTTP", "tls": "TLS", "ssh": "SSH", "smtp": "SMTP", "ftp": "FTP_CONTROL", "telnet": "Telnet",
    "imap": "IMAP", "pop3": "POP3", "mqtt": "MQTT", "rtsp": "RTSP", "smb": "SMBv23", "rdp": "RDP", "dns": "DNS",
    "quic": "QUIC", "ntp": "NTP", "dhcp": "DHCP", "dhcp-server": "DHCP", "mdns": "MDNS", "llmnr": "LLMNR",
    "ssdp": "SSDP", "netbios": "NetBIOS", "snmp": "SNMP", "syslog": "Syslog", "sip": "SIP", "icmp": "ICMP",
    "igmp": "IGMP",
}  # fmt: skip
"""Profile -> what nDPI calls it, where it has a name."""

_MEANT = {name.lower(): profile for profile, name in NDPI.items()} | {profile: profile for profile in NDPI}
_MEANT |= {"icmpv6": "icmp", "ssl": "tls", "dhcp-server": "dhcp"}  # nDPI; Zeek; flows that a server begins


def application(name: str) -> str:
    """The profile that a tool's name of an application means, or "other" where it means none with a name of its own.

    Of nDPI's names, only the protocol before the dot counts: "TLS.Google" is "tls". What it guesses from an address
    ("AWS_EC2") is "other", and so is traffic of no protocol in particular. So the names are a public list.
    """
    return _MEANT.get(name.lower().partition(".")[0], "other")


def index_of(name: str) -> int:
    """Where a profile stands in PROFILES. Raises ValueError for a name that is not there."""
    return NAMES.index(name)


@dataclass(frozen=True)
class Stack:
    """Defaults of a TCP/IP stack: TTL of what it sends, window and maximum segment size of its SYN over IPv4.

    ``serves``: whether it answers; those that do stand first in STACKS.
    """

    name: str
    ttl: int
    window: int
    mss: int
    serves: bool = True


STACKS = (
    Stack("linux", 64, 64240, 1460),
    Stack("linux-old", 64, 29200, 1460),
    Stack("linux-2.6", 64, 5840, 1460),
    Stack("darwin", 64, 65535, 1460),
    Stack("android", 64, 65535, 1400),
    Stack("windows", 128, 64240, 1460),
    Stack("windows-8", 128, 8192, 1460),
    Stack("lwip", 255, 5744, 1436),
    Stack("lwip-small", 128, 2144, 536),
    Stack("router", 255, 4128, 536),
    Stack("solaris", 255, 32850, 1380),
    Stack("scanner", 64, 1024, 1460, serves=False),
)
"""End systems, in the order of the parameters ``client_stack`` and ``server_stack``."""

SERVICES = (
    ("ftp-data", 20), ("ftp", 21), ("ssh", 22), ("telnet", 23), ("smtp", 25), ("dns", 53), ("dhcp", 67),
    ("dhcp-client", 68), ("tftp", 69), ("http", 80), ("kerberos", 88), ("pop3", 110), ("sunrpc", 111), ("ntp", 123),
    ("msrpc", 135), ("netbios-ns", 137), ("netbios-dgm", 138), ("netbios-ssn", 139), ("imap", 143), ("snmp", 161),
    ("snmptrap", 162), ("ldap", 389), ("https", 443), ("smb", 445), ("syslog", 514), ("rtsp", 554), ("submission", 587),
    ("ipp", 631), ("ldaps", 636), ("imaps", 993), ("pop3s", 995), ("mssql", 1433), ("mqtt", 1883), ("ssdp", 1900),
    ("mysql", 3306), ("rdp", 3389), ("stun", 3478), ("ipsec-nat", 4500), ("sip", 5060), ("xmpp", 5222), ("mdns", 5353),
    ("llmnr", 5355), ("postgresql", 5432), ("coap", 5683), ("vnc", 5900), ("redis", 6379), ("http-alt", 8080),
    ("https-alt", 8443), ("mqtts", 8883), ("upnp", 49152),
)  # fmt: skip
"""The frozen table of services: name and server port (IANA's Service Name and Port Number Registry)."""
