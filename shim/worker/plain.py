"""Applying a layer to a whole tree (a native snapshot): what is deleted is removed at once.

A whiteout speaks of the layers below, never of its own (image-spec, layer.md, "Whiteouts"), and
may come after entries of its own directory: so what this layer made is remembered by real path.
"""

import os
import stat

from lighter.proto.errors import InvalidArgument, NotFound, PermissionDenied
from lighter.shim.worker.budget import Budget
from lighter.shim.worker.failure import show
from lighter.shim.worker.remove import remove_tree
from lighter.shim.worker.tree import Directory, Tree


class Plain:
    """The rules for one whole tree."""

    __slots__ = ("_budget", "_made", "_purged", "tree")

    def __init__(self, target_fd: int, budget: Budget) -> None:
        self.tree = Tree(target_fd, self.make_parent)
        self._budget = budget
        self._made: set[bytes] = set()
        # Directories rid of all that is older; a marker that comes again has nothing to do.
        self._purged: set[bytes] = set()

    def make_parent(self, parent: Directory, name: bytes) -> None:
        """Make a directory that is only implied: root's, mode 0755."""
        path = parent.child(name)
        try:
            os.mkdir(name, 0o755, dir_fd=parent.fd)
        except FileExistsError as err:
            raise InvalidArgument(f"{show(path)} is not a directory") from err
        self._budget.directory()
        self.made(path)

    def described(self, directory: Directory, *, fresh: bool) -> None:
        """What is here already has the attributes of the layers below."""

    def hide_below(self, directory: Directory) -> None:
        """A directory took the place of something else: nothing older can be in it."""

    def whiteout(self, parent_path: bytes, name: bytes) -> None:
        """Remove what is older at the name."""
        parent = self.tree.find(parent_path)
        if parent is None:
            return
        path = parent.child(name)
        if path not in self._made:
            self._remove(parent, name)
        elif stat.S_ISDIR(os.lstat(name, dir_fd=parent.fd).st_mode):
            self._purge(path)

    def opaque(self, path: bytes) -> None:
        """Remove what is older in the directory."""
        directory = self.tree.find(path)
        if directory is not None:
            self._purge(directory.path)

    def made(self, path: bytes) -> None:
        """Remember that this layer has an entry at the real path, and so every directory above."""
        while path and path not in self._made:
            self._made.add(path)
            path = path.rpartition(b"/")[0]

    def link_source(self, path: bytes, name: bytes) -> Directory:
        """The directory in which a hard link's target `name` is."""
        parent = self.tree.find(path)
        try:
            if parent is not None:
                os.lstat(name, dir_fd=parent.fd)
                return parent
        except FileNotFoundError:
            pass
        raise NotFound(f"link target {show(path + b'/' + name)} does not exist")

    def finish(self) -> None:
        """Nothing is left to do: the tree is whole."""

    def _purge(self, top: bytes) -> None:
        """Remove everything below `top` that this layer has not made."""
        todo = [top]
        while todo:
            path = todo.pop()
            if path in self._purged:
                continue
            self._purged.add(path)
            directory = self.tree.find(path)
            if directory is None:
                continue
            with os.scandir(directory.fd) as listing:
                found = [
                    (os.fsencode(item.name), item.is_dir(follow_symlinks=False)) for item in listing
                ]
            for name, is_dir in found:
                child = directory.child(name)
                if child not in self._made:
                    self._remove(directory, name)
                elif is_dir:
                    todo.append(child)

    def _remove(self, parent: Directory, name: bytes) -> None:
        remains = remove_tree(parent.fd, name)
        self.tree.forget(parent.child(name))
        if remains.left:
            path, cause = remains.left[0]
            raise PermissionDenied(f"remove {path!a}: {cause}")
