"""A task's directory: what the shim and the runtime need, written before the shim is forked.

<state>/tasks/<ns>/<id>/   0700, as the directories above it; with mapped ids 0710 below 0711
    config.json   the OCI spec       rootfs/      mount point
    claim-<incarnation>              renamed to shim.json by the shim's first act
    exec-<exec id>.json              the process of an exec, while runc reads it
    added-<exec id>.json             how an exec is to be started that was only added so far
    runtime.json                     how the runtime is called, when a client has chosen that
    resources-<random>.json          new limits, while runc reads them
    lost                             its shim died first, and its processes are ended by us
"""

import contextlib
import errno
import json
import os
import stat
from collections.abc import Iterator, Mapping
from typing import Any

from lighter.daemon import files
from lighter.daemon.errors import from_os
from lighter.daemon.tasks.types import Exit
from lighter.proto.codec import MAX_MESSAGE_BYTES
from lighter.proto.errors import (
    AlreadyExists,
    FailedPrecondition,
    LighterError,
    NotFound,
    ResourceExhausted,
    Unavailable,
)
from lighter.proto.paths import Root, State
from lighter.proto.socketpath import check_socket_path


class Bundle:
    """The paths of one task and the few acts on them."""

    def __init__(self, state: State, root: Root, namespace: str, container_id: str) -> None:
        self._state = state
        self._root = root
        self.namespace = namespace
        self.id = container_id
        self.dir = state.task(namespace, container_id)
        self.record = self.dir + "/shim.json"
        self.rootfs = self.dir + "/rootfs"
        self.exit_record = root.exit_record(namespace, container_id)

    def claim(self, incarnation: str) -> str:
        return f"{self.dir}/claim-{incarnation}"

    def write(self, spec: bytes, incarnation: str, log_dir: str) -> None:
        """Make the directory with all that the order names. Raises AlreadyExists, or as from_os."""
        try:
            above = (
                os.path.dirname(self.dir),
                os.path.dirname(self.exit_record),
                self._state.runc_root(self.namespace),
                *((log_dir,) if log_dir else ()),
            )
            for directory in above:
                if not os.path.isdir(directory):  # below one of 0700, so its own mode is no matter
                    files.make_directory(directory, 0o700)
            os.mkdir(self.dir, 0o700)
            os.mkdir(self.rootfs, 0o755)
            _create(self.dir + "/config.json", spec)
            _create(self.claim(incarnation), b"")
        except FileExistsError as err:
            raise AlreadyExists(f"make bundle {self.dir}: it is there already") from err
        except OSError as err:
            self.remove()
            raise from_os(f"make bundle {self.dir}", err) from err

    def open_to(self, gid: int) -> None:
        """Let the root of a user namespace, whose group on the host this is, reach the rootfs.

        It has no other right on what it passes through than to pass.

        Raises FailedPrecondition for a directory of others that does not let it pass, Unavailable.
        """
        above = self._state.dir
        while above != "/":
            if not os.stat(above).st_mode & stat.S_IXOTH:
                self.remove()
                raise FailedPrecondition(
                    f"open bundle {self.dir}: mapped ids cannot pass {above} (chmod o+x)"
                )
            above = os.path.dirname(above)
        try:
            for directory in (self._state.tasks, os.path.dirname(self.dir)):
                os.chmod(directory, 0o711)  # noqa: S103 (as said)
            os.chown(self.dir, 0, gid)
            os.chmod(self.dir, 0o710)  # noqa: S103
        except OSError as err:
            raise Unavailable(f"open bundle {self.dir}: {err.strerror}") from err

    def withdraw(self, incarnation: str) -> bool:
        """Take the claim back; True: no shim of this incarnation runs or will ever run."""
        try:
            os.unlink(self.claim(incarnation))
        except FileNotFoundError:
            try:
                record = self.shim_record()
            except Unavailable:
                return False  # somebody has claimed it
            if record is None:
                return not os.path.exists(self.record)
            return record.get("incarnation") != incarnation
        return True

    @contextlib.contextmanager
    def room_for_runtime(self) -> Iterator[None]:
        """A runtime or a shim that fails for want of space says it in its own words, or not."""
        try:
            yield
        except (FailedPrecondition, Unavailable) as err:
            if full := files.full_disk(self.dir, os.path.dirname(self.exit_record)):
                message = f"{err.message}; the disk of {full} is full"
                raise ResourceExhausted(message, **err.details) from err
            raise

    def exists(self) -> bool:
        return os.path.lexists(self.dir)

    def shim_record(self) -> dict[str, Any] | None:
        """What the shim wrote when it claimed the task; None for what no shim writes.

        Raises Unavailable while it cannot be read.
        """
        record = _read_json(self.record)
        if record is None or not isinstance(record.get("incarnation"), str):
            return None
        numbers = (record.get("pid"), record.get("start"))
        sound = all(type(number) is int and 0 < number < 1 << 63 for number in numbers)
        return record if sound and record["pid"] < 1 << 31 else None

    def read_exit(self) -> dict[str, Any] | None:
        """The exit that a shim has recorded. Raises Unavailable while it cannot be read."""
        return _read_json(self.exit_record)

    def exit_of(self, incarnation: str) -> Exit | None:
        """The recorded end of this incarnation. Raises Unavailable while it cannot be read."""
        record = self.read_exit()
        if record is None or record.get("incarnation") != incarnation:
            return None
        try:
            status, at = int(record["exit_status"]), int(record["exited_at"])
            return Exit(status, at, str(record["cause"]))
        except (KeyError, TypeError, ValueError):
            return None  # no shim writes that

    def note_lost(self) -> None:
        """Remember that the container outlived its shim and is ended for that."""
        with contextlib.suppress(OSError):
            _create(self.dir + "/lost", b"")

    def is_lost(self) -> bool:
        return os.path.exists(self.dir + "/lost")

    def write_process(self, exec_id: str, process: Mapping[str, Any]) -> str:
        path = f"{self.dir}/exec-{exec_id}.json"
        self._write(path, process)
        return path

    def remove_process(self, exec_id: str) -> None:
        # runc leaves its pid file as it began it when the disk is full, and takes no other for it.
        for name in (f"exec-{exec_id}.json", f".exec-{exec_id}.pid"):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(f"{self.dir}/{name}")

    def write_added(self, exec_id: str, request: Mapping[str, Any]) -> None:
        self._write(f"{self.dir}/added-{exec_id}.json", request)

    def added(self, exec_id: str) -> dict[str, Any] | None:
        """What `write_added` wrote: it outlives the manager, as the exec does."""
        return _read_json(f"{self.dir}/added-{exec_id}.json", MAX_MESSAGE_BYTES)

    def is_added(self, exec_id: str) -> bool:
        return os.path.exists(f"{self.dir}/added-{exec_id}.json")

    def remove_added(self, exec_id: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(f"{self.dir}/added-{exec_id}.json")

    @contextlib.contextmanager
    def resources(self, resources: Mapping[str, Any]) -> Iterator[str]:
        """The path of a file that says this, while it is needed."""
        path = f"{self.dir}/resources-{os.urandom(4).hex()}.json"
        self._write(path, resources)
        try:
            yield path
        finally:
            os.unlink(path)

    def write_runtime(self, called: Mapping[str, Any]) -> None:
        self._write(self.dir + "/runtime.json", called)

    def runtime(self) -> dict[str, Any]:
        """{root, cgroup, flags}; {} of one that is called as ever."""
        return _read_json(self.dir + "/runtime.json") or {}

    def _write(self, path: str, value: Mapping[str, Any]) -> None:
        try:
            files.write_whole(path, json.dumps(value).encode())
        except FileNotFoundError as err:
            raise NotFound(f"write {path}: the task's directory is not there any more") from err
        except OSError as err:
            raise from_os(f"write {path}", err) from err

    def console(self) -> str:
        """A new short path for a terminal's socket (see proto/paths)."""
        try:
            files.make_directory(self._state.short_sockets, 0o700)
        except OSError as err:
            raise from_os("make a terminal's socket", err) from err
        return check_socket_path(f"{self._state.short_sockets}/{os.urandom(4).hex()}")

    def remove_console(self, path: str) -> None:
        """Remove the console socket once the runtime has run: a shim that died meanwhile has left
        it.
        """
        if path:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)

    def remove(self) -> None:
        """Delete the directory, or leave it alone while its root is mounted.

        Raises Unavailable then, and when it cannot be deleted: a later task could not have it;
        FailedPrecondition where nothing can be written.
        """
        if os.path.ismount(self.rootfs):
            raise Unavailable(f"remove bundle {self.dir}: its rootfs is still mounted")
        # No descent into rootfs: it is empty, or something is in it that is not ours to delete.
        try:
            os.rmdir(self.rootfs)
        except FileNotFoundError:
            pass
        except OSError as err:
            raise _not_removed(self.rootfs, err) from err
        # With all that it knows of compression it takes 4 ms to load, and a start removes nothing.
        import shutil

        try:
            shutil.rmtree(self.dir)
        except FileNotFoundError:
            pass
        except OSError as err:
            raise _not_removed(f"bundle {self.dir}", err) from err

    def remove_exit_record(self) -> None:
        """The record, and what a shim that died while it wrote one has left."""
        for path in (self.exit_record, self.exit_record + ".tmp"):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)


def _not_removed(what: str, error: OSError) -> LighterError:
    if error.errno == errno.EROFS:
        return from_os(f"remove {what}", error)
    return Unavailable(f"remove {what}: {error.strerror}")


def _create(path: str, data: bytes) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
    fd = os.open(path, flags, 0o600)
    try:
        while data:
            data = data[os.write(fd, data) :]
    finally:
        os.close(fd)


def _read_json(path: str, most_bytes: int = 1 << 20) -> dict[str, Any] | None:
    """The JSON object in a file; None when the file is missing or holds something else. Raises
    Unavailable.
    """
    try:
        data = files.read_capped(path, most_bytes)
    except OSError as err:
        raise Unavailable(f"read {path}: {err.strerror}") from err
    if data is None:
        return None
    try:
        value = json.loads(data)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None
