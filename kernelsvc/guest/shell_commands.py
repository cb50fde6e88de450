"""Run the commands of ``!cmd``, ``x = !cmd``, ``%pip`` and ``%%bash`` without a terminal emulation and without threads.

IPython runs ``!cmd`` with pexpect, which sleeps and polls: 130 ms and more for a command that takes one. It runs
``%%bash`` in an event loop of its own in a second thread, which a fork of the kernel would not have. Here one poll(2)
loop in the calling thread does both.

``!cmd`` writes to a pseudo-terminal (pty(7)), as with IPython, so programs show colours and columns and send each line
at once. It reads from ``/dev/null``, and the terminal is open for writing only and controls no process: a
program that would wait for a key gets end of file or an error instead. The terminal has so many rows that a pager has
no reason to wait. One that opens the terminal by its name (ttyname(3)) and waits all the same gets the key ``q``.

A command runs in a session of its own (setsid(2)), so that an interrupt can end it with all its processes.
"""

from __future__ import annotations

import codecs
import contextlib
import errno
import fcntl
import functools
import os
import select
import shutil
import signal
import struct
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator, Sequence

# The class itself: user code may replace or remove ``subprocess.Popen``.
from subprocess import DEVNULL, PIPE, STDOUT, CalledProcessError, Popen
from typing import Any

from IPython.core.magics.script import ScriptMagics
from IPython.utils.process import arg_split
from IPython.utils.text import LSString, SList

from kernelsvc.guest.model_view.hints import failed_install

Write = Callable[[str], None]

#: Rows and columns of the terminal. pexpect has 24 rows.
_SIZE = struct.pack("HHHH", 1000, 80, 0, 0)
#: Seconds without output after which a program that reads single keys (termios(3), without ``ICANON``) waits for one.
_KEY_SECONDS = 0.5
#: Opens the other end of a pseudo-terminal without its path (ioctl_tty(2), Linux 4.13).
_TIOCGPTPEER = 0x5441
#: Keys that a command gets before it is ended.
_MAX_KEYS = 8
_READ = 64 * 1024
#: Most bytes that are read after the command's end, while a background process of it still writes.
_LAST_BYTES = 1 << 20
#: Seconds for the processes of an interrupted command to end by themselves: first without a signal, since the kernel
#: host interrupts them too, then after SIGINT, then after SIGTERM.
_END_SECONDS = {0: 0.05, int(signal.SIGINT): 0.25, int(signal.SIGTERM): 0.1}


def run(
    argv: Sequence[str],
    *,
    out: Write,
    err: Write | None = None,
    text: bytes | None = None,
    terminal: bool = False,
) -> int:
    """Run a command and pass on its output as it comes.

    Args:
        argv: program and arguments.
        out: gets the standard output.
        err: gets the standard error, or None if that belongs to the standard output.
        text: the standard input. None is at its end at once.
        terminal: whether the output is a terminal. The command's end is then the end of its first process, and
            background processes get SIGHUP, as if a terminal were closed. Otherwise its output ends when every process
            has closed it.

    Returns:
        The exit status, or the negative number of the signal that ended it.

    Raises:
        OSError: the program can't be started.
        KeyboardInterrupt: the command was interrupted. All its processes have ended.
    """
    with _Command(argv, out, err, text, terminal=terminal) as command:
        return command.wait()


