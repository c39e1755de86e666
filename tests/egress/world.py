"""A machine and an internet of its own, in two network namespaces without a route out.

Started as `unshare --net --mount python world.py DIRECTORY`, it makes the second namespace, joins the two with a cable,
and waits until its standard input ends; then everything is gone. The internet answers for every address: HTTP on port
80 and 443 (by DIRECTORY/site.py, where there is one), a refusal on port 81, an echo on every other; a DNS server of the
table below is at 10.99.0.2.
"""

from __future__ import annotations

import asyncio
import runpy
import socket
import ssl
import struct
import subprocess
import sys
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

NEAR, FAR = "10.99.0.1", "10.99.0.2"
PUBLIC, PUBLIC6, OTHER = "93.184.216.34", "2606:2800::1", "93.184.216.35"
ECHO_PORT = 9999
# Answers in turn, for each question about the name: addresses of A and of AAAA together; the last one stays.
NAMES = {
    "web.example.com": [[PUBLIC, PUBLIC6]],
    "other.example.com": [[OTHER]],
    "six.example.com": [[PUBLIC6]],
    "rebind.example.com": [[PUBLIC], ["127.0.0.1"]],
    "mixed.example.com": [["127.0.0.1", "169.254.169.254", "::1", PUBLIC]],
    "inner.example.com": [[NEAR, "fd99::1"]],
    "loop.example.com": [["127.0.0.1", "::1"]],
    "mapped.example.com": [["::ffff:127.0.0.1"]],
    "metadata.example.com": [["169.254.169.254", "fd00:ec2::254", "100.100.100.200", "168.63.129.16"]],
    "nat64.example.com": [["64:ff9b::7f00:1", "2002:7f00:1::1"]],
    "unspecified.example.com": [["0.0.0.0", "::"]],
}
SILENT = "silent.example.com"
_RULES = f"""
table inet world {{
  chain in {{
    type nat hook prerouting priority -100;
    tcp dport != {{ 80, 81, 443, {ECHO_PORT} }} redirect to :{ECHO_PORT}
  }}
}}
""".replace("chain in ", "chain incoming ")


class Dns(asyncio.DatagramProtocol):
    """Knows NAMES, and writes down what it is asked."""

    def __init__(self, asked: Path) -> None:
        self._asked = asked
        self._turns: Counter[str] = Counter()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def datagram_received(self, data: bytes, sender: tuple[str, int]) -> None:
        labels, at = [], 12
        while data[at]:
            labels.append(data[at + 1 : at + 1 + data[at]].decode().lower())
            at += 1 + data[at]
        name, kind = ".".join(labels), int.from_bytes(data[at + 1 : at + 3], "big")
        with self._asked.open("a") as file:
            file.write(f"{name} {kind}\n")
        if name == SILENT:
            return
        turns = NAMES.get(name, [])
        listed = turns[min(self._turns[name], len(turns) - 1)] if turns else []
        self._turns[name] += kind == 28  # the second of a pair of questions
        family = {1: socket.AF_INET, 28: socket.AF_INET6}.get(kind)
        packed = [socket.inet_pton(family, text) for text in listed if (":" in text) == (kind == 28)] if family else []
        head = data[:2] + struct.pack("!HHHHH", 0x8180 if turns else 0x8183, 1, len(packed), 0, 0)
        answers = [struct.pack("!HHHIH", 0xC00C, kind, 1, 0, len(each)) + each for each in packed]
        self._transport.sendto(head + data[12 : at + 5] + b"".join(answers), sender)


async def http(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """One answer, which names the request's path and the address that was asked; for /bytes/N so many bytes."""
    head = await reader.readuntil(b"\r\n\r\n")
    path = head.split()[1].decode()
    body = f"{path} at {writer.get_extra_info('sockname')[0]}".encode()
    if path.startswith("/bytes/"):
        body = (body * (int(path.removeprefix("/bytes/")) // len(body) + 1))[: int(path.removeprefix("/bytes/"))]
    writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
    await writer.drain()
    writer.close()


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Everything back; the end, too."""
    while data := await reader.read(1 << 16):
        writer.write(data)
        await writer.drain()
    writer.close()


def certified(directory: Path) -> ssl.SSLContext:
    """A certificate of its own for web.example.com."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "web.example.com")])
    now = datetime.now(UTC)
    made = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    made = made.serial_number(1).not_valid_before(now - timedelta(1)).not_valid_after(now + timedelta(1))
    made = made.add_extension(x509.SubjectAlternativeName([x509.DNSName("web.example.com")]), critical=False)
    pem = made.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM)
    (directory / "web.pem").write_bytes(pem)
    both = directory / "web-key.pem"
    both.write_bytes(pem + key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(both)
    return context


async def internet(directory: Path) -> None:
    """The far namespace's servers."""
    loop = asyncio.get_running_loop()
    site = runpy.run_path(str(directory / "site.py"))["serve"] if (directory / "site.py").exists() else http
    for handler, port, tls in ((site, 80, None), (site, 443, certified(directory)), (echo, ECHO_PORT, None)):
        for host in ("0.0.0.0", "::"):
            await asyncio.start_server(handler, host, port, backlog=1024, ssl=tls)
    await loop.create_datagram_endpoint(lambda: Dns(directory / "asked"), local_addr=(FAR, 53))
    print("ready", flush=True)
    await asyncio.Event().wait()


def sh(command: str, given: str = "") -> None:
    subprocess.run(command.split(), input=given, text=True, check=True)


def main() -> None:
    directory = Path(sys.argv[1])
    if len(sys.argv) > 2:
        print("apart", flush=True)
        sys.stdin.readline()
        asyncio.run(internet(directory))
    command = ["unshare", "--net", sys.executable, "-I", __file__, sys.argv[1], "far"]
    far = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    far.stdout.readline()
    inside = f"nsenter -t {far.pid} -n"
    sh(f"ip link add near type veth peer name far netns {far.pid}")
    for prefix, name, last in (("", "near", 1), (f"{inside} ", "far", 2)):
        sh(f"{prefix}ip link set lo up")
        sh(f"{prefix}ip link set {name} up")
        sh(f"{prefix}ip addr add 10.99.0.{last}/24 dev {name}")
        sh(f"{prefix}ip -6 addr add fd99::{last}/64 dev {name} nodad")
    sh(f"ip route add default via {FAR}")
    sh("ip -6 route add default via fd99::2")
    sh(f"{inside} ip route add local 0.0.0.0/0 dev lo")
    sh(f"{inside} ip -6 route add local ::/0 dev lo")
    # Such routes are asked first; without these two the machine itself would be among "every address".
    sh(f"{inside} ip route add 10.99.0.0/24 dev far table local")
    sh(f"{inside} ip -6 route add fd99::/64 dev far table local")
    sh(f"{inside} nft -f -", _RULES)
    resolv = directory / "resolv.conf"
    resolv.write_text(f"nameserver {FAR}\n")
    sh(f"mount --bind {resolv} /etc/resolv.conf")
    far.stdin.write("go\n")
    far.stdin.flush()
    print(far.stdout.readline().strip(), flush=True)
    sys.stdin.read()
    far.kill()
    far.wait()


if __name__ == "__main__":
    main()
