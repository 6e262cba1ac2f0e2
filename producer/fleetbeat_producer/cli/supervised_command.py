"""A command of somebody else's, run as if we weren't there: its streams, its signals, its exit status.

One thing can be seen of us: where stderr is no terminal it goes through a pipe, so when stdout and stderr are the same
file, lines of the one may come to stand a little later among those of the other.
"""

from __future__ import annotations

import errno
import os
import select
import shutil
import signal
import threading
from contextlib import suppress
from typing import TYPE_CHECKING

from fleetbeat_shared.sanitize import clean

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

STDERR = 2
CHUNK_BYTES = 64 * 1024
TAIL_BYTES = 8 * 1024
"""How much of the end of stderr is kept: the longest error that a message holds, in UTF-8."""
LAST_READS = 32
"""How often the relay reads after the command's end: more than a pipe holds, and no endless task if others write on."""

# Signals that are about ourselves, or that nobody can catch. All others are the command's.
_OURS = {"KILL", "STOP", "CHLD", "SEGV", "BUS", "FPE", "ILL", "TRAP", "SYS", "ABRT", "PIPE", "XCPU", "XFSZ"}
_OURS |= {"TTIN", "TTOU"}  # the terminal sends them to the whole group, and they stop us as they stop the command
_FOR_THE_COMMAND = signal.valid_signals() - {getattr(signal, f"SIG{name}", None) for name in _OURS}
_AWAITED = _FOR_THE_COMMAND | {signal.SIGCHLD}
# What a terminal sends to its whole foreground group, so that the command has it already. A hangup is none of these:
# it may reach the leader of the session alone, and that may be us.
_FROM_TERMINAL = {signal.SIGINT, signal.SIGQUIT, signal.SIGTSTP, signal.SIGWINCH}
_IGNORED_BY_PYTHON = [signal.SIGPIPE, signal.SIGXFSZ]


class Command:
    """A command that runs. To be made in the main thread, before any other thread: these inherit what is blocked."""

    def __init__(self, words: Sequence[str]) -> None:
        """Start it, with our streams and all else that a command inherits.

        Raises OSError when it can't be started.
        """
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # whoever ignores it never learns an exit status
        self._mask = signal.pthread_sigmask(signal.SIG_BLOCK, _AWAITED)  # until `wait` looks at them
        self._relay = _relay()
        try:
            self._pid = self._spawn(words)
        finally:
            if self._relay:
                os.close(self._relay.entrance)

    def _spawn(self, words: Sequence[str]) -> int:
        try:
            return self._spawn_program(words)
        except OSError as error:
            if error.errno != errno.ENOEXEC:
                raise
            # A script without #! is the shell's, as it is for execvp and for every shell.
            return self._spawn_program(["/bin/sh", shutil.which(words[0]) or words[0], *words[1:]])

    def _spawn_program(self, words: Sequence[str]) -> int:
        actions = [(os.POSIX_SPAWN_DUP2, self._relay.entrance, STDERR)] if self._relay else []
        return os.posix_spawnp(
            *(words[0], list(words), os.environ),
            file_actions=actions,
            setsigmask=self._mask,
            setsigdef=_IGNORED_BY_PYTHON,
        )

    def wait(self) -> int:
        """Hand on signals until the command ends; return its exit status as a shell would, 128+n for signals."""
        asked_to_stop = has_stopped = False
        while True:
            number, is_from_terminal = _next_signal()
            if number == signal.SIGCHLD:
                pid, status = os.waitpid(self._pid, os.WNOHANG | os.WUNTRACED)
                if pid and not os.WIFSTOPPED(status):
                    code = os.waitstatus_to_exitcode(status)
                    return code if code >= 0 else 128 - code
                has_stopped |= bool(pid)
            elif not (is_from_terminal and number in _FROM_TERMINAL):
                with suppress(PermissionError):  # it may have become another user; gone it can't be, we have not waited
                    os.kill(self._pid, number)
            if number == signal.SIGTSTP:
                asked_to_stop = True
            elif number == signal.SIGCONT:
                asked_to_stop = has_stopped = False
            if asked_to_stop and has_stopped:  # not before the command has: it may tidy up first, or refuse
                asked_to_stop = has_stopped = False
                os.kill(os.getpid(), signal.SIGSTOP)

    def last_line(self, within_seconds: float) -> str:
        """Return the last line that it wrote to stderr, cleaned; nothing if that is a terminal or wasn't written to.

        To be called after its end; waits for a time until all that it wrote has been copied.
        """
        return self._relay.finish(within_seconds) if self._relay else ""

    def let_go(self) -> None:
        """Leave nothing behind that still needs us."""
        if self._relay:
            # What is not copied yet waits for the reader of our stderr. That may last, so we can be ended again.
            if self._relay.is_busy():
                signal.pthread_sigmask(signal.SIG_SETMASK, self._mask)
            self._relay.hand_over(self._mask)