class _Command:
    """A command, from its start on entry to the end of all its processes on exit. See ``run`` for the arguments.

    An interrupt must not be lost or leave the command running, wherever it comes. So its handler only makes a note
    until ``__enter__`` can end what it has started.
    """

    def __init__(
        self, argv: Sequence[str | bytes], out: Write | None, err: Write | None, text: bytes | None, *, terminal: bool
    ) -> None:
        self._argv = list(argv)
        self._writers = (out, err)
        self._terminal = terminal
        self._text = text
        self._child: Popen[bytes] | None = None
        self._outputs: dict[int, Write] = {}
        self._left = memoryview(text or b"")
        self._keys = 0
        self._interrupted = False
        self._poll = select.poll()
        self._descriptors = contextlib.ExitStack()

    def __enter__(self) -> _Command:
        # Handlers run in the main thread (signal, "Signals and threads").
        handled = threading.current_thread() is threading.main_thread()
        before = signal.signal(signal.SIGINT, self._note) if handled else None
        try:
            try:
                self._start()
            finally:
                if handled:
                    signal.signal(signal.SIGINT, before)
            if self._interrupted:
                os.kill(os.getpid(), signal.SIGINT)
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self._descriptors.close()
        else:
            self._end()

    def _note(self, number: int, frame: object) -> None:
        self._interrupted = True

    def _start(self) -> None:
        out, err = self._writers
        streams: dict[str, Any] = {}
        read = -1
        if self._terminal:
            read, write = _open_terminal()
            self._descriptors.callback(os.close, read)
            streams = {"stdin": DEVNULL, "stdout": write, "stderr": write}
        elif out is not None:
            stdin = DEVNULL if self._text is None else PIPE
            streams = {"stdin": stdin, "stdout": PIPE, "stderr": STDOUT if err is None else PIPE}
        try:
            child = self._child = Popen(self._argv, bufsize=0, start_new_session=True, **streams)
        finally:
            if self._terminal:
                os.close(write)
        self._pidfd = os.pidfd_open(child.pid)
        self._descriptors.callback(os.close, self._pidfd)
        for pipe in (child.stdin, child.stdout, child.stderr):
            if pipe is not None:
                self._descriptors.callback(pipe.close)
        if self._terminal and out is not None:
            self._outputs[read] = out
        for pipe, writer in ((child.stdout, out), (child.stderr, err)):
            if pipe is not None and writer is not None:
                self._outputs[pipe.fileno()] = writer
        self._decoders = {fd: codecs.getincrementaldecoder("utf-8")("replace") for fd in self._outputs}
        self._poll.register(self._pidfd, select.POLLIN)
        for fd in self._outputs:
            os.set_blocking(fd, False)
            self._poll.register(fd, select.POLLIN)
        if child.stdin is not None:
            os.set_blocking(child.stdin.fileno(), False)
            self._poll.register(child.stdin.fileno(), select.POLLOUT)

    def wait(self) -> int:
        """Pass on output until the command has ended. Return its status."""
        assert self._child is not None
        ended = False
        while not ended or (self._outputs and not self._terminal):
            ready = self._poll.poll(_KEY_SECONDS * 1000 if self._terminal and self._outputs else None)
            if not ready:
                self._leave_pager()
            for fd, _ in ready:
                if fd == self._pidfd:
                    ended = True
                    self._poll.unregister(fd)
                elif fd in self._outputs:
                    self._read(fd)
                else:
                    self._feed()
        if self._terminal:
            # As Linux does when the first process of a terminal's session ends (setpgid(2), "orphaned").
            self._signal(signal.SIGHUP)
            self._drain()
        return self._child.wait()

    def _leave_pager(self) -> None:
        """If a program waits for a key of the terminal, send it ``q``. If it waits again, end the command."""
        (terminal,) = self._outputs
        if termios.tcgetattr(terminal)[3] & termios.ICANON:
            return
        self._keys += 1
        if self._keys > _MAX_KEYS:
            self._signal(signal.SIGHUP)
        else:
            os.write(terminal, b"q")

    def _read(self, fd: int) -> int:
        """Pass on what can be read at once. Return the number of bytes."""
        try:
            data = os.read(fd, _READ)
        except BlockingIOError:
            return 0
        except OSError as error:
            if error.errno != errno.EIO:  # EIO: no process has the terminal open any more.
                raise
            data = b""
        text = self._decoders[fd].decode(data, final=not data)
        write = self._outputs[fd]
        if not data:
            self._poll.unregister(fd)
            del self._outputs[fd]
        if text:
            write(text)
        return len(data)

    def _feed(self) -> None:
        """Write the next part of the standard input, and close it after the last."""
        stdin = self._child.stdin if self._child else None
        assert stdin is not None
        try:
            if self._left:
                self._left = self._left[os.write(stdin.fileno(), self._left[:_READ]) :]
        except BlockingIOError:
            return
        except BrokenPipeError:  # The program reads no further.
            self._left = self._left[:0]
        if not self._left:
            self._poll.unregister(stdin.fileno())
            stdin.close()

    def _drain(self) -> None:
        """Pass on what was written until now. poll(2) completes writes to a terminal that are still under way."""
        left = _LAST_BYTES
        while left > 0:
            ready = [fd for fd, _ in self._poll.poll(0) if fd in self._outputs]
            if not ready:
                return
            left -= sum(self._read(fd) or 1 for fd in ready)

    def _signal(self, number: int) -> None:
        if self._child is not None and number:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._child.pid, number)

    def _end(self) -> None:
        """Interrupt all processes of the command, and kill those that do not end. Their last output is passed on."""
        if self._child is None:
            self._descriptors.close()
            return
        try:
            for number, seconds in _END_SECONDS.items():
                self._signal(number)
                if self._ends_within(seconds):
                    break
        finally:
            self._signal(signal.SIGKILL)
            self._child.wait()
            self._descriptors.close()

    def _ends_within(self, seconds: float) -> bool:
        end = time.monotonic() + seconds
        poll = select.poll()
        poll.register(self._pidfd, select.POLLIN)
        while (left := end - time.monotonic()) > 0:
            self._drain()
            if poll.poll(min(left, 0.01) * 1000):
                self._drain()
                return True
        return False


