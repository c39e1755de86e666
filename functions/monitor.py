"""Report on the machine that the box runs on. No arguments; sends one text, a line for each thing that the box tells.

What the box tells is measured outside the sandbox, and is the operator's choice: it may be little, or nothing.
"""

# /// script
# requires-python = ">=3.11"
# dependencies = []
# [tool.bento]
# entry = "monitor"
# image = "python"
# host = "full"
# ///

GIB = 1024**3
MIB = 1024**2


def monitor():
    facts = api.host()
    lines = [line for line in (describe(facts) for describe in LINES) if line]
    api.send("\n".join(lines or ["this box tells nothing about its host"]) + "\n")


def cpu(facts):
    if "cpu_count" in facts:
        busy = f", {facts['cpu_percent']} % busy" if "cpu_percent" in facts else ""
        return f"CPU: {facts['cpu_count']} cores{busy}"


def memory(facts):
    return share(facts, "memory")


def disk(facts):
    return share(facts, "disk")


def share(facts, what):
    total, used = facts.get(f"{what}_total"), facts.get(f"{what}_used")
    if total is not None:
        return f"{what}: {total / GIB:.1f} GiB" + (f", {used / GIB:.1f} used" if used is not None else "")


def addresses(facts):
    if facts.get("addresses"):
        return f"addresses: {', '.join(facts['addresses'])}"


def traffic(facts):
    if "bytes_sent" in facts and "bytes_received" in facts:
        sent, received = facts["bytes_sent"] / MIB, facts["bytes_received"] / MIB
        return f"traffic: {sent:.1f} MiB sent, {received:.1f} MiB received"


def time(facts):
    if "time" in facts:
        return f"time: {facts['time']}"


LINES = (cpu, memory, disk, addresses, traffic, time)
