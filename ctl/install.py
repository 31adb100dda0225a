"""`ctl install`: programs of an image, and its libraries, into a directory of the host.

The image's files are written as `ctl cp` writes them: no name and no link of it leads out of the
directory, and set-user-ID bits are taken off.
"""

import contextlib
import os
import secrets
import stat

from lighter.ctl import grammar
from lighter.ctl.cli import Session
from lighter.ctl.files import unpack_from
from lighter.proto.errors import InvalidArgument, LighterError, NotFound


@grammar.command("install")
@grammar.option("--libs", "-l", is_flag=True, help="Its /lib too.")
@grammar.option("--replace", "-r", is_flag=True, help="Write over what is there.")
@grammar.option(
    "--path", type=grammar.PATH, default="/opt/containerd", show_default=True, help="Where to."
)
@grammar.argument("image")
def install(session: Session, image: str, libs: bool, replace: bool, path: str) -> None:
    """Put the programs in an image's /bin into a directory of the host, as ctr does.

    \b
      ctl install --path /usr/local docker.io/library/tools:1
    """
    id_ = f"install-{secrets.token_hex(6)}"
    session.call("containers.create", image=image, id=id_, args=["true"], log={"driver": "none"})
    try:
        found = [_install(session, id_, name, path, replace) for name in ("bin", "lib")[: 1 + libs]]
        if not any(found):
            raise NotFound(f"install {image}: it has no /bin")
    finally:
        with contextlib.suppress(LighterError):
            session.manager.undo("containers.delete", id=id_, force=True, volumes=True)


def _install(session: Session, id_: str, name: str, path: str, replace: bool) -> bool:
    """Whether the image has this directory."""
    try:
        mode = session.call("files.look", id=id_, path=b"/" + name.encode())["target_mode"]
    except NotFound:
        return False
    if not stat.S_ISDIR(mode):
        return False
    target = os.path.join(path, name)
    try:
        os.makedirs(target, 0o755, exist_ok=True)
    except OSError as err:
        raise InvalidArgument(f"make {target}: {err.strerror}") from err
    unpack_from(session, id_, b"/" + name.encode() + b"/.", target, replaces=replace)
    return True