def _open_terminal() -> tuple[int, int]:
    """Return the two ends of a new pseudo-terminal: one to read from, and one that can only be written to."""
    read, both = os.openpty()
    try:
        fcntl.ioctl(read, termios.TIOCSWINSZ, _SIZE)
        # less and others read keys from descriptor 2 if they have no /dev/tty. Here that fails with EBADF.
        write = fcntl.ioctl(read, _TIOCGPTPEER, os.O_WRONLY | os.O_NOCTTY | os.O_CLOEXEC)
    except BaseException:
        os.close(read)
        raise
    finally:
        os.close(both)
    return read, write


# --- for IPython ------------------------------------------------------------------------------------------------------


def show(text: str) -> None:
    """Print output of a command at once."""
    print(text, end="", flush=True)  # noqa: T201  wherever sys.stdout leads


def _show_error(text: str) -> None:
    print(text, end="", flush=True, file=sys.stderr)  # noqa: T201


def shell_path() -> str:
    """Return the path of the user's shell.

    Raises:
        OSError: there is no such program.
    """
    name = os.environ.get("SHELL", "sh")
    found = shutil.which(name)
    if found is None:
        raise OSError(f'"{name}" shell not found')
    return found


def system(command: str) -> int:
    """Run a command of ``!command`` and print its output.

    Returns:
        Its exit status. Negative is the signal that ended it or, as shells report it, its last program.

    Raises:
        KeyboardInterrupt: it was interrupted. IPython would go on with the cell's next line.
    """
    status = run([shell_path(), "-c", command], out=show, terminal=True)
    return 128 - status if status > 128 else status


def output_of(command: str, *, separate: bool = False) -> tuple[str, str, int]:
    """Run a command of ``x = !command``.

    Args:
        command: for the user's shell.
        separate: whether standard error is returned by itself, and not between the lines of standard output.

    Returns:
        Standard output, standard error, and the exit status, negative for a signal.

    Raises:
        KeyboardInterrupt: it was interrupted.
    """
    out: list[str] = []
    err: list[str] = []
    argv = [os.environ.get("SHELL") or "/bin/sh", "-c", command]
    status = run(argv, out=out.append, err=err.append if separate else None)
    return "".join(out), "".join(err), status


