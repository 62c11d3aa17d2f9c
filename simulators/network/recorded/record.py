"""Record ``recorded.pcap.gz``, the capture that comes with simpe: real programs in network namespaces of their own.

    apt-get install --no-install-recommends tcpdump ethtool nginx-light curl dnsmasq-base udhcpc bind9-dnsutils \\
        openssh-server chrony iperf3 iputils-ping traceroute nmap avahi-daemon miniupnpc mosquitto mosquitto-clients \\
        redis-server redis-tools snmpd snmp tftpd-hpa vsftpd opensmtpd dovecot-imapd dovecot-pop3d sip-tester \\
        netcat-openbsd openssl
    python simulators/network/recorded/record.py recorded.pcap.gz    # as root, on Linux; four and a half minutes

An office: a router (DNS, DHCP, NTP) with a bridge, a server, and clients that browse, mail, copy, measure, publish and
scan; outside of it three places at different distances. All lie in namespaces without a way out, so no packet leaves
them. Addresses are those of RFC 1918, RFC 4193 and of documentation (RFC 5737, RFC 3849); hardware addresses, names and
contents are made up here. What is recorded is the office's bridge, with long packets cut (their length is kept).

Every process started here is ended by its pid, and the namespaces go, whatever happens. The clock is not touched.
It uses the standard library alone, and nothing of simpe needs it.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import gzip
import os
import queue
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

NAME = "simpe-"  # begins the names of the namespaces
DOMAIN = "office.internal"
LAN4, LAN6 = "192.168.20.", "fd20:53:4d::"
ROUTER, FILES = 1, 10  # the last part of their addresses

# Seconds one way, its jitter, TTL, IPv4 prefix, IPv6 prefix of what lies outside.
PLACES = {
    "near": (0.004, 0.002, 60, "198.51.100.", "2001:db8:1::"),
    "far": (0.022, 0.008, 52, "203.0.113.", "2001:db8:2::"),
}
LOSS = 0.002
TUNSETIFF, TAP_WITHOUT_HEADER = 0x400454CA, 0x1002  # linux/if_tun.h
SITES = ("www", "news", "shop", "video", "cdn", "mail", "login", "maps", "wiki", "images", "api", "updates")
DARK = 200  # from here on, nobody has the outer addresses

# Client -> what it does, the TTL of its system, and mean seconds between two things.
PERSONS = {
    **{f"desk-{i}": ("browse browse browse mail resolve ntp share odd call", 128, 3.0) for i in range(1, 7)},
    **{f"laptop-{i}": ("browse browse browse6 ping resolve mail odd odd", 64, 3.0) for i in range(1, 4)},
    **{f"dev-{i}": ("ssh browse redis measure trace share resolve upload snmp ping", 64, 3.0) for i in range(1, 4)},
    **{f"phone-{i}": ("browse browse6 browse6 discover resolve odd call", 64, 2.5) for i in range(1, 4)},
    **{f"sensor-{i}": ("publish publish publish log ntp resolve", 255, 2.0) for i in range(1, 4)},
    "camera-1": ("upload publish ntp log discover", 64, 2.5),
    "printer-1": ("discover snmp ntp log", 255, 3.0),
    "guest-1": ("scan ping browse odd scan trace", 64, 6.0),
}


LEASED = """#!/bin/sh
[ "$1" = bound ] || [ "$1" = renew ] || exit 0
ip address replace $ip/24 broadcast + dev eth0
ip route replace default via $router
"""
"""What udhcpc does with an address."""

CONFIGURATIONS = {
    "nginx": """
        daemon off; master_process off; user root; pid FOLDER/nginx-HOST.pid; error_log stderr; events {}
        http {
            access_log off; server_tokens off; reset_timedout_connection on; client_body_temp_path FOLDER/body-HOST;
            server {
                listen 80; listen 8080; listen [::]:80; listen 443 ssl http2; listen [::]:443 ssl http2;
                ssl_certificate FOLDER/cert.pem; ssl_certificate_key FOLDER/key.pem; root FOLDER/web;
                location /up { client_max_body_size 1m; return 204; }
                location /gone { return 444; }
                location /slow { alias FOLDER/web/long; limit_rate 30k; }
            }
        }
    """,
    "dnsmasq": """
        no-resolv
        no-hosts
        user=root
        pid-file=
        local-ttl=15
    """,
    "chronyd": """
        local stratum 3
        allow all
        cmdport 0
        bindcmdaddress /
        pidfile FOLDER/chronyd-HOST.pid
    """,
    "sshd": """
        HostKey FOLDER/ssh-host
        AuthorizedKeysFile FOLDER/ssh-user.pub
        StrictModes no
        UsePAM no
        PasswordAuthentication no
        PidFile none
        UseDNS no
    """,
    "mosquitto": """
        listener 1883
        allow_anonymous true
        user root
    """,
    "snmpd": """
        rocommunity public
        sysDescr made up
        sysName made-up
        sysLocation nowhere
        sysContact nobody
    """,
    "vsftpd": """
        listen=YES
        background=NO
        anonymous_enable=YES
        local_enable=NO
        anon_root=FOLDER/ftp
        no_anon_password=YES
        seccomp_sandbox=NO
        secure_chroot_dir=/run/sshd
        xferlog_enable=NO
        ftpd_banner=files
    """,
    "smtpd": """
        listen on eth0 port 25 hostname mx.DOMAIN
        listen on eth0 port 587 hostname mx.DOMAIN
        table all { "@" = nobody }
        action drop mda "cat > /dev/null" virtual <all>
        match from any for any action drop
    """,
    "dovecot": """
        base_dir = /run/dovecot
        protocols = imap pop3
        listen = *
        ssl = no
        disable_plaintext_auth = no
        log_path = /dev/stderr
        first_valid_uid = 1
        mail_location = maildir:~/box
        passdb {
            driver = static
            args = password=public
        }
        userdb {
            driver = static
            args = uid=mail gid=mail home=FOLDER/mail/%u
        }
    """,
    "avahi": """
        [server]
        host-name=HOST
        allow-interfaces=eth0
        enable-dbus=no
        [publish]
        publish-hinfo=no
        publish-workstation=no
    """,
}
"""Program -> its configuration. Nothing in one may tell of the machine: no HINFO, no system description."""


def mac(number: int) -> str:
    """A made-up, locally administered hardware address."""
    return f"02:53:49:4d:50:{number:02x}"


class Wire(threading.Thread):
    """A slow cable between two namespaces: frames arrive in order, late, and a few not at all."""

    def __init__(self, ends: tuple[tuple[str, str], tuple[str, str]], delay: float, jitter: float, random: Random):
        super().__init__(daemon=True)
        self._files = []
        for namespace, name in ends:
            file = os.open("/dev/net/tun", os.O_RDWR)
            made = fcntl.ioctl(file, TUNSETIFF, struct.pack("16sH22x", b"simpe%d", TAP_WITHOUT_HEADER))
            name_now = made[:16].rstrip(b"\0").decode()
            command("ip", "link", "set", name_now, "netns", namespace)
            command("ip", "-n", namespace, "link", "set", name_now, "name", name, "up")
            self._files.append(file)
        self._delay, self._jitter, self._random = delay, jitter, random

    def run(self) -> None:
        """Carry frames both ways until the process ends."""
        for source, target in (self._files, self._files[::-1]):
            due: queue.SimpleQueue[tuple[float, bytes]] = queue.SimpleQueue()
            threading.Thread(target=self._take, args=(source, due), daemon=True).start()
            threading.Thread(target=self._give, args=(due, target), daemon=True).start()

    def _take(self, file: int, due: queue.SimpleQueue[tuple[float, bytes]]) -> None:
        while True:
            try:
                frame = os.read(file, 65536)
            except OSError:  # the namespaces are gone
                return
            if self._random.random() >= LOSS:
                due.put((time.monotonic() + self._delay + self._random.expovariate(1 / self._jitter), frame))

    def _give(self, due: queue.SimpleQueue[tuple[float, bytes]], file: int) -> None:
        while True:
            at, frame = due.get()
            time.sleep(max(0.0, at - time.monotonic()))
            with contextlib.suppress(OSError):
                os.write(file, frame)


def command(*words: object) -> None:
    """Run a command that must succeed."""
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, words))}: {done.stderr.strip()}")


class Lab:
    """Namespaces and the processes in them, all gone at the end."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._namespaces: list[str] = []
        self.ending = threading.Event()

    def host(self, name: str, ttl: int = 64) -> str:
        """A new namespace; its name."""
        namespace = NAME + name
        command("ip", "netns", "add", namespace)
        self._namespaces.append(namespace)
        resolver = Path("/etc/netns", namespace)
        resolver.mkdir(parents=True)
        (resolver / "resolv.conf").write_text(f"nameserver {LAN4}{ROUTER}\nsearch {DOMAIN}\n")
        for setting in (f"net.ipv4.ip_default_ttl={ttl}", f"net.ipv6.conf.default.hop_limit={ttl}",
                        "net.ipv6.conf.default.accept_dad=0", "net.ipv6.conf.default.accept_ra=0"):  # fmt: skip
            command("ip", "netns", "exec", namespace, "sysctl", "-qw", setting)
        command("ip", "-n", namespace, "link", "set", "lo", "up")
        return namespace

    def start(self, host: str, *words: object) -> subprocess.Popen[bytes]:
        """A program that goes on, with a /run and a host name of its own."""
        private = (
            'for at in /run /var/spool; do mount -t tmpfs tmpfs $at; done; mkdir /run/sshd; hostname $0; exec "$@"'
        )
        with (self.folder / f"{Path(str(words[0])).name}-{host}.log").open("wb") as out:
            return subprocess.Popen(
                ["ip", "netns", "exec", NAME + host, "unshare", "--uts", "sh", "-c", private, host, *map(str, words)],
                stdin=subprocess.DEVNULL, stdout=out, stderr=out, cwd=self.folder, start_new_session=True,
            )  # fmt: skip

    def configured(self, program: str, host: str, more: str = "") -> Path:
        """A new file with the program's configuration on a host; its path."""
        text = textwrap.dedent(CONFIGURATIONS[program]).lstrip() + more + "\n"
        for word, meaning in (("FOLDER", str(self.folder)), ("DOMAIN", DOMAIN), ("HOST", host)):
            text = text.replace(word, meaning)
        return _write(self.folder / f"{program}-{host}.conf", text)

    def run(self, host: str, *words: object, limit: float = 15.0, text: str = "") -> None:
        """A program that ends by itself, or is ended after so many seconds."""
        if self.ending.is_set():
            return
        argv = ["ip", "netns", "exec", NAME + host, *map(str, words)]
        with contextlib.suppress(subprocess.TimeoutExpired):
            subprocess.run(
                argv, input=text.encode(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=limit,
                check=False, cwd=self.folder, env={"PATH": os.environ["PATH"], "HOME": str(self.folder)},
            )  # fmt: skip

    def close(self) -> None:
        """End what runs in the namespaces, first politely, and remove them."""
        self.ending.set()
        for kind in (signal.SIGTERM, signal.SIGTERM, signal.SIGKILL):
            left = [pid for namespace in self._namespaces for pid in _pids(namespace)]
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, kind)
            if left:
                time.sleep(1)
        for namespace in self._namespaces:
            subprocess.run(["ip", "netns", "del", namespace], check=False)
            shutil.rmtree(Path("/etc/netns", namespace), ignore_errors=True)


