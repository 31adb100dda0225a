"""What `lighterd migrate` does: the stores of one instance are opened without a manager, filled,
and closed. A running manager is refused: it is stopped first, which no container notices.
"""

import asyncio
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import ExitStack

from lighter.daemon.beginning import begin
from lighter.daemon.config.schema import Config
from lighter.daemon.content.store import ContentStore
from lighter.daemon.errors import from_os
from lighter.daemon.events.log import EventLog
from lighter.daemon.images.store import ImageStore
from lighter.daemon.locks import take_lock
from lighter.daemon.metadata.mend import open_database
from lighter.daemon.migrate.containerd import ContainerdRoot
from lighter.daemon.migrate.migration import Migrated, Migration
from lighter.proto.errors import FailedPrecondition, PermissionDenied
from lighter.proto.paths import Root, State


def migrate(
    config: Config, source: str, namespaces: Sequence[str], *, dry_run: bool
) -> Iterator[Migrated]:
    """What became of each image, as it happens. Raises LighterError when nothing can be done."""
    if os.geteuid() != 0:
        raise PermissionDenied("migrate images: it must run as root")
    root = Root(config.root)
    there = ContainerdRoot(source)
    os.umask(0o022)
    with ExitStack() as undo:
        if not dry_run or os.path.exists(root.database):
            os.makedirs(root.dir, 0o700, exist_ok=True)
            try:
                undo.callback(os.close, take_lock(root.lock, wait_s=0))
            except FailedPrecondition as err:
                advice = "stop the manager first (systemctl stop lighterd): its containers go on"
                raise FailedPrecondition(f"migrate images: {err.message}; {advice}") from err
        if dry_run:
            # Looking changes nothing, not even a schema or what is damaged: a copy stands for it.
            copy = undo.enter_context(tempfile.TemporaryDirectory(prefix="lighter-dry-"))
            _copy_database(root, Root(copy))
            root = Root(copy)
        db = open_database(root.database)
        undo.callback(db.close)
        if not dry_run:
            # As a start does it: what comes must not be taken for files of a database that is lost.
            begin(db, root, State(config.state))
        told = EventLog(db)
        shared = config.content_sharing == "shared"
        content = ContentStore(root.content, db, told, share_all=shared)
        migration = Migration(there, content, ImageStore(db, told))
        steps = _steps(migration, namespaces, dry_run)

        async def step() -> Migrated | None:
            return await anext(steps, None)

        with asyncio.Runner() as runner:
            while (done := runner.run(step())) is not None:
                yield done


def _copy_database(root: Root, copy: Root) -> None:
    for suffix in ("", "-wal"):
        try:
            shutil.copyfile(root.database + suffix, copy.database + suffix)
        except FileNotFoundError:
            continue
        except OSError as err:
            raise from_os("copy database to look at it", err) from err


async def _steps(
    migration: Migration, namespaces: Sequence[str], dry_run: bool
) -> AsyncIterator[Migrated]:
    for image in migration.wanted(namespaces):
        yield await migration.take(image, dry_run=dry_run)
