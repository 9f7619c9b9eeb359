"""Text that is spoken while it is still being written: from a file descriptor into a session."""

from __future__ import annotations

import codecs
import os
import threading
from collections.abc import Iterator

from .errors import Dia2ClientError, InvalidArgument, SessionEnded
from .streams import Session

_BLOCK_BYTES = 1024  # far below what a server takes in one piece


class UnreadableText(Exception):
    """The text to speak cannot be read, or is not UTF-8."""


def pieces(descriptor: int) -> Iterator[str]:
    """The text of a file descriptor, each piece as soon as it is there. Raises UnreadableText."""
    decoder = codecs.getincrementaldecoder("utf-8-sig")()
    try:
        # Not through sys.stdin: who waits in its lock when Python exits makes Python abort.
        while block := os.read(descriptor, _BLOCK_BYTES):
            if text := decoder.decode(block):
                yield text
        if text := decoder.decode(b"", final=True):
            yield text
    except (OSError, UnicodeDecodeError) as error:
        raise UnreadableText(error) from None


class Dictation:
    """Sends into a session what comes from a file descriptor, in a thread of its own, and closes it at the end.

    What goes wrong ends the session's audio, and is raised by `check()`.
    """

    def __init__(self, session: Session, descriptor: int) -> None:
        self._session = session
        self._error: Exception | None = None
        # A daemon, because it may wait for input for ever.
        self._thread = threading.Thread(target=self._run, args=(descriptor,), name="dia2-dictation", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raises UnreadableText or Dia2ClientError, once the iteration over the session has ended for it."""
        if self._error is not None:
            self._thread.join()  # at once, since it reads no more
            raise self._error

    def _run(self, descriptor: int) -> None:
        try:
            blank = True
            for text in pieces(descriptor):
                self._session.send(text)
                blank = blank and text.isspace()
            if blank:
                raise InvalidArgument("the text is empty; there is nothing to say")
            self._session.close()
        except SessionEnded:
            pass  # the audio has ended before the text, or the user has
        except (UnreadableText, Dia2ClientError) as error:
            self._error = error
            self._session.cancel()