def _pids(namespace: str) -> Iterator[int]:
    found = subprocess.run(["ip", "netns", "pids", namespace], capture_output=True, text=True, check=False)
    return map(int, found.stdout.split())


def build(lab: Lab, random: Random) -> dict[str, int]:
    """The office, what lies outside, and all cables; returns each client's number on the net."""
    router = lab.host("router")
    _settings(router, "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1", "net.ipv6.conf.default.disable_ipv6=1")
    command("ip", "-n", router, "link", "add", "name", "br0", "address", mac(ROUTER), "type", "bridge")
    _settings(router, "net.ipv6.conf.br0.disable_ipv6=0")
    _no_offload(router, "br0")
    command("ip", "-n", router, "link", "set", "br0", "up")
    command("ip", "-n", router, "address", "add", f"{LAN4}{ROUTER}/24", "broadcast", "+", "dev", "br0")
    command("ip", "-n", router, "address", "add", f"{LAN6}{ROUTER}/64", "dev", "br0")
    clients = {name: 101 + i for i, name in enumerate(PERSONS)}
    for name, number in {"files": FILES, **clients}.items():
        host = lab.host(name, PERSONS[name][1] if name in PERSONS else 64)
        port = f"p{number}"
        command("ip", "-n", router, "link", "add", "name", port, "address", mac(0xFF), "type", "veth", "peer", "name",
                "eth0", "address", mac(number), "netns", host)  # fmt: skip
        command("ip", "-n", router, "link", "set", port, "master", "br0", "up")
        for namespace, device in ((router, port), (host, "eth0")):
            _no_offload(namespace, device)
        command("ip", "-n", host, "link", "set", "eth0", "up")
        command("ip", "-n", host, "address", "add", f"{LAN6}{number}/64", "dev", "eth0")
        command("ip", "-n", host, "route", "add", "default", "via", f"{LAN6}{ROUTER}")
    for i, (name, (delay, jitter, ttl, four, six)) in enumerate(PLACES.items()):
        host = lab.host(name, ttl)
        wire = Wire(((router, f"w{i}"), (host, "eth0")), delay, jitter, random)
        wire.start()
        _settings(router, f"net.ipv6.conf.w{i}.disable_ipv6=0")
        for namespace, device, last in ((router, f"w{i}", 254), (host, "eth0", 253)):
            command("ip", "-n", namespace, "address", "add", f"{four}{last}/24", "dev", device)
            command("ip", "-n", namespace, "address", "add", f"{six}{last}/64", "dev", device, "nodad")
        for number in range(10, 60):
            command("ip", "-n", host, "address", "add", f"{four}{number}/24", "dev", "eth0")
            command("ip", "-n", host, "address", "add", f"{six}{number}/64", "dev", "eth0", "nodad")
        command("ip", "-n", host, "route", "add", f"{LAN4}0/24", "via", f"{four}254")
        command("ip", "-n", host, "route", "add", f"{LAN6}/64", "via", f"{six}254")
        # What nobody has is routed there and falls silent there.
        command("ip", "-n", router, "route", "add", f"{four}{DARK}/29", "via", f"{four}253")
    return clients


