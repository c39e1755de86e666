"""What a function sees of it, in the real jail: its usual libraries work unchanged, and a refusal says why."""

from __future__ import annotations

import pytest

from bento_tor.egress.grants import Caps

pytestmark = pytest.mark.sandbox

PRELUDE = """
import _socket, asyncio, errno, os, socket, threading, time

def page(sock):
    with sock:
        sock.sendall(b'GET /page HTTP/1.0\\r\\n\\r\\n')
        return b''.join(iter(lambda: sock.recv(4096), b'')).partition(b'\\r\\n\\r\\n')[2].decode()

def fetch(url):
    import urllib.request
    return urllib.request.urlopen(url, timeout=20).read().decode()

def requested(url, **options):
    import requests
    return requests.get(url, timeout=20, **options).text

def plain(url):
    import requests
    session = requests.Session()
    session.trust_env = False
    return session.get(url, timeout=20).text

async def streamed(host):
    reader, writer = await asyncio.open_connection(host, 80)
    writer.write(b'GET /page HTTP/1.0\\r\\n\\r\\n')
    text = await reader.read()
    writer.close()
    return text.partition(b'\\r\\n\\r\\n')[2].decode()

def old_way(host):
    sock = socket.socket()
    sock.connect((host, 80))
    assert sock.getpeername() == (host, 80)
    return page(sock)

def own_server():
    server = socket.create_server(('127.0.0.1', 0))
    client = socket.create_connection(server.getsockname())
    one, _ = server.accept()
    one.sendall(b'hello')
    return client.recv(5).decode()

def attempt(action):
    try:
        return str(action())
    except OSError as error:
        return f'{type(error).__name__} {errno.errorcode.get(error.errno)}: {error}'

def f():
    return attempt(lambda: ACTION)
"""
WEB = "http://web.example.com/page"
WORKS = [
    ("requests", f"requested('{WEB}')"),
    ("requests without the environment", f"plain('{WEB}')"),
    ("urllib", f"fetch('{WEB}')"),
    ("create_connection by name", "page(socket.create_connection(('web.example.com', 80), 20))"),
    ("create_connection by address", "page(socket.create_connection(('93.184.216.34', 80)))"),
    ("create_connection by IPv6", "page(socket.create_connection(('2606:2800::1', 80)))"),
    ("a plain socket", "old_way('web.example.com')"),
    ("asyncio", "asyncio.run(streamed('web.example.com'))"),
    ("api.connect", "page(api.connect('web.example.com', 80))"),
    ("a program that knows a proxy", "page(__import__('socks').create_connection(('web.example.com', 80), "
     "proxy_type=2, proxy_addr='127.0.0.1', proxy_port=1080))"),
]  # fmt: skip
NOT_ALLOWED = "this box's policy does not allow it"
NO_HOST = "there is no such host, or this box's policy does not allow it"
REFUSED = [
    ("a port by requests", "requested('http://web.example.com:22/')", NOT_ALLOWED),
    ("a port by urllib", "fetch('http://web.example.com:22/')", NOT_ALLOWED),
    ("a port by a socket", "socket.create_connection(('web.example.com', 22))",
     "PermissionError EACCES: [Errno 13] no connection to web"),
    ("a number instead of an error", "errno.errorcode[socket.socket().connect_ex(('93.184.216.35', 80))]", "EACCES"),
    ("metadata", "socket.create_connection(('169.254.169.254', 80))", NOT_ALLOWED),
    ("the host's network", "socket.create_connection(('10.99.0.1', 80))", NOT_ALLOWED),
    ("the host's network by name", "fetch('http://inner.example.com/')", NO_HOST),
    ("loopback by name", "fetch('http://loop.example.com/')", NO_HOST),
    ("loopback mapped", "socket.create_connection(('::ffff:127.0.0.1', 80))", NOT_ALLOWED),
    ("a name that is none", "fetch('http://nothing.example.com/')", NO_HOST),
    ("an onion", "socket.create_connection(('abcdefghijklmnop.onion', 80))", NOT_ALLOWED),
    ("a closed port", "socket.create_connection(('93.184.216.34', 81))", "connection refused"),
    # Its own loopback is its own: nothing of the host's is there.
    ("loopback", "socket.create_connection(('127.0.0.1', 9051))", "ConnectionRefusedError ECONNREFUSED"),
    # Ways round.
    ("round the patch", "_socket.socket().connect(('93.184.216.34', 80))", "OSError ENETUNREACH"),
    ("round it by IPv6", "_socket.socket(_socket.AF_INET6).connect(('2606:2800::1', 80))", "OSError ENETUNREACH"),
    ("a datagram", "socket.socket(type=socket.SOCK_DGRAM).sendto(b'x', ('93.184.216.34', 53))", "OSError ENETUNREACH"),
    ("the DNS", "_socket.gethostbyname('web.example.com')", "gaierror"),
]  # fmt: skip


@pytest.fixture(scope="module")
def web_broker(egress, world):
    policy = egress.WEB_POLICY.replace("accept *:1000-1999", "accept *:81\naccept *:8000")
    with egress.start_broker(world, policy=policy) as broker:
        yield broker


@pytest.mark.parametrize("action", [row[1] for row in WORKS], ids=[row[0] for row in WORKS])
def test_works_unchanged(inside, door_jail, web_broker, action):
    talk = inside.run_inside(door_jail, web_broker, PRELUDE.replace("ACTION", action))
    assert len(talk.messages) == 1, talk
    assert talk.messages[0].decode().startswith("/page at "), talk


