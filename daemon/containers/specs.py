"""The spec of a new container: what its image and its caller say, and what the host has for it."""

import os
from collections.abc import Mapping
from functools import partial
from typing import Any

from lighter.daemon.containers.identity import IdentityService
from lighter.daemon.containers.looked import resources_of, sources
from lighter.daemon.containers.request import CreateRequest
from lighter.daemon.containers.roots import MadeRoot
from lighter.daemon.looks import Looks
from lighter.daemon.oci import cdi, cdi_edits
from lighter.daemon.oci import spec as oci_spec
from lighter.daemon.oci.confinement import AppArmor, check_rdt
from lighter.daemon.oci.devices import DeviceGrant, granted
from lighter.daemon.oci.host import Host, check_oom_score, read_devices
from lighter.daemon.oci.initprogram import find_init, put_before
from lighter.daemon.oci.limits import NONE
from lighter.daemon.oci.selinux import Labels
from lighter.daemon.oci.users import Identity
from lighter.proto.errors import InvalidArgument


class SpecMaker:
    """Makes specs. What it looks for on the host may hang, and is looked for by `looks`."""

    def __init__(self, identities: IdentityService, host: Host, looks: Looks) -> None:
        self._identities = identities
        self._host = host
        self._looks = looks

    async def make(
        self,
        namespace: str,
        id_: str,
        request: CreateRequest,
        made: MadeRoot,
        cgroup: str,
        labels: Labels,
    ) -> dict[str, Any]:
        """Raises InvalidArgument, NotFound (user, device), DeadlineExceeded."""
        if request.oom_score_adj is not None:
            check_oom_score(request.oom_score_adj)
        spec = oci_spec.generate(
            oci_spec.SpecRequest(
                id=id_,
                namespace=namespace,
                cgroups_path=cgroup,
                image=made.config,
                identity=await self._identity(request, made),
                host=self._host,
                args=request.args,
                entrypoint=request.entrypoint,
                keep_entrypoint=request.keep_entrypoint,
                as_docker=request.as_docker,
                env=request.env,
                cwd=request.cwd,
                terminal=request.terminal,
                mounts=request.mounts,
                net_host=request.net_host,
                read_only=request.read_only,
                hostname=request.hostname,
                privileged=request.privileged,
                host_devices=read_devices() if request.privileged else (),
                without_host_devices=request.without_host_devices,
                cap_add=request.cap_add,
                cap_drop=request.cap_drop,
                seccomp=request.seccomp,
                allow_new_privs=request.allow_new_privs,
                sharing=request.sharing,
                annotations=request.annotations,
                sysctls=request.sysctls,
                rlimits=request.rlimits,
                oom_score_adj=request.oom_score_adj or 0,
                shm_bytes=request.shm_bytes,
                resources=await self._resources(request),
                devices=await self._granted(request),
                id_maps=request.root.id_maps,
                root_path=made.path,
                rootfs_propagation=request.rootfs_propagation,
                unmask=request.confinement.unmask,
                apparmor=AppArmor().profile(request.confinement.apparmor),
                selinux=labels,
                rdt_class=check_rdt(request.confinement.rdt_class),
            )
        )
        if request.init:
            put_before(spec, find_init())
        gpus = request.gpus and await self._looks.at(
            "look for devices of CDI", partial(cdi.gpu_devices, request.gpus)
        )
        devices = (*request.cdi, *gpus)
        if devices:
            found = await self._looks.at("look for devices of CDI", partial(cdi.find, devices))
            cdi_edits.apply(spec, found)
        return spec

    async def check_sources(self, spec: Mapping[str, Any]) -> None:
        """Refuse what is missing on the host now: the runtime would blame the program for it."""
        for path, purpose in sources(spec).items():
            try:
                await self._looks.at(f"use {path} to {purpose}", partial(os.stat, path))
            except OSError as err:
                raise InvalidArgument(f"use {path} to {purpose}: {err.strerror}") from err

    async def _identity(self, request: CreateRequest, made: MadeRoot) -> Identity:
        user = made.config.user if request.user is None else request.user
        if made.path and not user and not request.groups:
            return Identity(0, 0, (0,))  # nobody knows what is in a root of the caller's
        if made.path:
            return await self._identities.of_container(user, made.mounts, request.groups)
        return await self._identities.of_image(user, made.chain_id, made.mounts, request.groups)

    async def _resources(self, request: CreateRequest) -> dict[str, Any]:
        if request.limits == NONE and not request.blockio_class:
            return {}
        return await self._looks.at("limit container", partial(resources_of, request))

    async def _granted(self, request: CreateRequest) -> tuple[DeviceGrant, ...]:
        if not request.devices:
            return ()
        names = ", ".join(wish.path for wish in request.devices)
        return await self._looks.at(f"use devices {names}", partial(granted, request.devices))
