"""From a command line to a manager that runs: which version, detached or not, which log."""

import os
import sys
from typing import TYPE_CHECKING

from lighter.daemon.entry.options import Given, load
from lighter.proto.errors import LighterError

if TYPE_CHECKING:
    from lighter.daemon.config.schema import Config
    from lighter.daemon.notify import Notifier
    from lighter.daemon.spawning.spawner import Inherited

LOG_NAME = "lighterd.log"  # in the state directory, of a manager that detached


def start(given: Given, daemon: bool) -> None:
    """Serve until told to stop. Raises LighterError, OSError when that cannot be."""
    from lighter.daemon.limits import leave_no_core
    from lighter.daemon.notify import Notifier, fork_and_wait
    from lighter.daemon.spawning.spawner import Inherited

    leave_no_core()
    inherited = Inherited.of_this_process()
    config = load(given)
    stands_in = _choose_version(given, config)
    if not daemon:
        _serve(given, config, inherited, Notifier.from_environment(), stands_in)
        return
    shell = fork_and_wait()
    notifier = Notifier.from_environment(shell)
    try:
        _detach(config, shell)
        _serve(given, config, inherited, notifier, stands_in)
    except Exception as err:
        notifier.failed(reason_of(err))
        raise


def _choose_version(given: Given, config: "Config") -> str:
    """Return why this version serves, "" when it was meant to; or become another version."""
    from lighter.daemon.entry import launch
    from lighter.proto.paths import Root, State

    if given.installed.cores:
        launch.hand_over(
            given.installed.cores, Root(config.root), State(config.state), sys.argv[1:]
        )
    return launch.told()


def _detach(config: "Config", shell: int) -> None:
    """Become a daemon: python-daemon's double fork, its own session, no terminal."""
    from daemon import DaemonContext

    os.umask(0o022)
    os.makedirs(config.state, mode=0o711, exist_ok=True)
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
    log_fd = os.open(os.path.join(config.state, LOG_NAME), flags, 0o600)
    os.fchmod(log_fd, 0o600)
    log_file = open(log_fd, "ab", buffering=0)  # noqa: SIM115 (it stays open)
    # Containers inherit these: by default there would be a core limit of 0 and a umask of 0.
    DaemonContext(
        prevent_core=False,
        umask=0o022,
        working_directory="/",
        stdout=log_file,
        stderr=log_file,
        files_preserve=[log_file, shell],
    ).open()


def _serve(
    given: Given,
    config: "Config",
    inherited: "Inherited",
    notifier: "Notifier",
    stands_in: str,
) -> None:
    import asyncio
    import faulthandler

    from lighter.daemon.journal import configure
    from lighter.daemon.manager import Manager

    configure(config.level)
    if notifier.watchdog_s:
        # A watchdog sends SIGABRT: the log says where the event loop was.
        faulthandler.enable()
    manager = Manager(config, inherited, notifier, given.installed, lambda: load(given), stands_in)
    asyncio.run(manager.run())
    # All is closed. To take the interpreter apart would be 30 ms more without a manager.
    try:
        sys.stderr.flush()
    except OSError:
        pass  # a full disk: the log has lost its end, and a good end is one all the same
    os._exit(0)


def reason_of(error: Exception) -> str:
    """One line "verb object: cause"; of a mistake in the programs also where it was made."""
    if isinstance(error, LighterError):
        return error.message
    if not isinstance(error, OSError):
        from traceback import extract_tb

        frames = extract_tb(error.__traceback__)
        where = f" ({frames[-1].filename}:{frames[-1].lineno})" if frames else ""
        cause = " ".join(str(error).split())
        return f"run manager: {type(error).__name__}: {cause}{where}"
    # Of a rename the second is the name that was wanted, the first a temporary one.
    place = error.filename2 or error.filename or "system"
    return f"use {place}: {error.strerror or error}"
