"""The words of the interactive shell: what each does at the box. Reading lines is `lines`' business."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import ClassVar

import click
import msgspec

from bento_tor.cli import completion, ui
from bento_tor.cli.client import remember
from bento_tor.cli.client.attach import end_of
from bento_tor.cli.client.calls import call_of, call_of_kept, entry_of, load_source, read_calling, wanted
from bento_tor.cli.client.lines import Lines
from bento_tor.cli.client.opened import Opened, SharedBox, Visit
from bento_tor.cli.client.reach import find_function, find_session
from bento_tor.cli.client.run import Leaving, erase
from bento_tor.cli.client.sessions import print_sessions
from bento_tor.cli.client.talk import Talk, failure_of, say_printed
from bento_tor.cli.policy import print_policy
from bento_tor.client import keyring, source
from bento_tor.client.keyring import Kept, KeptSession
from bento_tor.client.source import Source
from bento_tor.client.tickets import Ticket
from bento_tor.errors import BentoError, ConfigError, Refused
from bento_tor.policy.outcome import Outcome

WORDS = {
    "store": ("[FILE | NAME]", "store a function from a file, one that ships, or typed in under a name"),
    "exec": ("NAME [CALL | ARGUMENTS]", "start a stored function: exec add 5 12, or exec add add(5, 12)"),
    "open": ("SESSION", "attach to a session; what it sends is shown as it comes"),
    "send": ("[SESSION] TEXT", "send one message; the session may be left out where one is open"),
    "recv": ("[SESSION]", "wait for the next message; of an open session, until it has been shown"),
    "close": ("[SESSION]", "end a session; its stored function stays"),
    "run": ("FILE [CALL | ARGUMENTS]", "store, run and erase in one go; Ctrl-C leaves it running"),
    "sessions": ("", "your sessions at this box"),
    "policy": ("", "what this box is willing to do"),
    "shutdown": ("NAME", "erase a stored function, and end its sessions"),
    "help": ("", "these words"),
    "exit": ("", "leave; sessions go on"),
}


def _clipped(text: str) -> str:
    return text if len(text) <= 40 else f"{text[:40]}..."


class Shell:
    """One user's visit. `do` runs a line."""

    def __init__(self, box: SharedBox) -> None:
        self.address = box.address
        self.done = False
        self.first_failure = 0
        self._box = box
        self._opened: dict[str, Opened] = {}
        self._lines: Lines

    @contextmanager
    def opened(self, lines: Lines) -> Iterator[None]:
        """While it lasts. At its end the sessions are left running."""
        self._lines = lines
        try:
            yield
        finally:
            running = [each for each in self._opened.values() if not each.is_over()]
            for each in running:
                each.leave()
            self._box.close()
            for each in running:
                ui.say(f"left running: 'bento-tor client attach {each.name}' comes back to it")

    def do(self, line: str) -> None:
        """Run one line. Raises BentoError or click.UsageError."""
        word, _, rest = line.strip().partition(" ")
        if not word or word.startswith("#"):
            return
        if word not in WORDS:
            raise click.UsageError(f"there is no word {_clipped(word)!r}")
        self._DO[word](self, rest.strip())

    def end_of_lines(self) -> None:
        """There are no more. From a pipe: the sessions get the end of their input, and are waited for."""
        self.done = True
        if not self._lines.interactive:
            for each in list(self._opened.values()):
                with suppress(BentoError):
                    each.session.finish()
                each.wait()

    def fail(self, error: BentoError) -> None:
        """Say an error, and note the first."""
        self.first_failure = self.first_failure or error.exit_code
        ui.show_error(error.message, hint=error.hint, exit_code=error.exit_code, as_json=False)

    def complete(self, before: list[str]) -> list[str]:
        """The words that may come next."""
        if not before:
            return list(WORDS)
        if len(before) > 1:
            return []
        if before[0] in ("exec", "shutdown"):
            return completion.functions()
        if before[0] in ("open", "send", "recv", "close"):
            return [*self._opened, *completion.sessions()]
        if before[0] in ("store", "run"):
            with suppress(OSError):
                return [*completion.shipped(), *(path.name for path in Path().glob("*.py"))]
        return []

    # --- functions ------------------------------------------------------------------------------------------------

    def _store(self, rest: str) -> None:
        function = self._read_source(rest)
        box = self._box.get()
        stored = box.upload(function)
        kept = Kept(self.address, stored.invocation, stored.shutdown_token, entry_of(function))
        maybe_name = remember.keep_function(keyring.check_name(function.name), kept)
        if maybe_name is None:
            ui.result(f"  invocation  {Ticket(self.address, 'invocation', stored.invocation)}")
            ui.result(f"  shutdown    {Ticket(self.address, 'shutdown', stored.shutdown_token or b'')}")
        ui.result(f"stored as {ui.escape(maybe_name)}" if maybe_name else "stored")

    def _read_source(self, word: str) -> Source:
        """A file, a function that ships, or code typed in under this name."""
        word = word or self._lines.ask("name, or file")
        if word.endswith(".py") or "/" in word or word in completion.shipped():
            return load_source(word)
        # Before any line of code: those would be taken for words.
        maybe_fault = None if word else ConfigError("a function needs a name")
        try:
            keyring.check_name(word)
        except ConfigError as fault:
            maybe_fault = maybe_fault or fault
        text = self._lines.code()
        if maybe_fault is not None:
            raise maybe_fault
        if not text:
            raise ConfigError("there is no code", hint="type a function; an empty line ends it")
        return source.parse(word, text)

    def _exec(self, rest: str) -> None:
        name, arguments, maybe_call = read_calling(rest)
        known_as, kept = find_function(name)
        self._check_here(known_as or name, kept.box)
        call = call_of_kept(kept, arguments, maybe_call)
        box = self._box.get()
        session = box.start(kept.invocation, call)
        session.wait_attached()
        session.detach()
        made = KeptSession(self.address, known_as, session.token)
        maybe_name = remember.keep_session(known_as or call.name, made)
        if maybe_name is None:
            ui.result(f"  session  {session.ticket}")
        ui.result(f"running as {ui.escape(maybe_name)}" if maybe_name else "running")

    def _run(self, rest: str) -> None:
        name, arguments, maybe_call = read_calling(rest)
        function = load_source(name)
        call = call_of(function, arguments, maybe_call)
        box = self._box.get()
        session = box.run(function, call)
        try:
            session.wait_attached()
        except BentoError:
            erase(box, session)
            raise
        running = Opened("", session, show_name=False, ended=self._tell_end)
        try:
            running.wait()
        except KeyboardInterrupt:
            if not running.is_over():
                self._leave_open(running, function)
                return
        erase(box, session)

    def _leave_open(self, running: Opened, function: Source) -> None:
        leaving = Leaving(self.address, function, running.session, no_keyring=False)
        leaving.note(running.talk.place)
        running.name = leaving.name
        running.talk.prefix = f"{leaving.name}: "
        self._opened[running.name] = running
        ui.say(f"it goes on as {running.name}: 'close {running.name}' ends it")

    def _shutdown(self, rest: str) -> None:
        known_as, kept = find_function(wanted(rest, "a function"))
        self._check_here(known_as or rest, kept.box)
        if kept.shutdown is None:
            raise ConfigError("this ticket cannot erase the function", hint="its shutdown ticket can")
        box = self._box.get()
        box.shutdown(kept.shutdown)
        if known_as:
            remember.forget_function(known_as)
        ui.result(f"{ui.escape(rest)} is erased")

    # --- sessions -------------------------------------------------------------------------------------------------

    def _open(self, rest: str) -> None:
        known_as, kept = find_session(wanted(rest, "a session"))
        self._check_here(known_as or rest, kept.box)
        if known_as in self._opened and not self._opened[known_as].is_over():
            raise ConfigError(f"{known_as} is open already")
        known_as = known_as or remember.keep_session("session", kept) or ""
        box = self._box.get()
        session = box.attach(kept.session, offset=kept.offset)
        session.wait_attached()
        remember.note_attached(known_as)
        show_name = self._lines.interactive
        self._opened[known_as] = Opened(known_as, session, show_name=show_name, ended=self._tell_end)
        ui.say(f"{known_as} is open")

    def _send(self, rest: str) -> None:
        word, _, text = rest.partition(" ")
        name, text = (word, text) if word in {*self._opened, *completion.sessions()} else (self._only_open(), rest)
        if self._is_open(name):
            sent = self._opened[name].session.send(text)
        else:
            with self._visiting(name) as visit:
                sent = visit.session.send(text)
                visit.session.detach()
        if not sent:
            raise Refused(f"the function of {name} has ended: it did not get this", hint="'recv' says how it ended")

    def _recv(self, rest: str) -> None:
        name = rest or self._only_open()
        if name in self._opened:
            if not self._opened[name].take_message(self._box.timeout_s):
                ui.say(f"{name} has ended: there are no more messages")
            return
        with self._visiting(name) as visit:
            message = visit.session.maybe_receive(timeout_s=self._box.timeout_s)
            if message is None:
                self._note_end(visit, visit.session.wait())
                return
            visit.session.detach()
            remember.keep_place(visit.known_as, visit.session.offset)
        Talk(raw=False, file=None, as_json=False).write(message)

    def _close(self, rest: str) -> None:
        name = rest or self._only_open()
        if self._is_open(name):
            self._opened[name].end()
            return
        with self._visiting(name) as visit:
            visit.session.end()
            self._note_end(visit, visit.session.wait(), by_us=True)

    def _sessions(self, rest: str) -> None:
        del rest
        print_sessions({name: kept for name, kept in keyring.read().sessions.items() if kept.box == self.address})

    def _policy(self, rest: str) -> None:
        del rest
        box = self._box.get()
        print_policy(msgspec.to_builtins(box.policy()), as_json=False)

    def _help(self, rest: str) -> None:
        del rest
        for word, (arguments, text) in WORDS.items():
            ui.result(f"  {word} {arguments}".ljust(30) + f"  {text}")

    def _exit(self, rest: str) -> None:
        del rest
        self.done = True

    # --- what the words share ---------------------------------------------------------------------------------------

    @contextmanager
    def _visiting(self, name: str) -> Iterator[Visit]:
        """A session that is not open here, for one word."""
        known_as, kept = find_session(name)
        self._check_here(known_as or name, kept.box)
        box = self._box.get()
        session = box.attach(kept.session, offset=kept.offset)
        session.wait_attached()
        yield Visit(known_as, kept, session)

    def _note_end(self, visit: Visit, outcome: Outcome, *, by_us: bool = False) -> None:
        """Say how a session has ended; what was stored only for it is erased."""
        box = self._box.get()
        end_of(visit.known_as, visit.kept, outcome, visit.session, box)
        say_printed(visit.session)
        maybe_failure = failure_of(outcome)
        if maybe_failure is not None and not by_us:
            raise maybe_failure
        ui.say(f"{visit.known_as or 'it'} has ended ({outcome.word})")

    def _tell_end(self, opened: Opened) -> None:
        """The same for an open one, in its thread."""
        try:
            if opened.maybe_error is not None:
                remember.note_left(opened.name, opened.talk.place)
                raise opened.maybe_error
            outcome = opened.maybe_outcome or Outcome.lost()
            maybe_kept = keyring.read().sessions.get(opened.name)
            if maybe_kept is not None:
                self._note_end(Visit(opened.name, maybe_kept, opened.session), outcome, by_us=opened.ending)
                return
            say_printed(opened.session)
            if maybe_failure := failure_of(outcome):
                raise maybe_failure
        except BentoError as error:
            self.fail(error)

    def _check_here(self, name: str, box: str) -> None:
        if box != self.address:
            raise ConfigError(f"{name} is at another box", hint=f"bento-tor client shell --box {box}")

    def _is_open(self, name: str) -> bool:
        return name in self._opened and not self._opened[name].is_over()

    def _only_open(self) -> str:
        names = [name for name in self._opened if self._is_open(name)] or list(self._opened)[-1:]
        if len(names) != 1:
            raise click.UsageError("name a session" + (f": {', '.join(names)} are open" if names else ": none is open"))
        return names[0]

    _DO: ClassVar[dict[str, Callable[[Shell, str], None]]] = {
        "store": _store, "exec": _exec, "open": _open, "send": _send, "recv": _recv, "close": _close, "run": _run,
        "sessions": _sessions, "policy": _policy, "shutdown": _shutdown, "help": _help, "exit": _exit,
    }  # fmt: skip