def _no_offload(namespace: str, device: str) -> None:
    """Checksums are written and packets are as long as on a cable."""
    command("ip", "netns", "exec", namespace, "ethtool", "-K", device, "tx", "off", "gso", "off", "gro", "off")


def _settings(namespace: str, *settings: str) -> None:
    for setting in settings:
        command("ip", "netns", "exec", namespace, "sysctl", "-qw", setting)


def serve(lab: Lab, clients: dict[str, int], random: Random) -> None:
    """Start the servers."""
    folder = lab.folder
    for name in ("web", "ftp", "tftp", "mail"):
        (folder / name).mkdir()
    for i in range(40):
        (folder / "web" / f"{i}.html").write_bytes(random.randbytes(int(random.lognormvariate(8, 1.2)) + 200))
    for path, size in (("web/long", 400_000), ("ftp/short", 5_000), ("tftp/boot.cfg", 3_000)):
        (folder / path).write_bytes(random.randbytes(size))
    shutil.chown(folder / "mail", "mail", "mail")
    key, certificate = folder / "key.pem", folder / "cert.pem"
    words = "openssl req -x509 -newkey rsa:2048 -nodes -days 3650 -subj /CN=example.com".split()
    command(*words, "-keyout", key, "-out", certificate)
    for kind in ("host", "user"):
        command("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", kind, "-f", folder / f"ssh-{kind}")
    lab.run("files", "ip", "address", "add", f"{LAN4}{FILES}/24", "broadcast", "+", "dev", "eth0")
    lab.run("files", "ip", "route", "add", "default", "via", f"{LAN4}{ROUTER}")

    outer, inner = _names(clients)
    for host, lines in {"near": outer, "far": outer, "router": inner}.items():
        lab.start(host, "dnsmasq", "-k", "-C", lab.configured("dnsmasq", host, "\n".join(lines)))
        lab.start(host, "chronyd", "-x", "-d", "-u", "root", "-f", lab.configured("chronyd", host))
    for host in ("near", "far", "files"):
        lab.start(host, "nginx", "-e", "stderr", "-c", lab.configured("nginx", host))
        lab.start(host, "iperf3", "-s")
    for host in ("files", "far"):
        lab.start(host, "/usr/sbin/sshd", "-D", "-e", "-f", lab.configured("sshd", host))
    for host in ("files", "near"):
        lab.start(host, "mosquitto", "-c", lab.configured("mosquitto", host))
    for host in ("files", "router", "printer-1"):
        lab.start(host, "snmpd", "-f", "-Lo", "-C", "-c", lab.configured("snmpd", host), "udp:161")
    lab.start("files", "vsftpd", lab.configured("vsftpd", "files"))
    lab.start("files", "smtpd", "-d", "-f", lab.configured("smtpd", "files"))
    lab.start("files", "dovecot", "-F", "-c", lab.configured("dovecot", "files"))
    lab.start("files", "in.tftpd", "-L", "-s", folder / "tftp", "-a", "0.0.0.0:69")
    lab.start("files", "redis-server", "--bind", "0.0.0.0", "--protected-mode", "no", "--save", "")
    lab.start("files", "nc", "-k", "-l", "-u", f"{LAN4}{FILES}", "514")
    lab.start("files", "sipp", "-sn", "uas", "-i", f"{LAN4}{FILES}", "-nostdin")
    publish = 'mount --bind "$0" /etc/avahi/services && mkdir -p /run/avahi-daemon && exec "$@"'
    for host in ("printer-1", "camera-1", "laptop-1", "phone-1", "files"):
        services = folder / f"services-{host}"
        services.mkdir()
        service = "<service><type>_http._tcp</type><port>80</port></service>"
        _write(services / "http.service", f"<service-group><name>{host}</name>{service}</service-group>")
        lab.start(host, "sh", "-c", publish, services, "avahi-daemon", "--no-drop-root", "--no-chroot", "--no-rlimits",
                  "-f", lab.configured("avahi", host))  # fmt: skip


