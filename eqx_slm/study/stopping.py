"""How a command is told to stop: signals and a number of seconds set a flag, which training reads after every step.

An exception out of a handler is no way to stop while XLA compiles: it ends the process with a fault. So
handlers set the flag alone; and as they have to wait for the main thread to come back from XLA, another thread reads
the signals' numbers from a pipe.
"""

import contextlib
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from types import FrameType

from ..errors import UserError

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Stopping:
    """Whether a command is to stop. A second SIGINT ends the process at once, with exit code 130."""

    def __init__(self):
        self.began, self.ends = time.monotonic(), math.inf
        self.told, self.times, self.raising = False, 0, False

    def __call__(self) -> bool:
        return self.told or time.monotonic() >= self.ends

    def after(self, seconds: float | None) -> None:
        """Stops so many seconds after the command began, None for never; `UserError` for what is no such number."""
        if seconds is not None and not seconds > 0:
            raise UserError(f"--stop-after {seconds:g}: it must be more than 0 seconds")
        self.ends = math.inf if seconds is None else self.began + seconds

    @contextlib.contextmanager
    def signals(self) -> Iterator[None]:
        """Listens to signals as long as the block runs; to those that were ignored (`nohup`) it does not.

        Signals belong to the main thread: in another one this does nothing.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        known = {number: signal.getsignal(number) for number in SIGNALS}
        heard = [number for number, before in known.items() if before not in (signal.SIG_IGN, None)]
        end, start = os.pipe()
        os.set_blocking(start, False)
        wakeup = signal.set_wakeup_fd(start, warn_on_full_buffer=False)
        thread = threading.Thread(target=self._listen, args=(end, {int(number) for number in heard}), daemon=True)
        thread.start()
        for number in heard:
            signal.signal(number, self._handle)
        try:
            yield
        finally:
            for number in heard:
                signal.signal(number, known[number])
            signal.set_wakeup_fd(wakeup)
            os.close(start)  # which ends the thread
            thread.join()
            os.close(end)

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """Within the block a signal raises `KeyboardInterrupt`: for what is long, saves nothing and runs no XLA."""
        self.raising = True
        try:
            if self.told:
                raise KeyboardInterrupt
            yield
        finally:
            self.raising = False

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.told = True
        if self.raising:
            raise KeyboardInterrupt

    def _listen(self, end: int, heard: set[int]) -> None:
        while numbers := os.read(end, 64):
            for number in heard.intersection(numbers):
                self.told = True
                self.times += numbers.count(number) if number == signal.SIGINT else 0
            if self.times > 1:
                sys.stderr.flush()
                os._exit(130)
