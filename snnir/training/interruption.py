"""Ctrl-C as something a loop can look at between two steps."""

from __future__ import annotations

import signal
from types import FrameType


class Interruption:
    """While entered, a first Ctrl-C is only noted; a second one ends the program at once."""

    def __init__(self) -> None:
        self.noted = False

    def __enter__(self) -> Interruption:
        try:
            self._before = signal.signal(signal.SIGINT, self._note)
        except ValueError:  # not the main thread: whoever runs it handles signals
            self._before = None
        return self

    def __exit__(self, *error: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.noted:
            raise KeyboardInterrupt
        self.noted = True
