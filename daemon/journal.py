"""Structured logging: one line per entry, `key=value` fields, on standard error.

systemd's journal adds time and unit itself and takes the level from the "<n>" prefix
(sd-daemon(3)); elsewhere a line begins with the time.
"""

import logging
import os
import re
import time

from lighter.proto.errors import unforeseen, words_of

_LEVELS = {
    "trace": logging.DEBUG,
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warn": logging.WARNING,
    "error": logging.ERROR,
    "fatal": logging.CRITICAL,
    "panic": logging.CRITICAL,
}
# C0 and C1 control characters, DEL, line separators, and halves of characters (surrogates).
_UNSAFE = re.compile("[\0-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_KINDS = 16
_SYSLOG = {logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4, logging.ERROR: 3}


class _Formatter(logging.Formatter):
    def __init__(self, for_journal: bool) -> None:
        super().__init__()
        self._for_journal = for_journal

    def format(self, record: logging.LogRecord) -> str:
        message = record.getMessage()
        if record.exc_info:
            message += "\n" + self.formatException(record.exc_info)
        # One entry, one line: content must not be able to forge another, or to steer a terminal.
        message = _UNSAFE.sub(lambda found: ascii(found[0])[1:-1], message)
        text = f"level={record.levelname.lower()} from={record.name} {message}"
        if self._for_journal:
            return f"<{_SYSLOG.get(record.levelno, 2)}>{text}"
        at = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        return f"{at}.{int(record.msecs):03d}Z {text}"


def configure(level: str) -> None:
    """Send everything from `level` (containerd's names) on to standard error."""
    handler = logging.StreamHandler()
    handler.setFormatter(_Formatter("JOURNAL_STREAM" in os.environ))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(_LEVELS[level])
    # At debug level it tells of every task that it finds an event loop for.
    logging.getLogger("grpc").setLevel(logging.WARNING)
    logging.raiseExceptions = False


class Repeated:
    """Tells of an attempt that fails again and again, as often as somebody wants to read it.

    Each kind of failure is logged at once, a mistake of ours with its place; and then when it comes
    for the 2nd, 4th, 8th time. Errors that differ in numbers alone are of one kind.
    """

    def __init__(self, log: logging.Logger, attempt: str) -> None:
        self._log = log
        self._attempt = attempt
        self._counts: dict[str, int] = {}

    def failed(self, error: Exception) -> None:
        """It has failed, and is tried again."""
        mistake = unforeseen(error)
        said = (
            words_of(error, self._attempt)
            if mistake is None
            else f"{type(error).__name__}: {error}"
        )
        kind = "".join(letter for letter in said if not letter.isdigit())
        if len(self._counts) >= _KINDS and kind not in self._counts:
            kind = ""  # of those that have nothing in common
        count = self._counts[kind] = self._counts.get(kind, 0) + 1
        if count == 1:
            self._log.error("%s: %s; trying on", self._attempt, said, exc_info=mistake)
        elif not count & (count - 1):
            self._log.error("%s: %s; %d times so far, trying on", self._attempt, said, count)

    def ended(self) -> None:
        """It has worked."""
        if self._counts:
            tries = sum(self._counts.values()) + 1
            self._log.warning("%s: done, at try %d", self._attempt, tries)
            self._counts.clear()
