"""What was done by hand while the disk was full, in the file beside the database."""

from pathlib import Path

from lighter.daemon.metadata.db import Database
from lighter.daemon.restarts.store import Restart, RestartStore


def test_a_note_goes_with_its_container(tmp_path: Path) -> None:
    """Else it would stop the next one of that name, after the manager's next start."""
    db, notes = Database(str(tmp_path / "db")), tmp_path / "restarts.json"
    try:
        store = RestartStore(db, str(notes))
        for name in ("a", "b"):
            store.keep(Restart("default", name, stopped=True))
        store.drop(("default", "a"))
        store.drop(("default", "never there"))
        again = RestartStore(db, str(notes))
        assert again.get("default", "a") is None
        left = again.get("default", "b")
        assert left is not None and left.stopped
        store.drop(("default", "b"))
        assert not notes.exists()
    finally:
        db.close()
