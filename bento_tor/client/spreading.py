"""Shards on their way: each to or from its own box, all at once, in a thread each; and what to do where boxes fail.

A get takes the shards of as many boxes as are needed, and turns to another for each that is down or lies. Only when
enough have come but for their last pieces does it ask for those, which is what counts: a get that cannot succeed costs
none.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from pathlib import Path

from bento_tor.client import dropbox, spooling
from bento_tor.client.box import Box
from bento_tor.client.dropbox import Getting, Limits, Moved
from bento_tor.client.files import PartFile, writing
from bento_tor.client.shards import ShardTicket
from bento_tor.client.spooling import Spooled
from bento_tor.errors import BentoError, ConfigError

# Makes a Box that has not been entered: to be called from the thread of the program.
MakeBox = Callable[[str], Box]
# Told of each box that failed, and why.
Failed = Callable[[str, BentoError], None]


class TooFew(BentoError):
    """Too few boxes did what was asked."""

    exit_code = 6


def put(ticket: ShardTicket, spooled: Sequence[Spooled], make_box: MakeBox, limits: Limits, moved: Moved) -> None:
    """Leave each shard at its box. Raises TooFew, with every reason, where one could not be left."""

    def leave(number: int, box: Box) -> None:
        dropbox.put(box, ticket.drop(number), spooled[number], limits, moved=moved)

    with _Crew(ticket, make_box) as crew:
        failed = crew.all(range(len(spooled)), leave)
    if failed:
        raise TooFew(
            f"{len(spooled) - len(failed)} of {len(spooled)} shards were left: {_reasons(ticket, failed)}",
            hint="the file is not safe yet: go on with --resume, or put it over other boxes",
        )


class Gathering:
    """One get of a file. `folder` keeps the shards until they are put together, and is there to go on with."""

    def __init__(self, ticket: ShardTicket, folder: Path, make_box: MakeBox, *, moved: Moved, failed: Failed) -> None:
        self._ticket = ticket
        self._folder = folder
        self._make_box = make_box
        self._moved = moved
        self._told = failed
        self._failed: dict[int, BentoError] = {}
        self._gets: dict[int, Getting] = {}
        self._parts: dict[int, PartFile] = {}
        self._whole: dict[int, Path] = {}
        self._used_up: set[int] = set()

    def run(self, path: Path) -> None:
        """Get the shards, and put the file together. Raises TooFew, or ConfigError where our own disk fails."""
        with writing(self._folder):
            self._folder.mkdir(mode=0o700, exist_ok=True)
            self._whole = {number: path for path in self._folder.iterdir() if (number := _number_of(path)) is not None}
        try:
            with _Crew(self._ticket, self._make_box) as crew:
                while len(self._whole) < self._ticket.needed:
                    self._note(crew.all(self._bodies(crew), self._last))
                new = self._folder / "whole"
                spooling.join(self._whole, self._ticket, new)
                with writing(path):
                    new.rename(path)
                crew.all(self._used_up, lambda number, box: self._gets[number].done())
        finally:
            # Only now does no thread write any more.
            for part in self._parts.values():
                part.close()
        with suppress(OSError):
            for rest in self._folder.iterdir():
                rest.unlink()
            self._folder.rmdir()

    def _bodies(self, crew: _Crew) -> list[int]:
        """As many as are still needed, but for their last pieces. Raises TooFew."""
        missing = self._ticket.needed - len(self._whole)
        ready: list[int] = []
        running: dict[Future[None], int] = {}
        untried = [n for n in range(len(self._ticket.boxes)) if n not in self._failed and n not in self._whole]
        while len(ready) < missing:
            while untried and len(ready) + len(running) < missing:
                number = untried.pop(0)
                running[crew.start(number, self._body)] = number
            if len(ready) + len(running) < missing:
                raise self._too_few(len(ready) + len(running))
            done, _ = wait(running, timeout=1.0, return_when=FIRST_COMPLETED)
            for future in done:
                number = running.pop(future)
                maybe_error = _maybe_error(future)
                if maybe_error is None:
                    ready.append(number)
                else:
                    self._note({number: maybe_error})
        return ready

    def _body(self, number: int, box: Box) -> None:
        drop = self._ticket.drop(number)
        part = PartFile(self._folder / str(number), str(drop), secrets.token_hex(16), final=False)
        self._parts[number] = part
        self._gets[number] = Getting(box, drop, part, name=part.name, moved=self._moved)
        self._gets[number].body()

    def _last(self, number: int, box: Box) -> None:
        left = self._gets[number].last()
        part = self._parts[number]
        part.finish(self._gets[number].header, self._ticket.drop(number).secret)
        self._whole[number] = part.path
        if left == 0:
            self._used_up.add(number)

    def _note(self, failed: dict[int, BentoError]) -> None:
        for number, error in failed.items():
            self._failed[number] = error
            self._told(self._ticket.boxes[number], error)

    def _too_few(self, ready: int) -> TooFew:
        have = ready + len(self._whole)
        return TooFew(
            f"{have} of the {self._ticket.needed} shards that are needed can be had: "
            f"{_reasons(self._ticket, self._failed)}",
            hint="what came is kept: the same command given again goes on with it",
        )


class _Crew:
    """A thread for each box, and the boxes, which are connected to when they are first needed. A context manager."""

    def __init__(self, ticket: ShardTicket, make_box: MakeBox) -> None:
        # Here and not in the threads: finding the way to a box may belong to the program's thread.
        self._boxes = [make_box(address) for address in ticket.boxes]
        self._entered: dict[int, Box] = {}
        self._closed = False
        self._pool = ThreadPoolExecutor(len(ticket.boxes), "shard")

    def __enter__(self) -> _Crew:
        return self

    def __exit__(self, *exc: object) -> None:
        # What still runs is broken off by hanging up.
        self._closed = True
        for box in list(self._entered.values()):
            box.__exit__()
        self._pool.shutdown(cancel_futures=True)

    def start(self, number: int, work: Callable[[int, Box], None]) -> Future[None]:
        """Do `work` in the thread of a box."""
        return self._pool.submit(self._do, number, work)

    def all(self, numbers: Iterable[int], work: Callable[[int, Box], None]) -> dict[int, BentoError]:
        """Do `work` at all of these boxes at once; what failed."""
        futures = {number: self.start(number, work) for number in numbers}
        failed = {}
        for number, future in futures.items():
            if (maybe_error := _maybe_error(future)) is not None:
                failed[number] = maybe_error
        return failed

    def _do(self, number: int, work: Callable[[int, Box], None]) -> None:
        if self._closed:
            raise BentoError("it is over")
        if number not in self._entered:
            self._entered[number] = self._boxes[number].__enter__()
            if self._closed:
                self._entered[number].__exit__()
        work(number, self._entered[number])


def folder_beside(path: Path, ticket: ShardTicket) -> Path:
    """Where the shards of a file wait for one another. Of another ticket's it is another one."""
    word = hashlib.sha256(str(ticket).encode()).hexdigest()[:16]
    return path.with_name(f"{path.name}.shards-{word}")


def _number_of(path: Path) -> int | None:
    """Of a shard that has come whole, in an earlier process."""
    return int(path.name) if re.fullmatch(r"[0-9]{1,2}", path.name) else None


def _maybe_error(future: Future[None]) -> BentoError | None:
    """What a box failed by. Raises ConfigError: that is our own disk, and no box's fault."""
    try:
        future.result()
    except ConfigError:
        raise
    except BentoError as error:
        return error
    return None


def _reasons(ticket: ShardTicket, failed: dict[int, BentoError]) -> str:
    return "; ".join(f"{ticket.boxes[number]}: {error.message}" for number, error in sorted(failed.items()))
