"""The hostile table's rows for the image `browser`, whose functions may start programs and have a /proc of their own."""

# A row is a line or two, however long.
# ruff: noqa: E501

from __future__ import annotations

from bento_tor.policy.limits import MIB
from bento_tor.sandbox import chromium
from bento_tor.sandbox.hostile import DENIED, PRELUDE, READ, ROWS, Row
from bento_tor.sandbox.images import Image

CHROMIUM = (("pids", 128), ("open_files", 256), ("data_bytes", 64 * MIB))
START = f"""
flags = ['--headless', '--no-sandbox', '--no-zygote', '--disable-gpu', '--disable-dev-shm-usage', '--user-data-dir=/data/c', '--remote-debugging-port=0']
def chromium(page):
    return subprocess.Popen(['{chromium.PROGRAM}', *flags, page], env={{'HOME': '/data', 'TMPDIR': '/data'}}, stderr=subprocess.DEVNULL)
"""
# What a started program tries, with the words of PRELUDE; a bare system call each, and sockets of every forbidden kind.
WITHIN = (
    PRELUDE + "print(each(*[system(n, 8, 0, 0, 0, 0, 0) for n in (101, 310, 272, 308, 165, 425, 321, 298, 250, 434)],\n"
    "  system(56, 0x10000011, 0, 0, 0, 0), *[attempt(lambda: socket.socket(*kind)) for kind in ((2, 3, 1), (10, 3, 58), (17, 3), (16, 3), (40, 1))]))"
)

BROWSER_ROWS = (
    Row(1, "programs that start programs",
        "code = 'import os, sys, time\\nfor _ in range(3):\\n  if os.fork() == 0: os.execv(sys.executable, sys.orig_argv)\\ntime.sleep(60)'\n"
        "begun = []\ndef start():\n  while True: begun.append(subprocess.Popen([sys.executable, '-c', code], stderr=subprocess.DEVNULL)); time.sleep(0.01)\n"
        "return attempt(start)", "EAGAIN"),
    Row(5, "memory bomb in Chromium", f"{START}\n"
        "chromium('data:text/html,<script>kept = []; for (;;) kept.push(new Uint8Array(1 << 22).fill(1))</script>').wait()\ntime.sleep(60)",
        word="killed:memory", limits=(("memory_bytes", 160 * MIB), *CHROMIUM)),
    Row(7, "Chromium that never ends", f"{START}\nchromium('data:text/html,<script>for (;;);</script>').wait()\ntime.sleep(60)",
        word="killed:time", limits=(("memory_bytes", 256 * MIB), ("wall_s", 3), *CHROMIUM)),
    Row(11, "Chromium left behind", f"{START}\nchromium('about:blank'); time.sleep(1)\nreturn 'left'", "left",
        limits=(("memory_bytes", 256 * MIB), *CHROMIUM)),
    Row(23, "the kernel's /proc", READ.replace("PATHS", "('/proc/1/environ', '/proc/1/mem', '/proc/1/root', '/proc/1/fd', '/proc/kcore',\n"
        "  '/proc/sysrq-trigger', '/proc/sys/kernel/core_pattern', '/proc/net/tcp', '/proc/meminfo', '/proc/stat', '/proc/loadavg',\n"
        "  '/proc/uptime', '/proc/cpuinfo', '/proc/cmdline', '/proc/self/root/etc/shadow', '/proc/self/cwd/../tmp', '/sys')"), "ENOENT"),
    Row(23, "ways out of its own /proc",
        "return each(*[attempt(lambda: os.write(os.open(f'/proc/self/{path}', 1), b'0 0 1')) for path in ('uid_map', 'gid_map')],\n"
        "  call('umount2', b'/proc/1', 2), call('umount2', b'/proc', 2), attempt(lambda: os.open('/proc/self/exe', 1)),\n"
        "  *[system(308, os.open(f'/proc/self/ns/{kind}', 0), 0) for kind in ('user', 'mnt', 'net', 'pid')])", "EPERM EROFS|EPERM ETXTBSY"),
    Row(38, "programs of its own", "import shutil; open('/data/x', 'w').write('#!' + sys.executable); shutil.copy(sys.executable, '/data/y')\n"
        "for path in ('/data/x', '/data/y'): os.chmod(path, 0o755)\n"
        "loaded = subprocess.run(['/lib64/ld-linux-x86-64.so.2', '/data/y', '-c', ''], stderr=subprocess.DEVNULL).returncode\n"
        "return each(*[attempt(lambda: subprocess.run([path])) for path in ('/data/x', '/data/y')], system(319, 0, 0),\n"
        "  system(322, 0, 0, 0, 0, 0x1000)) + f' {loaded} {os.system(\"true\")}'", "EACCES EPERM 127 32512"),
    Row(38, "a started program, under the same filter",
        f"return subprocess.run([sys.executable, '-c', {WITHIN!r}], stdout=subprocess.PIPE, text=True).stdout.strip()", DENIED),
)  # fmt: skip


def rows_for(image: Image) -> tuple[Row, ...]:
    """All that are played in this image."""
    return (*(row for row in ROWS if not row.not_browser), *BROWSER_ROWS) if image.browser else ROWS
