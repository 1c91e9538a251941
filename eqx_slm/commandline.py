"""What the commands share: options read or refused in one line, and output that cannot end a run."""

import contextlib
import dataclasses
import io
import os
import re
import shutil
import signal
import sys
import threading
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from decimal import Decimal
from typing import Any

from .checks import meant
from .errors import UserError
from .options import presented
from .visible import visible

Values = Callable[[Sequence[str]], Mapping[str, str]]
STOPPED = 75  # the exit code EX_TEMPFAIL of sysexits.h: nothing is wrong, the same command goes on
POWERS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "b": 10**9, "t": 10**12}


def parse(options: Any, arguments: Sequence[str] | None, prog: str, values: Values | None = None) -> Any:
    """`options` (a dataclass, or a union of them) from a command line.

    Exits with code 2 and one line where that cannot be read. `values`: what holds where an option is left out, in
    words by its field; it is asked for the help alone. A class' `examples` are printed below its help.
    """
    import tyro

    given = sys.argv[1:] if arguments is None else list(arguments)
    asked = any(word in ("-h", "--help") for word in given)
    arguments = _gathered(options, given, prog)
    said, kind, back = io.StringIO(), options, None
    try:
        if dataclasses.is_dataclass(options):
            kind, back = presented(options, values(given) if values and asked else {})
        with contextlib.redirect_stderr(said):
            parsed = tyro.cli(kind, args=arguments, prog=prog, config=(tyro.conf.FlagCreatePairsOff,))
        return parsed if back is None else back(parsed)
    except SystemExit as stop:
        if stop.code:
            complain(f"{one_line(said.getvalue())}{_near(options, given)} (see {prog} --help)")
        elif examples := getattr(options, "examples", ()):
            print("\n".join(["", "examples:", *_shown(examples)]))
        raise


def _near(options: Any, given: Sequence[str]) -> str:
    """The option that the first unknown one of a line is near to."""
    fields = dataclasses.fields(options) if dataclasses.is_dataclass(options) else ()
    known = [f"--{field.name.replace('_', '-')}" for field in fields]
    names = (word.partition("=")[0].replace("_", "-") for word in given if word.startswith("--"))
    unknown = next((name for name in names if name not in known), "")
    return meant(unknown, known)


def _shown(examples: Sequence[str]) -> Iterator[str]:
    """A line an example; where one is wider than the terminal, what it says stands above it."""
    width = shutil.get_terminal_size().columns
    narrow = any(len(line) + 2 > width for line in examples)
    for line in examples:
        words, mark, said = line.partition("  # ")
        if narrow and mark:
            yield f"  # {said.strip()}"
        yield f"  {words.rstrip() if narrow else line}"


def command(options: Any, arguments: Sequence[str] | None, prog: str, run: Callable[[Any], object]) -> int:
    """Runs a command that ends at once; returns its exit code: 0, or 2 for what the user can mend."""
    with patient_streams(), at_once_on_interrupt():
        try:
            run(parse(options, arguments, prog))
        except UserError as error:
            complain(error)
            return 2
    return 0