def _names(clients: dict[str, int]) -> tuple[list[str], list[str]]:
    """What dnsmasq is told outside and inside."""
    outer = [f"txt-record=example.{top},v=spf1 -all" for top in ("com", "net")]
    for i, site in enumerate(SITES):
        for j, (top, (*_, four, six)) in enumerate(zip(("com", "net"), PLACES.values(), strict=True)):
            outer.append(f"host-record={site}.example.{top},{four}{10 + 2 * i + j},{six}{10 + 2 * i + j}")
    outer.append(f"host-record=old.example.com,{PLACES['far'][3]}{DARK + 1}")
    inner = [
        "interface=br0", "bind-interfaces", f"server={PLACES['near'][3]}53", f"domain={DOMAIN}", "expand-hosts",
        f"local=/{DOMAIN}/", "bogus-priv", f"dhcp-range={LAN4}100,{LAN4}199,2m", "dhcp-authoritative",
        "dhcp-leasefile=FOLDER/leases", f"dhcp-range={LAN6},ra-only", "enable-ra", f"mx-host={DOMAIN},mx.{DOMAIN},10",
        f"host-record=mx.{DOMAIN},files.{DOMAIN},{LAN4}{FILES},{LAN6}{FILES}",
        *(f"dhcp-host={mac(number)},{name},{LAN4}{number}" for name, number in clients.items()),
    ]  # fmt: skip
    return outer, inner


