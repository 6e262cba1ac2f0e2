"""Supervised command: runs a program transparently, with its streams, signals and exit status.

One difference is visible: where stderr is not a terminal it goes through a pipe. When stdout and stderr are the same
file, lines of stderr may therefore appear a little later among those of stdout.
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
"""How often the relay reads after the command's end: more than a pipe holds, but limited, as others may write on."""

# Signals that concern this process itself, or that can't be caught. All others are passed to the command.
_NOT_PASSED = {"KILL", "STOP", "CHLD", "SEGV", "BUS", "FPE", "ILL", "TRAP", "SYS", "ABRT", "PIPE", "XCPU", "XFSZ"}
_NOT_PASSED |= {
    "TTIN",
    "TTOU",
}  # the terminal sends them to the whole group, and they stop this process as they stop the command
_PASSED = signal.valid_signals() - {getattr(signal, f"SIG{name}", None) for name in _NOT_PASSED}
_AWAITED = _PASSED | {signal.SIGCHLD}
# Signals that a terminal sends to its whole foreground group, so that the command has them already. A hangup is not
# among them: it may reach only the leader of the session, which may be this process.
_FROM_TERMINAL = {signal.SIGINT, signal.SIGQUIT, signal.SIGTSTP, signal.SIGWINCH}
_IGNORED_BY_PYTHON = [signal.SIGPIPE, signal.SIGXFSZ]


class Command:
    """A running command. Make it in the main thread before any other thread: threads inherit the blocked signals."""

    def __init__(self, words: Sequence[str]) -> None:
        """Start it, with the streams of this process and all else that a command inherits.

        Raises OSError when it can't be started.
        """
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # a process that ignores it never gets an exit status
        self._mask = signal.pthread_sigmask(signal.SIG_BLOCK, _AWAITED)  # until `wait` receives them
        self._relay = _make_relay()
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
            # A script without #! runs in the shell, as with execvp and every shell.
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
        """Pass on signals until the command ends; return its exit status as a shell would, 128+n for signals."""
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
                with suppress(PermissionError):  # it may have changed its user; it can't be gone before waitpid
                    os.kill(self._pid, number)
            if number == signal.SIGTSTP:
                asked_to_stop = True
            elif number == signal.SIGCONT:
                asked_to_stop = has_stopped = False
            if asked_to_stop and has_stopped:  # not before the command has stopped: it may clean up first, or refuse
                asked_to_stop = has_stopped = False
                os.kill(os.getpid(), signal.SIGSTOP)

    def last_line(self, within_seconds: float) -> str:
        """Read the last line that it wrote to stderr, cleaned; empty if there is none or stderr is a terminal.

        Call it after the command's end. Waits for limited time until all that it wrote has been copied.
        """
        return self._relay.finish(within_seconds) if self._relay else ""

    def release(self) -> None:
        """Finish copying stderr, so that nothing depends on this process any more."""
        if self._relay:
            # The rest waits for the reader of stderr. That may take long, so signals end this process again.
            if self._relay.is_busy():
                signal.pthread_sigmask(signal.SIG_SETMASK, self._mask)
            self._relay.hand_over(self._mask)


class _Relay:
    """Copies a pipe to stderr, unchanged, and remembers the end of the text."""

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
        except OSError:  # stderr was closed: the command gets the same error, a broken pipe
            self._is_open = False
        if not self._is_open:
            os.close(self._exit)

    def _copy_until_over(self) -> bool:
        """Copy until all writers have closed the pipe, or the command has ended; return whether writers are left."""
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
        kept = text.rstrip(b"\r\n")  # so that many empty lines don't push out the last line with text
        self._tail = kept[-TAIL_BYTES:] + (b"\n" if len(kept) < len(text) else b"")

    def finish(self, within_seconds: float) -> str:
        """Copy the rest, now that the command has ended; return its last line that isn't empty."""
        os.write(self._end, b".")
        self._thread.join(within_seconds)
        lines = self._tail.decode(errors="replace").splitlines()
        return next(filter(None, map(clean, reversed(lines))), "")

    def is_busy(self) -> bool:
        """Tell whether text is left to be copied."""
        return self._thread.is_alive()

    def hand_over(self, mask: Iterable[int]) -> None:
        """Wait until all is copied; hand the pipe to a process of its own if others still write to it."""
        self._thread.join()
        if self._is_open:
            actions = [(os.POSIX_SPAWN_DUP2, self._exit, 0), (os.POSIX_SPAWN_DUP2, STDERR, 1)]
            with suppress(OSError):
                os.posix_spawnp(
                    *("cat", ["cat"], os.environ),
                    file_actions=actions,
                    setpgroup=0,  # its own group, as Ctrl-C isn't meant for it
                    setsigmask=mask,
                    setsigdef=_IGNORED_BY_PYTHON,
                )


def _make_relay() -> _Relay | None:
    """Make a relay for stderr, or None where the command must have stderr itself.

    A program behaves differently on a terminal, so it gets the terminal; and a closed stderr stays closed.
    """
    try:
        os.fstat(STDERR)
        return None if os.isatty(STDERR) else _Relay()
    except (OSError, RuntimeError):  # closed, or no pipe or thread can be made
        return None


def _write(chunk: bytes) -> None:
    rest = memoryview(chunk)
    while rest:
        try:
            rest = rest[os.write(STDERR, rest) :]
        except BlockingIOError:  # a process that shares stderr has made it non-blocking
            select.select([], [STDERR], [])


def _next_signal() -> tuple[int, bool]:
    """Wait for a signal; return it, and whether the terminal sent it to the whole foreground group."""
    if hasattr(signal, "sigwaitinfo"):
        found = signal.sigwaitinfo(_AWAITED)
        return found.si_signo, found.si_code > 0  # above 0: sent by the kernel, not by a process (sigaction(2))
    number = signal.sigwait(_AWAITED)  # macOS doesn't name the sender; in the foreground, assume the terminal
    return number, _is_in_foreground()


def _is_in_foreground() -> bool:
    try:
        return any(os.isatty(stream) and os.tcgetpgrp(stream) == os.getpgrp() for stream in range(3))
    except OSError:
        return False