def subcommands(
    known: Mapping[str, tuple[Any, Callable[[Any], object]]], arguments: Sequence[str] | None, prog: str, what: str
) -> int:
    """Runs the one of several commands that the first word names, as `command` does; `what`: a line for the help."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given and given[0] in known:
        options, run = known[given[0]]
        return command(options, given[1:], f"{prog} {given[0]}", run)
    with patient_streams():
        if given and given[0] not in ("-h", "--help"):
            near = meant(given[0], known)
            complain(f"no command {given[0]!r}: it is one of {', '.join(known)}{near} (see {prog} --help)")
            return 2
        lines = {name: options.__doc__.strip().splitlines()[0] for name, (options, _) in known.items()}
        print(listing(prog, f"usage: {prog} COMMAND [OPTIONS]\n\n{what}", lines))
    return 0


def listing(prog: str, head: str, lines: Mapping[str, str], word: str = "COMMAND") -> str:
    """The help of several commands, or of what else a `word` stands for: each with its line."""
    width = max(map(len, lines))
    rows = [f"  {name:{width}}  {line}" for name, line in lines.items()]
    return "\n".join([head, "", *rows, "", f"{prog} {word} --help says what a {word.lower()} takes."])


@contextlib.contextmanager
def at_once_on_interrupt() -> Iterator[None]:
    """Ctrl-C ends the process at once, as it ends a program that knows nothing of it: no traceback, exit code 130 in a
    shell. For what keeps nothing to go on with; an exception into XLA while it compiles could end in a fault.
    """
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextlib.contextmanager
def raising_on_signals() -> Iterator[None]:
    """SIGINT, SIGTERM and SIGHUP raise `KeyboardInterrupt`: for what can go on later and runs no XLA."""

    def stop(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    if threading.current_thread() is not threading.main_thread():
        numbers = ()
    heard = {number: signal.getsignal(number) for number in numbers}
    heard = {number: before for number, before in heard.items() if before not in (signal.SIG_IGN, None)}
    for number in heard:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number, before in heard.items():
            signal.signal(number, before)


def _gathered(options: Any, arguments: list[str], prog: str) -> list[str]:
    """The arguments, with all values of an option that is given several times behind its first place.

    The parser would take the last of them alone. An option of one value that is given twice is refused.
    """
    hints = typing.get_type_hints(options) if dataclasses.is_dataclass(options) else {}
    several = {f"--{name.replace('_', '-')}" for name, hint in hints.items() if "tuple" in str(hint)}
    known = {f"--{name.replace('_', '-')}" for name in hints}
    front: list[str] = []
    found: dict[str, list[str]] = {}
    values = front
    for argument in arguments:
        name, equals, value = argument.partition("=")
        name = name.replace("_", "-")
        if name not in known:
            if argument.startswith("--"):  # `--no-rounds`, `--help`: no value of the option before it
                values = front
            values.append(argument)
            continue
        if name in found and name not in several:
            complain(f"{name} is given twice: give it once (see {prog} --help)")
            raise SystemExit(2)
        values = found.setdefault(name, [])
        values += [value] if equals else []
    for name, own in found.items():
        if hints[name[2:].replace("-", "_")] in (int, int | None):
            found[name] = [_plain(value) for value in own]
    # One value that begins with a dash reads as an option unless it is written as it came.
    single = {name: own[0] for name, own in found.items() if len(own) == 1}
    whole = [f"{name}={value}" for name, value in single.items() if value.startswith("-")]
    rest = [(name, own) for name, own in found.items() if not single.get(name, "").startswith("-")]
    return front + whole + [part for name, own in rest for part in (name, *own)]


def count_of(name: str, text: str) -> int:
    """A whole number as people write it: 30M, 400k, 1.5e6, 50_257 or 50,257.

    **Raises:** `UserError` for anything else, and where it is below 1.
    """
    plain = re.fullmatch(r"(\d[\d_,]*(?:\.\d+)?(?:[eE]\+?\d{1,2})?)([kKmMgGbBtT]?)", text.strip())
    if plain is not None:
        number = Decimal(re.sub("[_,]", "", plain[1])) * POWERS[plain[2].lower()]
        if number >= 1 and number == int(number):
            return int(number)
    raise UserError(f"{name} {text!r}: a whole number of at least 1, such as 50257, 400k, 30M or 1.5e6")


def _plain(text: str) -> str:
    """A count as people write it in plain digits; anything else as it is, for the parser to refuse."""
    try:
        return str(count_of("", text))
    except UserError:
        return text


def complain(message: Any) -> None:
    """One line on standard error, whatever the message holds."""
    print(f"error: {visible(str(message))}", file=sys.stderr)


def one_line(box: str) -> str:
    """The message in tyro's box, drawn in lines or in ASCII: what follows the title, up to the next rule or gap."""
    texts = [line.strip("\u2502| ") for line in box.splitlines() if line.strip()]
    message: list[str] = []
    for text in texts[1:]:  # the first is the title
        ends = not text or re.search("[\u2500-]{3}", text) is not None
        if ends and message:
            break
        if not ends:
            message.append(text)
    return _plainly(" ".join(message).rstrip(".")) or "the options cannot be read"


def _plainly(text: str) -> str:
    """The parser's message without the words of its own types."""
    if number := re.fullmatch(r"Error parsing (\S+): invalid literal for int\(\) with base 10: ('.*?')", text):
        return f"{number[1]} {number[2]}: it must be a whole number"
    wrong = re.fullmatch(r"Error parsing (\S+): no type matching (.*) could be instantiated from \['(.*?)'.*\]", text)
    if wrong is None:
        return text.replace("'None', ", "").replace(", 'None'", "")
    kind = "a whole number" if "INT" in wrong[2] else "a number" if "FLOAT" in wrong[2] else wrong[2]
    return f"{wrong[1]} {wrong[3]!r}: it must be {kind}"


class _Nowhere(io.TextIOBase):
    encoding = "utf-8"

    def write(self, text: str) -> int:
        return len(text)


class Patient:
    """A text stream that takes everything: what its encoding lacks as an escape, and nothing once nobody reads.

    A run of hours must not end because `| head -1` has left, the terminal has gone or the disk under a log is full.
    """

    def __init__(self, stream: Any):
        """**Arguments:** `stream`: what to write to; None writes nowhere."""
        self._stream = _Nowhere() if stream is None or stream.closed else stream

    def write(self, text: str) -> int:
        """Writes, or does not."""
        try:
            return self._stream.write(text)
        except UnicodeEncodeError:
            encoding = self._stream.encoding
            return self._stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
        except (OSError, ValueError):
            self._leave()
            return len(text)

    def flush(self) -> None:
        """Flushes, or does not."""
        try:
            self._stream.flush()
        except (OSError, ValueError):
            self._leave()

    def _leave(self) -> None:
        # What is buffered has to go somewhere, or the interpreter complains at its end and exits with 120.
        with contextlib.suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)
        self._stream = _Nowhere()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextlib.contextmanager
def patient_streams() -> Iterator[None]:
    """Standard output and error as `Patient` streams, for as long as a command runs."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:  # closed (`>&-`): the next file to be opened would get this number, and what is printed
            os.open(os.devnull, os.O_RDWR)
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (Patient(stream) for stream in before)  # type: ignore[assignment]
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        sys.stdout, sys.stderr = before