class _Relay:
    """Copies what is written to a pipe to our stderr, unchanged, and remembers the end of it."""

    def __init__(self) -> None:
        self._exit, self.entrance = os.pipe()
        self._over, self._end = os.pipe()
        self._tail = b""
        self._is_open = True
        self._thread = threading.Thread(target=self._copy, name="fleetbeat-stderr", daemon=True)
        self._thread.start()

    def _copy(self) -> None:
        try:
            self._is_open = self._copy_until_over()
        except OSError:  # nobody reads our stderr any more: the command is told the same way, by a broken pipe
            self._is_open = False
        if not self._is_open:
            os.close(self._exit)

    def _copy_until_over(self) -> bool:
        """Copy until nothing can come any more, or the command has ended; return whether others hold the pipe open."""
        poll = select.poll()
        poll.register(self._exit, select.POLLIN)
        poll.register(self._over, select.POLLIN)
        reads_left = LAST_READS
        while reads_left:
            ready = dict(poll.poll())
            if self._exit not in ready:
                break
            chunk = os.read(self._exit, CHUNK_BYTES)
            if not chunk:
                return False
            self._remember(chunk)
            _write(chunk)
            reads_left -= self._over in ready
        return True

    def _remember(self, chunk: bytes) -> None:
        text = self._tail + chunk
        kept = text.rstrip(b"\r\n")  # so that many empty lines don't push out the last that isn't
        self._tail = kept[-TAIL_BYTES:] + (b"\n" if len(kept) < len(text) else b"")

    def finish(self, within_seconds: float) -> str:
        """Copy what is there now that the command has ended; return its last line that isn't empty."""
        os.write(self._end, b".")
        self._thread.join(within_seconds)
        lines = self._tail.decode(errors="replace").splitlines()
        return next(filter(None, map(clean, reversed(lines))), "")

    def is_busy(self) -> bool:
        """Return whether something waits to be copied."""
        return self._thread.is_alive()

    def hand_over(self, mask: Iterable[int]) -> None:
        """Wait until all is copied; what the command left running and still writes here gets a relay of its own."""
        self._thread.join()
        if self._is_open:
            actions = [(os.POSIX_SPAWN_DUP2, self._exit, 0), (os.POSIX_SPAWN_DUP2, STDERR, 1)]
            with suppress(OSError):
                os.posix_spawnp(
                    *("cat", ["cat"], os.environ),
                    file_actions=actions,
                    setpgroup=0,  # one of its own, as Ctrl-C isn't meant for it
                    setsigmask=mask,
                    setsigdef=_IGNORED_BY_PYTHON,
                )


def _relay() -> _Relay | None:
    """Return a relay for stderr, or None where the command must have it as it is.

    A program behaves differently on a terminal, so it gets the terminal; and what is closed stays closed.
    """
    try:
        os.fstat(STDERR)
        return None if os.isatty(STDERR) else _Relay()
    except (OSError, RuntimeError):  # closed; or no pipe or thread to be had
        return None


def _write(chunk: bytes) -> None:
    rest = memoryview(chunk)
    while rest:
        try:
            rest = rest[os.write(STDERR, rest) :]
        except BlockingIOError:  # somebody who shares it made it so
            select.select([], [STDERR], [])


def _next_signal() -> tuple[int, bool]:
    """Wait for a signal; return it, and whether the terminal sent it, to the whole foreground group."""
    if hasattr(signal, "sigwaitinfo"):
        found = signal.sigwaitinfo(_AWAITED)
        return found.si_signo, found.si_code > 0  # from the kernel; of processes it is 0 or less (sigaction(2))
    number = signal.sigwait(_AWAITED)  # macOS tells no sender; in the foreground, take the terminal for it
    return number, _is_in_foreground()


def _is_in_foreground() -> bool:
    try:
        return any(os.isatty(stream) and os.tcgetpgrp(stream) == os.getpgrp() for stream in range(3))
    except OSError:
        return False