@pytest.mark.parametrize(("action", "said"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED])
def test_is_refused(inside, door_jail, web_broker, action, said):
    talk = inside.run_inside(door_jail, web_broker, PRELUDE.replace("ACTION", action))
    assert len(talk.messages) == 1, talk
    assert said in talk.messages[0].decode(), talk


@pytest.mark.parametrize(
    "action",
    [
        "urllib.request.urlopen(URL, context=ssl.create_default_context(cadata=PEM)).read().decode()",
        "__import__('requests').get(URL, verify=pem_file()).text",
        "asyncio.run(tls())",
    ],
    ids=["urllib", "requests", "asyncio"],
)
def test_tls_from_end_to_end(inside, egress, world, door_jail, action):
    source = """
import ssl, urllib.request
URL = 'https://web.example.com/page'
def pem_file():
    with open('/data/pem', 'w') as file: file.write(PEM)
    return '/data/pem'
async def tls():
    context = ssl.create_default_context(cadata=PEM)
    reader, writer = await asyncio.open_connection('web.example.com', 443, ssl=context)
    writer.write(b'GET /page HTTP/1.0\\r\\n\\r\\n')
    return (await reader.read()).partition(b'\\r\\n\\r\\n')[2].decode()
"""
    pem = f"PEM = {(world.directory / 'web.pem').read_text()!r}\n"
    with egress.start_broker(world) as broker:
        talk = inside.run_inside(door_jail, broker, pem + source + PRELUDE.replace("ACTION", action))
    assert len(talk.messages) == 1, talk
    assert talk.messages[0].startswith(b"/page at "), talk


def test_a_server_of_its_own_is_its_own_affair(inside, door_jail, web_broker):
    talk = inside.run_inside(door_jail, web_broker, PRELUDE.replace("ACTION", "own_server()"))
    assert talk.messages == [b"hello"], talk


def test_the_manifests_hosts_are_named_in_the_refusal(inside, door_jail, web_broker):
    source = PRELUDE.replace("ACTION", "fetch('http://other.example.com/')")
    talk = inside.run_inside(door_jail, web_broker, source, hosts=("web.example.com",))
    assert "the function's manifest does not name it in 'hosts'" in talk.messages[0].decode()


def test_caps_are_told(inside, door_jail, web_broker):
    many = "[socket.create_connection(('web.example.com', 8000)) for _ in range(5)]"
    talk = inside.run_inside(door_jail, web_broker, PRELUDE.replace("ACTION", many), caps=Caps(connections=4))
    assert "as many connections open as this box's policy allows" in talk.messages[0].decode()


BULK = """
def through(count):
    import hashlib
    sock = socket.create_connection(('93.184.216.34', 8000))
    data = os.urandom(1 << 16) * 16
    def write():
        for _ in range(count):
            sock.sendall(data)
        sock.shutdown(socket.SHUT_WR)
    threading.Thread(target=write).start()
    sent, got = hashlib.sha256(data * count), hashlib.sha256()
    while piece := sock.recv(1 << 16):
        got.update(piece)
    return got.digest() == sent.digest()

def many():
    results = []
    def one():
        results.append(requested('http://web.example.com/page'))
    threads = [threading.Thread(target=one) for _ in range(12)]
    [t.start() for t in threads], [t.join() for t in threads]
    return len(results), set(results)
"""


def test_who_uses_up_its_descriptors_gets_them_back(inside, door_jail, web_broker):
    """Neither deaf for ever nor busy for nothing."""
    source = """
def hoard():
    kept = []
    while True:
        try: kept.append(open('/dev/null'))
        except OSError: break
    began = time.process_time()
    kept.pop().close()
    try: socket.create_connection(('93.184.216.34', 8000), 0.5)
    except OSError: pass
    time.sleep(0.5)
    burnt = time.process_time() - began
    kept.clear()
    return page(socket.create_connection(('93.184.216.34', 80), 5)), burnt < 0.3
"""
    talk = inside.run_inside(door_jail, web_broker, source + PRELUDE.replace("ACTION", "hoard()"))
    assert talk.messages == [b"('/page at 93.184.216.34', True)"], talk


def test_bulk_both_ways_at_once(inside, door_jail, web_broker):
    talk = inside.run_inside(door_jail, web_broker, BULK + PRELUDE.replace("ACTION", "through(16)"))
    assert talk.messages == [b"True"], talk


def test_many_connections_at_once(inside, door_jail, web_broker):
    talk = inside.run_inside(door_jail, web_broker, BULK + PRELUDE.replace("ACTION", "many()"))
    assert talk.messages[0].startswith(b"(12, {'/page at"), talk


def test_a_class_that_is_not_offered_is_refused(inside, door_jail, web_broker):
    source = PRELUDE.replace("ACTION", f"fetch('{WEB}')")
    talk = inside.run_inside(door_jail, web_broker, source, egress="none")
    assert b"Error" in talk.messages[0], talk


def test_the_door_is_the_only_thing_that_is_new(inside, door_jail, web_broker):
    look = "(os.listdir('/run'), os.stat('/run/egress.sock').st_uid, attempt(lambda: os.unlink('/run/egress.sock')))"
    talk = inside.run_inside(door_jail, web_broker, PRELUDE.replace("ACTION", look))
    assert b"(['egress.sock'], 1000, \"OSError EROFS" in talk.messages[0], talk
