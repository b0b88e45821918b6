"""Lines for whoever watches: where they cannot be written, a script goes on without them."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any, NoReturn, TextIO


@contextlib.contextmanager
def unbreakable_output(script: str, runs_on: bool = False) -> Iterator[None]:
    """No line of output is worth failing for: the disk may be full, the pipe closed, the terminal gone.

    `runs_on`: the script has more to do than to print.
    """
    _open_closed_descriptors()
    with contextlib.ExitStack() as opened:

        def unbreakable(stream: TextIO | None, name: str) -> _Unbreakable:
            return _Unbreakable(stream or opened.enter_context(open(os.devnull, "w")), name, script, runs_on)

        out, err = unbreakable(sys.stdout, "stdout"), unbreakable(sys.stderr, "stderr")
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                yield
            finally:
                out.flush()


def script(main: Callable[..., int], *arguments: Any) -> NoReturn:
    """Call a script's `main` and end with its exit code; a file that cannot be had is a sentence and 2."""
    with unbreakable_output(os.path.basename(sys.argv[0])):
        try:
            code = main(*arguments)
        except OSError as error:
            name = "" if error.filename is None else f"{str(error.filename)[:200]}: "
            print(f"{name}{error.strerror or error}", file=sys.stderr)
            code = 2
        except KeyboardInterrupt:
            print("stopped", file=sys.stderr)
            code = 130
        sys.exit(code)


def columns(rows: list[tuple[str, ...]]) -> list[str]:
    """A line for each row, its cells below those of the other rows."""
    widths = [max(map(len, cells)) for cells in list(zip(*rows, strict=True))[:-1]]
    return ["  ".join([*map(str.ljust, row, widths), row[-1]]).rstrip() for row in rows]


class _Unbreakable:
    """A text stream that drops what it cannot write, and says so once."""

    def __init__(self, stream: TextIO, name: str, script: str, runs_on: bool):
        self._stream, self._name, self._script, self._runs_on = stream, name, script, runs_on

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except UnicodeEncodeError as error:  # a file's name that is no UTF-8, or a terminal that knows ASCII alone
            return self._stream.write(text.encode(error.encoding, "backslashreplace").decode(error.encoding))
        except (OSError, ValueError) as error:  # ValueError: it was closed
            self._give_up(error)
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except (OSError, ValueError) as error:
            self._give_up(error)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _give_up(self, error: Exception) -> None:
        # To nowhere from now on, with what is buffered: it would fail again, at the latest when Python ends.
        with contextlib.suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)
        enough = isinstance(error, BrokenPipeError) and not self._runs_on  # of `status | head`, which has read it
        if self._name != "stderr" and not enough:
            why = getattr(error, "strerror", None) or error
            print(f"{self._script}: cannot write to {self._name}: {why}; the run goes on without it", file=sys.stderr)


def _open_closed_descriptors() -> None:
    """Where stdin, stdout or stderr is closed, open it to nowhere: else the next file that is opened becomes it."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest that is free, which is this one
            os.set_inheritable(descriptor, True)