def _interruptible_system(command: str | bytes | os.PathLike[str] | os.PathLike[bytes]) -> int:
    """``os.system`` that an interrupt ends. system(3) ignores SIGINT while it waits.

    Args:
        command: for ``/bin/sh``.

    Returns:
        The wait status (wait(2)).
    """
    sys.audit("os.system", command)
    with _Command([b"/bin/sh", b"-c", os.fsencode(command)], None, None, None, terminal=False) as running:
        status = running.wait()
    return -status if status < 0 else status << 8


class ShellCommands:
    """The methods of IPython's shell that run commands."""

    user_ns: dict[str, Any]
    var_expand: Callable[..., str]

    def system_piped(self, cmd: str) -> None:
        """Run ``!cmd``. See IPython: the exit status is in the variable ``_exit_code``.

        Raises:
            OSError: The command ends in ``&``, which IPython does not run either.
            CalledProcessError: It failed, and ``system_raise_on_error`` is set.
            KeyboardInterrupt: It was interrupted.
        """
        _refuse_background(cmd)
        expanded = self.var_expand(cmd, depth=1)
        self.user_ns["_exit_code"] = -int(signal.SIGINT)  # in case of an interrupt
        status = self.user_ns["_exit_code"] = system(expanded)
        if status and os.environ.get("KERNELSVC_HINTS") != "0" and (fact := failed_install(expanded)):
            _show_error(f"{fact}\n")
        if status and getattr(self, "system_raise_on_error", False):
            raise CalledProcessError(status, cmd)

    system = system_piped

    def getoutput(self, cmd: str, split: bool = True, depth: int = 0) -> Any:
        """Return the output of ``x = !cmd``. See IPython.

        Raises:
            OSError: The command ends in ``&``.
            CalledProcessError: It failed, and ``system_raise_on_error`` is set.
            KeyboardInterrupt: It was interrupted.
        """
        _refuse_background(cmd)
        checked = getattr(self, "system_raise_on_error", False)
        out, err, status = output_of(self.var_expand(cmd, depth=depth + 1), separate=checked)
        if checked:
            self.user_ns["_exit_code"] = status
            if status:
                raise CalledProcessError(status, cmd)
        return SList((out + err).splitlines()) if split else LSString(out + err)


def _refuse_background(cmd: str) -> None:
    if cmd.rstrip().endswith("&"):
        raise OSError("Background processes not supported.")


def install() -> None:
    """Have ``%%bash`` and its relatives, and ``os.system``, run here. Call it before the shell is created."""
    ScriptMagics.shebang = _script(ScriptMagics.shebang)
    os.system = _interruptible_system


def _script(original: Callable[..., Any]) -> Callable[..., Any]:
    """Return the method of ``%%script``. Scripts in the background stay with IPython's."""

    @functools.wraps(original)  # The magic's name and its parser are attributes of the function.
    def shebang(self: Any, line: str, cell: str) -> Any:
        args, command = original.parser.parse_known_args(arg_split(line, posix=True))  # type: ignore[attr-defined]
        if args.bg:
            return original(self, line, cell)
        names = self.shell.user_ns
        with _collected(names, args.out, show) as out, _collected(names, args.err, _show_error) as err:
            text = cell if cell.endswith("\n") else cell + "\n"
            data = text.encode("utf-8", "replace")
            try:
                status = run(command, out=out, err=err, text=data)
            except FileNotFoundError:
                print(f"Couldn't find program: {command[0]!r}")  # noqa: T201  as IPython does
                return None
        if args.raise_error and status != 0:
            raise CalledProcessError(status, data)
        return None

    return shebang


@contextlib.contextmanager
def _collected(names: dict[str, Any], name: str | None, otherwise: Write) -> Iterator[Write]:
    """Yield a function that adds text to a variable, or ``otherwise`` if there is no name."""
    if not name:
        yield otherwise
        return
    parts: list[str] = []
    names[name] = ""
    try:
        yield parts.append
    finally:
        names[name] = "".join(parts)
