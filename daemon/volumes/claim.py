"""The volumes of one container that is being made."""

from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any

from lighter.daemon.oci.checks import check_path
from lighter.daemon.oci.propagation import PROPAGATIONS
from lighter.daemon.types import Mount
from lighter.daemon.volumes.service import Volumes
from lighter.proto.errors import InvalidArgument, ResourceExhausted

VOLUME = "volume"  # the type of a mount that asks for one
NO_COPY = "nocopy"
_MAX_MOUNTS = 1000
_MAX_OF_IMAGE = 32  # each may be a copy of the same files
# A volume over them takes away the masks of what else is in there, or the devices they are made of.
_KERNELS = ("dev", "proc", "sys")
_HARMLESS = ("/dev/shm", "/sys/fs/cgroup")  # noqa: S108 (they only hide what is there)


class Claim:
    """Makes the volumes that a new container asks for; what is new goes again unless kept, or
    created by its name meanwhile.

    `rows` is what its record says of them, `paths` whether nobody has used the one at this path.
    """

    def __init__(self, volumes: Volumes, namespace: str) -> None:
        self._volumes = volumes
        self._namespace = namespace
        self._held: list[str] = []
        self._new: list[str] = []
        self.rows: list[dict[str, Any]] = []
        self.paths: dict[str, bool] = {}

    async def mounts(
        self,
        asked: Sequence[Mapping[str, Any]],
        image_volumes: Sequence[str],
        snapshot: Sequence[Mount],
        owner: tuple[int, int] = (0, 0),
    ) -> tuple[Mapping[str, Any], ...]:
        """`asked` with each volume as the bind that it is, outer directories before inner ones.

        `owner`: the host's ids of the container's root, to whom an empty volume of nobody's goes.
        The image's own volumes get one each where nothing else is asked for. Raises LighterError.
        """
        if len(asked) + len(image_volumes) > _MAX_MOUNTS:
            raise ResourceExhausted(f"mount volumes: more than {_MAX_MOUNTS} mounts")
        wanted = [*asked, *await self._of_image(asked, image_volumes, snapshot)]
        made = [
            await self._mount(mount, snapshot, owner) if mount.get("type") == VOLUME else mount
            for mount in wanted
        ]
        return tuple(sorted(made, key=lambda mount: _place(mount).count("/")))

    async def _of_image(
        self,
        asked: Sequence[Mapping[str, Any]],
        image_volumes: Sequence[str],
        snapshot: Sequence[Mount],
    ) -> list[dict[str, Any]]:
        """Mounts for the image's own volumes, one for each place that nothing is asked for at.

        Both the words and the links they lead through are by whoever made the image. So they are
        followed here, and none of the image's is left for a runtime to follow, to which the image
        looks another way with what is mounted in it. What a container has made of its own tree by
        its next start is the runtime's to resist.
        """
        places = {_place(mount) for mount in asked}
        # As chroot would take them.
        own = dict.fromkeys(
            "/" + "/".join(part for part in path.split("/") if part not in ("", ".", ".."))
            for path in image_volumes
        )
        named = [check_path(place, "image's volume") for place in own if place not in places]
        if len(named) > _MAX_OF_IMAGE:
            raise ResourceExhausted(
                f"mount volumes: the image has {len(named)} of its own, at most {_MAX_OF_IMAGE}"
            )
        wanted: list[dict[str, Any]] = []
        for place in named:
            real = await self._volumes.filling.place(snapshot, place)
            if real.split("/")[1] in _KERNELS and real not in _HARMLESS:
                where = place if place == real else f"{place}, which leads to {real},"
                raise InvalidArgument(
                    f"mount the image's volume {where[:200]}: no image may have one there; what "
                    "is to be there must be asked for"
                )
            if real not in places and real != "/":
                wanted.append({"type": VOLUME, "source": "", "destination": real, "options": []})
            places.add(real)
        return wanted

    def hold(self, rows: Any) -> None:
        """Keep volumes that a record names from being removed. Raises NotFound, InvalidArgument."""
        listed = rows if isinstance(rows, list | tuple) else [None]
        names = [row.get("name") if isinstance(row, dict) else None for row in listed]
        if not all(isinstance(name, str) for name in names):
            raise InvalidArgument("mount volumes: the record of them is none")
        for name in dict.fromkeys(map(str, names)):
            self._volumes.get(self._namespace, name)
            self._volumes.hold(self._namespace, name)
            self._held.append(name)

    async def _mount(
        self, mount: Mapping[str, Any], snapshot: Sequence[Mount], owner: tuple[int, int]
    ) -> Mapping[str, Any]:
        given, options = str(mount.get("source") or ""), list(mount.get("options") or ())
        name, destination = given or self._volumes.new_name(), _place(mount)
        volume, is_new = self._volumes.create(
            self._namespace, name, anonymous=not given, asked=False
        )
        self._volumes.hold(self._namespace, name)
        self._held.append(name)
        if is_new:
            self._new.append(name)
        image = None if NO_COPY in options else (snapshot, destination)
        settle = self._volumes.filling.settle
        is_fresh = await settle(self._namespace, name, self, owner, image)
        path = self._volumes.path(volume.namespace, volume.name)
        self.paths[path] = is_fresh or self.paths.get(path, False)
        self.rows.append({"name": name, "destination": destination, "anonymous": not given})
        plain = [option for option in options if option != NO_COPY]
        if not PROPAGATIONS.intersection(plain):
            plain.append("rprivate")  # docker's default; else it is what the root has
        return {
            "type": "bind",
            "source": path,
            "destination": destination,
            "options": ["rbind", *(option for option in plain if option not in ("bind", "rbind"))],
        }

    def keep(self) -> None:
        """The container is recorded: its volumes stay."""
        for name in self._new:
            self._volumes.end_claim(self._namespace, name)
        self._new.clear()

    async def __aenter__(self) -> "Claim":
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for name in self._held:
            self._volumes.filling.let_go(self._namespace, name, self)
            self._volumes.let_go(self._namespace, name)
        for name in self._new:
            if self._volumes.end_claim(self._namespace, name):
                await self._volumes.delete_quietly(self._namespace, name)


def _place(mount: Mapping[str, Any]) -> str:
    """Where a mount goes; of what is no text the spec's own check will say so."""
    destination = mount.get("destination")
    if mount.get("type") != VOLUME and not isinstance(destination, str):
        return ""
    return check_path(destination, "mount destination")
