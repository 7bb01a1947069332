"""Ctrl-C, SIGTERM, SIGUSR1 and SIGUSR2 as a request that the loop looks at when it suits it."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from avssl import dist
from avssl.errors import Interrupted

TO_BE_CONTINUED = tuple(getattr(signal, name) for name in ("SIGUSR1", "SIGUSR2") if hasattr(signal, name))
"""By these a scheduler says that time runs out; the run is to go on as soon as there is time again."""


class StopRequest:
    """Whether this process was asked to stop.

    Attributes
    ----------
    number : int
        Number of the signal that asked; 0 for none.
    """

    def __init__(self) -> None:
        self.number = 0

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Note signals while the block runs; a second Ctrl-C ends it at once.

        A second SIGTERM does not: schedulers send it to a launcher and to its processes, and the launcher
        hands it on. Once an error ends one of several processes, SIGTERM is ignored: the launcher sends it to
        those left, which have yet to say what happened.
        """
        in_main = threading.current_thread() is threading.main_thread()  # elsewhere Python refuses handlers
        caught = (signal.SIGINT, signal.SIGTERM, *TO_BE_CONTINUED) if in_main else ()
        previous = {number: signal.signal(number, self._note) for number in caught}
        failed = dist.world_size() > 1
        try:
            yield
            failed = False
        except Interrupted:
            failed = False
            raise
        finally:
            for number, handler in previous.items():
                ignore = failed and number == signal.SIGTERM
                signal.signal(number, signal.SIG_IGN if ignore else handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.number and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.number = self.number or number
