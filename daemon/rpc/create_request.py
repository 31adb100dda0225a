"""What a body of containers.create asks for: each of its fields by name and type."""

from typing import Any

from lighter.daemon.containers.placing import Placing, read_options
from lighter.daemon.containers.request import CreateRequest
from lighter.daemon.containers.roots import RootWish
from lighter.daemon.health.check import TIMES
from lighter.daemon.network.request import parse as parse_network
from lighter.daemon.oci.confinement import Confinement
from lighter.daemon.oci.devices import ALL_ACCESS, DeviceWish
from lighter.daemon.oci.idmaps import id_maps, read_ranges
from lighter.daemon.oci.limits import read_limits
from lighter.daemon.oci.mounts import SHM_BYTES
from lighter.daemon.oci.selinux import read_labelling
from lighter.daemon.oci.sharing import Sharing
from lighter.daemon.rpc.fields import Fields


def create_request(fields: Fields) -> CreateRequest:
    """Raises InvalidArgument naming the field."""
    return CreateRequest(
        image=fields.text("image"),
        id=fields.name_or_none("id"),
        args=fields.texts("args"),
        entrypoint=fields.texts_or_none("entrypoint"),
        keep_entrypoint=fields.flag("keep_entrypoint"),
        as_docker=fields.flag("as_docker"),
        env=fields.texts("env"),
        cwd=fields.text_or_none("cwd"),
        user=fields.text_or_none("user"),
        terminal=fields.flag("terminal"),
        mounts=fields.mappings("mounts"),
        net_host=fields.flag("net_host"),
        read_only=fields.flag("read_only"),
        hostname=fields.text_or_none("hostname"),
        labels=fields.labels(),
        snapshotter=fields.text("snapshotter"),
        privileged=fields.flag("privileged"),
        without_host_devices=fields.flag("without_host_devices"),
        cap_add=fields.texts("cap_add"),
        cap_drop=fields.texts("cap_drop"),
        seccomp=fields.text("seccomp", "default"),
        allow_new_privs=fields.flag("allow_new_privs"),
        runtime=fields.text("runtime"),
        annotations=fields.labels("annotations"),
        sysctls=fields.labels("sysctls"),
        groups=fields.texts("groups"),
        rlimits=fields.mappings("rlimits"),
        oom_score_adj=fields.integer_or_none("oom_score_adj"),
        shm_bytes=fields.integer("shm_bytes") or SHM_BYTES,
        limits=read_limits(fields.mapping("limits")),
        devices=tuple(map(_device, fields.mappings("devices"))),
        sharing=Sharing(fields.labels("with_ns"), fields.labels("namespaces")),
        root=RootWish(
            directory=fields.text("rootfs"),
            platform=fields.text("platform"),
            labels=fields.labels("snapshot_labels"),
            id_maps=id_maps(
                read_ranges(fields.lists("uid_maps"), "uids"),
                read_ranges(fields.lists("gid_maps"), "gids"),
            ),
            remap_labels=fields.flag("remap_labels"),
        ),
        free_ids=fields.integer("free_ids"),
        rootfs_propagation=fields.text("rootfs_propagation"),
        placing=Placing(
            fields.name_or_none("cgroup"),
            fields.text("cgroup_parent"),
            read_options(fields.mapping("runtime_options")),
        ),
        spec=fields.text("spec"),
        confinement=Confinement(
            fields.text("apparmor"), fields.text("rdt_class"), fields.flag("unmask")
        ),
        selinux=read_labelling(fields.labels("selinux")),
        cdi=fields.texts("cdi"),
        gpus=fields.texts("gpus"),
        init=fields.flag("init"),
        blockio_config=fields.text("blockio_config"),
        blockio_class=fields.text("blockio_class"),
        auto_remove=fields.flag("auto_remove"),
        stdin_open=fields.flag("stdin_open"),
        stop_signal=fields.text("stop_signal"),
        log=fields.mapping("log"),
        volumes=fields.mappings("volumes"),
        network=parse_network(fields.mapping("network")),
        restart=fields.text("restart"),
        stop_timeout_s=fields.number_or_none("stop_timeout_s"),
        health=_health(fields),
    )


def _device(value: dict[str, Any]) -> DeviceWish:
    fields = Fields("containers.create", value)
    return DeviceWish(
        fields.needed("path"), fields.text("destination"), fields.text("access") or ALL_ACCESS
    )


def _health(fields: Fields) -> dict[str, Any]:
    given = fields.inner("health")
    return {
        "test": list(given.texts("test")),
        "retries": given.integer("retries"),
        **{name: given.seconds(name, 0.0) for name in TIMES},
    }