def _write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


class Client(threading.Thread):
    """Somebody at a client, who does one thing after another until the lab ends."""

    def __init__(self, lab: Lab, name: str, number: int, seed: int):
        super().__init__(daemon=True)
        self.lab, self.host, self.number, self.random = lab, name, number, Random(f"{seed} {name}")
        doings, _, self.pause = PERSONS[name]
        self.doings: list[Callable[[], None]] = [getattr(self, doing) for doing in doings.split()]

    def run(self) -> None:
        """Get an address, then live."""
        self.lab.ending.wait(self.random.uniform(0, 8))
        self.lease()
        leased = time.monotonic()
        while not self.lab.ending.wait(self.random.expovariate(1 / self.pause)):
            if time.monotonic() - leased > self.random.uniform(60, 100):
                self.lease()
                leased = time.monotonic()
            self.random.choice(self.doings)()

    def tool(self, *words: object, limit: float = 15.0, text: str = "") -> None:
        """Run a program on this client."""
        self.lab.run(self.host, *words, limit=limit, text=text)

    def outside(self, last: int | None = None) -> str:
        """An address outside."""
        prefix = self.random.choice([place[3] for place in PLACES.values()])
        return f"{prefix}{self.random.randrange(10, 60) if last is None else last}"

    def site(self) -> str:
        """The name of a site; some are visited more than others."""
        return f"{SITES[int(len(SITES) * self.random.random() ** 2)]}.example.{self.random.choice(('com', 'net'))}"

    def lease(self) -> None:
        """Ask for an address, with the name of the host."""
        self.tool("udhcpc", "-q", "-n", "-f", "-t", 3, "-T", 1, "-i", "eth0", "-x", f"hostname:{self.host}",
                  "-s", self.lab.folder / "leased")  # fmt: skip

    def browse(self, family: str = "-4") -> None:
        """A page and what hangs on it, plain or over TLS."""
        scheme = self.random.choices(("https", "http"), (3, 1))[0]
        for _ in range(self.random.choice((1, 1, 2))):
            site = self.site()
            pages = [f"{scheme}://{site}/{self.random.randrange(40)}.html" for _ in range(self.random.randint(1, 4))]
            several = self.random.choice((["-Z"], [])) if scheme == "http" else []
            version = self.random.choice(("--http1.1", "--http2", "--tls-max=1.2"))
            version = "--http1.1" if scheme == "http" else version.replace("=", " ")
            self.tool("curl", "-sk", family, *several, *version.split(), "-m", 8, *pages)

    def browse6(self) -> None:
        """A page over IPv6."""
        self.browse("-6")

    def upload(self) -> None:
        """Send a file to the web."""
        size = int(self.random.lognormvariate(9.5, 1)) + 100
        body = self.random.randbytes(size // 2).hex()
        self.tool("curl", "-sk", "--data-binary", "@-", f"https://{self.site()}/up", text=body)

    def resolve(self) -> None:
        """Ask for names, of all kinds, of several servers."""
        kind = self.random.choice(("A", "AAAA", "MX", "TXT", "PTR", "SRV", "NONE"))
        name = {"MX": DOMAIN, "TXT": "example.com", "SRV": f"_ldap._tcp.{DOMAIN}", "NONE": "nobody.example.org"}
        server = self.random.choices((f"{LAN4}{ROUTER}", f"{LAN6}{ROUTER}", self.outside(53)), (4, 1, 1))[0]
        words: list[object] = ["dig", "+tries=1", "+time=2", f"@{server}"]
        if kind == "PTR":
            words += ["-x", f"{LAN4}{self.random.choice((FILES, ROUTER, 101, 150))}"]
        else:
            words += [name.get(kind, self.site()), "A" if kind == "NONE" else kind]
        self.tool(*words, *self.random.choices(([], ["+tcp"]), (9, 1))[0])

    def mail(self) -> None:
        """Send a letter, or look for some."""
        what = self.random.choice(("send", "imap", "imap", "pop3"))
        if what == "send":
            text = f"From: {self.host}@{DOMAIN}\nTo: all@{DOMAIN}\nSubject: hello\n\n" + "A line of text.\n" * (
                self.random.randrange(1, 400)
            )
            port = self.random.choice((25, 587))
            self.tool("curl", "-s", f"smtp://files:{port}/{self.host}.{DOMAIN}", "--mail-from",
                      f"{self.host}@{DOMAIN}", "--mail-rcpt", f"all@{DOMAIN}", "-T", "-", text=text)  # fmt: skip
        else:
            self.tool("curl", "-s", "-u", f"{self.host}:public", f"{what}://files/{'INBOX' if what == 'imap' else ''}")

    def ntp(self) -> None:
        """Ask for the time, without setting the clock."""
        server = self.random.choice((f"{LAN4}{ROUTER}", self.outside(), f"{LAN6}{ROUTER}"))
        pid = self.lab.folder / f"chrony-{self.host}.pid"
        self.tool("chronyd", "-x", "-Q", "-t", 6, "-u", "root", "-f", "/dev/null",
                  f"server {server} iburst maxsamples 2", "cmdport 0", "bindcmdaddress /",
                  f"pidfile {pid}")  # fmt: skip

    def share(self) -> None:
        """Fetch a file from the server in the office."""
        url = self.random.choice(
            ("ftp://files/short", "tftp://files/boot.cfg", "http://files:8080/7.html", "ftp://files/")
        )
        self.tool("curl", "-s", "-m", 6, url)

    def call(self) -> None:
        """A short telephone call."""
        self.tool("sipp", "-sn", "uac", "-i", f"{LAN4}{self.number}", "-m", 1, "-l", 1, "-d",
                  self.random.randrange(500, 4000), "-nostdin", f"{LAN4}{FILES}", limit=8)  # fmt: skip

    def ping(self) -> None:
        """Is it there? Not always."""
        target = self.random.choice((f"{LAN4}{ROUTER}", self.outside(), self.outside(DARK + 2), f"{LAN6}{FILES}",
                                     f"{PLACES['far'][4]}12"))  # fmt: skip
        self.tool("ping", "-c", self.random.randint(1, 6), "-i", 0.5, "-W", 1, "-s",
                  self.random.choice((56, 56, 120, 1200)), target)  # fmt: skip

    def odd(self) -> None:
        """What goes wrong: refused, unanswered, broken off by either side."""
        site = self.site()
        which = self.random.choices(range(5), (2, 2, 3, 5, 2))[0]
        if which == 0:
            self.tool("curl", "-s", "-m", 2, f"http://{site}:{self.random.choice((8443, 3128, 8888, 81))}/")
        elif which == 1:
            self.tool(
                "curl", "-s", "-m", 3, f"https://{self.random.choice(('old.example.com', self.outside(DARK + 3)))}/"
            )
        elif which == 2:
            self.tool("curl", "-s", "-m", self.random.uniform(0.4, 1.5), f"http://{site}/slow")
        elif which == 3:
            self.tool("curl", "-s", "-m", 4, f"http://{site}/gone")
        else:
            self.tool("curl", "-s", "-m", 2, f"telnet://files:{self.random.choice((23, 3389, 5432, 445))}")

    def ssh(self) -> None:
        """Work on another machine, or copy a file there."""
        server = self.random.choice((f"{LAN4}{FILES}", self.outside()))
        words = ["ssh", "-F", "none", "-i", self.lab.folder / "ssh-user", "-o", "StrictHostKeyChecking=no", "-o",
                 "UserKnownHostsFile=/dev/null", f"root@{server}"]  # fmt: skip
        if self.random.random() < 0.4:
            self.tool(*words, "cat > /dev/null", text=self.random.randbytes(20_000).hex())
        else:
            lines = " ".join(str(self.random.randrange(5, 300)) for _ in range(self.random.randint(1, 8)))
            self.tool(*words, f"for n in {lines}; do seq $n; sleep 0.3; done")

    def redis(self) -> None:
        """Some values, written and read."""
        text = "".join(f"SET key{i} {'v' * self.random.randrange(200)}\nGET key{i}\n" for i in range(20))
        self.tool("redis-cli", "-h", f"{LAN4}{FILES}", text=text)

    def measure(self) -> None:
        """How fast is it? Little is sent, to keep the recording small."""
        server = self.random.choice((f"{LAN4}{FILES}", self.outside()))
        how = self.random.choice((["-n", "150K"], ["-R", "-n", "150K"], ["-u", "-b", "200K", "-l", 400, "-t", 1]))
        self.tool("iperf3", "-c", server, *how, limit=6)

    def trace(self) -> None:
        """Which way do packets take?"""
        kind = self.random.choice((["-I"], []))
        self.tool("traceroute", "-n", *kind, "-w", 1, "-q", 1, "-m", 4, self.outside(), limit=8)

    def snmp(self) -> None:
        """Ask a device about itself."""
        host = self.random.choice((f"{LAN4}{FILES}", f"{LAN4}{ROUTER}"))
        system = "1.3.6.1.2.1.1"
        what = self.random.choice((["snmpget", f"{system}.5.0", f"{system}.6.0"], ["snmpwalk", system]))
        self.tool(what[0], "-v2c", "-c", "public", "-t", 1, "-r", 0, host, *what[1:], limit=5)

    def publish(self) -> None:
        """A reading to the broker; some wait for others' readings."""
        broker = self.random.choices((f"{LAN4}{FILES}", self.outside()), (3, 1))[0]
        if self.random.random() < 0.25:
            self.tool("mosquitto_sub", "-h", broker, "-t", "#", "-W", self.random.randint(3, 9), limit=12)
        else:
            value = f'{{"sensor": "{self.host}", "value": {self.random.gauss(20, 3):.2f}}}'
            self.tool("mosquitto_pub", "-h", broker, "-t", f"office/{self.host}", "-q", self.random.randint(0, 1), "-l",
                      text=(value + "\n") * self.random.randint(1, 12))  # fmt: skip

    def log(self) -> None:
        """A few lines to the log of the office."""
        for _ in range(self.random.randint(1, 3)):
            self.tool("unshare", "--uts", "sh", "-c", 'hostname "$0" && exec "$@"', self.host, "logger", "-d", "-n",
                      f"{LAN4}{FILES}", "-t", "reading", "value " + "7" * self.random.randrange(1, 60))  # fmt: skip

    def discover(self) -> None:
        """Who else is here?"""
        if self.random.random() < 0.5:
            self.tool("upnpc", "-m", "eth0", "-l", limit=10)
        else:
            group = self.random.choice(("224.0.0.251", "ff02::fb%eth0"))
            name = self.random.choice(("printer-1.local", "camera-1.local", "_http._tcp.local", "tv.local"))
            kind = "PTR" if name.startswith("_") else "A"
            self.tool("dig", "-p", 5353, "+tries=2", "+time=1", f"@{group}", name, kind, limit=4)

    def scan(self) -> None:
        """What is open?"""
        first = self.random.randrange(20, 1000)
        target, ports, how = self.random.choice((
            (f"{LAN4}{FILES}", f"22,80,{first}-{first + 30}", "-sT"),
            (f"{LAN4}{FILES}", f"21-25,443,{first}-{first + 20}", "-sS"),
            (self.outside(DARK + 1), f"{first}-{first + 8}", "-sS"),
            (f"{LAN4}{ROUTER}", "53,67,123,137,161,1900,5060", "-sU"),
        ))  # fmt: skip
        self.tool("nmap", "-n", "-Pn", "--max-retries", 1, "--disable-arp-ping", how, "-p", ports, target, limit=30)


def record(target: Path, seconds: float, seed: int, keep_logs: Path | None) -> None:
    """Build the lab, let everybody live in it for so long, and write what was on the bridge, packed.

    Raises SystemExit where a program is missing, a command fails, or the recording names this machine.
    """
    random = Random(seed)
    with tempfile.TemporaryDirectory(prefix="record-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        lab = Lab(folder)
        try:
            clients = build(lab, random)
            leased = _write(folder / "leased", LEASED)
            leased.chmod(0o755)
            serve(lab, clients, random)
            people = [Client(lab, name, number, seed) for name, number in clients.items()]
            # A few conversations are older than the recording.
            for client in people[-6:]:
                client.lease()
                lab.start(client.host, "mosquitto_sub", "-h", f"{LAN4}{FILES}", "-t", "office/sensor-1", "-k", 15)
            time.sleep(2)
            raw = folder / "raw.pcap"
            dump = lab.start("router", "tcpdump", "-i", "br0", "-n", "-U", "-Z", "root", "-w", raw)
            time.sleep(1)
            for client in people:
                client.start()
            time.sleep(seconds)
            dump.send_signal(signal.SIGINT)
            dump.wait(10)
            lab.ending.set()
        finally:
            lab.close()
            if keep_logs is not None:
                shutil.copytree(folder, keep_logs, dirs_exist_ok=True)
        packed = gzip.compress(cut(raw.read_bytes()), 9, mtime=0)
    target.write_bytes(packed)
    print(f"{target}: {len(packed):,} bytes")


def cut(capture: bytes) -> bytes:
    """A little-endian capture on Ethernet, with packets cut to what is worth keeping.

    Short ones stay whole; of longer ones of TCP, the headers and the first words stay. Raises SystemExit where what
    is left names this machine.
    """
    out, at = [capture[:24]], 24  # a file's header, then packets with headers of four numbers
    while at + 16 <= len(capture):
        seconds, fraction, held, length = struct.unpack_from("<IIII", capture, at)
        frame = capture[at + 16 : at + 16 + held]
        at += 16 + held
        kind = frame[12:14]
        protocol = frame[23] if kind == b"\x08\x00" else frame[20] if kind == b"\x86\xdd" else 0
        kept = frame[: 104 if protocol == 6 and length > 180 else 600]
        out += [struct.pack("<IIII", seconds, fraction, len(kept), length), kept]
    written = b"".join(out)
    names = {socket.gethostname(), socket.getfqdn(), os.uname().release, str(Path(__file__).parents[1])}
    ours = {name.encode() for name in names if len(name) > 3}
    for address in Path("/sys/class/net").glob("*/address"):
        ours.add(bytes.fromhex(address.read_text().strip().replace(":", "")))
    if any(any(one) and one in written for one in ours):  # loopback has zeros
        raise SystemExit("the recording names this machine")
    return written


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Record the capture that comes with simpe (needs root).")
    parser.add_argument("target", type=Path, help="the capture to write, ending in .pcap.gz")
    parser.add_argument("--seconds", type=float, default=240, help="how long (default 240)")
    parser.add_argument("--seed", type=int, default=0, help="seed of what people do; timing is the machine's")
    parser.add_argument("--logs", type=Path, help="keep configurations and logs here")
    options = parser.parse_args()
    if os.geteuid() != 0:
        sys.exit("network namespaces need root")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    record(options.target, options.seconds, options.seed, options.logs)


if __name__ == "__main__":
    main()
