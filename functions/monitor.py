"""Report on the machine that the box runs on. Arguments, all optional: interval (seconds), count, form (text, json).

Sends one report: with `text` a line for each thing that the box tells. With an interval it sends `count` of them (0: on
and on), so far apart, until its input ends or a message comes. What the box tells is measured outside the sandbox, and
is the operator's choice: it may be little, or nothing.
"""

# /// script
# requires-python = ">=3.11"
# dependencies = []
# [tool.bento]
# entry = "monitor"
# image = "python"
# host = "full"
# ///

import json
import time

GIB = 1024**3
MIB = 1024**2
STEP_S = 0.2


def monitor(interval=0, count=1, form="text"):
    due, told = time.monotonic(), 0
    while True:
        facts = api.host()
        api.send(json.dumps(facts) if form == "json" else text(facts))
        told += 1
        due = max(due + max(1, interval), time.monotonic())  # late once, not for ever
        if told == count or heard_before(due):
            return


def heard_before(due):
    while (left := due - time.monotonic()) > 0:
        if api.poll():
            return True
        time.sleep(min(left, STEP_S))
    return False


def text(facts):
    lines = [line for line in (describe(facts) for describe in LINES) if line]
    return "\n".join(lines or ["this box tells nothing about its host"]) + "\n"


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


def at(facts):
    if "time" in facts:
        return f"time: {facts['time']}"


LINES = (cpu, memory, disk, addresses, traffic, at)
