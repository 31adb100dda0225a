"""Structured logging: one line per entry, `key=value` fields, on standard error.

systemd's journal adds time and unit itself and takes the level from the "<n>" prefix
(sd-daemon(3)); elsewhere a line begins with the time.
"""

import logging
import os
import re
import time

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
