"""Images on their way from and to registries: `ctl images pull` and `push`, and what shows them."""

from collections.abc import Callable, Mapping
from typing import Any

from lighter.ctl import grammar
from lighter.ctl.cli import SNAPSHOTTER, Session, absolute, format_option, key_values
from lighter.ctl.output import print_json_line

Decorated = Callable[..., Any]

_REGISTRY_OPTIONS = (
    grammar.option("--user", "-u", default="", metavar="USER[:PASSWORD]", help="Credentials."),
    grammar.option("--plain-http", is_flag=True, help="Speak HTTP, not HTTPS."),
    grammar.option("--skip-verify", "-k", is_flag=True, help="Do not verify the certificate."),
    grammar.option("--tlscacert", type=grammar.PATH, default="", help="CA to trust."),
    grammar.option("--tlscert", type=grammar.PATH, default="", help="Client certificate."),
    grammar.option("--tlskey", type=grammar.PATH, default="", help="Its key."),
    grammar.option("--hosts-dir", type=grammar.PATH, default="", help="Directory with hosts.toml."),
    grammar.option("--refresh", default="", help="Refresh token for the authorization server."),
)


def registry_options(command: Decorated) -> Decorated:
    """How a registry is spoken to; `access` makes the request's map of them."""
    for option in reversed(_REGISTRY_OPTIONS):
        command = option(command)
    return command


def access(session: Session, reference: str, flags: Mapping[str, Any]) -> dict[str, Any]:
    """The map `access` of a request, with the credentials that --user or docker's file gives."""
    from lighter.ctl.credentials import credentials_for

    path = {
        name: absolute(flags[flag]) if flags[flag] else ""
        for name, flag in (
            ("ca", "tlscacert"),
            ("cert", "tlscert"),
            ("key", "tlskey"),
            ("hosts_dir", "hosts_dir"),
        )
    }
    return {
        **path,
        **credentials_for(reference, flags["user"], flags["refresh"]),
        "plain_http": flags["plain_http"],
        "skip_verify": flags["skip_verify"],
    }


_platforms = grammar.option(
    "--platform",
    "platforms",
    multiple=True,
    metavar="OS/ARCH[/VARIANT]",
    help="Of these platforms instead of this host's.",
)


_local = grammar.in_any_case("--local", "the manager does it")
_all_metadata = grammar.option(
    "--all-metadata", is_flag=True, help="Also other platforms' manifests and configs."
)


def _wanted(platforms: tuple[str, ...]) -> dict[str, Any]:
    """A manager of the first release knows one platform alone."""
    return {"platform": platforms[0]} if len(platforms) == 1 else {"platforms": platforms}


NO_FLAGS: dict[str, Any] = {
    "user": "",
    "refresh": "",
    "plain_http": False,
    "skip_verify": False,
    "tlscacert": "",
    "tlscert": "",
    "tlskey": "",
    "hosts_dir": "",
}


@grammar.command("pull", short_help="pull an image from a registry")
@registry_options
@_platforms
@grammar.option("--all-platforms", is_flag=True, help="All that the image is there for.")
@_all_metadata
@grammar.option("--no-unpack", is_flag=True, help="Do not unpack; the first container will.")
@grammar.option("--print-chainid", is_flag=True, help="Print the name of its topmost snapshot.")
@grammar.option("--snapshotter", default="", envvar=SNAPSHOTTER, help="Where to unpack.")
@grammar.option("--label", multiple=True, metavar="KEY=VALUE", help="Label of the image.")
@grammar.option(
    "--max-concurrent-downloads",
    type=grammar.Integer(1, 64),
    default=3,
    show_default=True,
    help="Layers at a time.",
)
@_local
@format_option
@grammar.argument("ref")
def pull(
    session: Session,
    /,
    ref: str,
    platforms: tuple[str, ...],
    all_platforms: bool,
    all_metadata: bool,
    no_unpack: bool,
    print_chainid: bool,
    snapshotter: str,
    label: tuple[str, ...],
    max_concurrent_downloads: int,
    **flags: Any,
) -> None:
    """Pull an image and unpack it. Ctrl-C keeps what has arrived for the next pull.

    \b
      ctl images pull docker.io/library/nginx:alpine
      ctl images pull nginx:alpine
      ctl images pull --platform linux/arm64 --no-unpack nginx:alpine
      ctl images pull --plain-http -u admin:Harbor12345 harbor.example/library/nginx:latest
    """
    if platforms and all_platforms:
        raise grammar.UsageError("--platform and --all-platforms exclude each other")
    name = pull_image(
        session,
        ref,
        access(session, ref, flags),
        **_wanted(platforms),
        all_platforms=all_platforms,
        all_metadata=all_metadata,
        unpack=not no_unpack,
        snapshotter=snapshotter,
        labels=key_values(label, "label", bare=True),
        at_once=max_concurrent_downloads,
    )
    if print_chainid:
        chain_id = _chain_id(session.call("images.get", name=name)["config"])
        if session.json:
            print_json_line({"chain_id": chain_id})
        else:
            print(f"image chain ID: {chain_id}")


def _chain_id(config: Mapping[str, Any]) -> str:
    """What the snapshot with all layers of an image is called (OCI image-spec, config.md)."""
    from hashlib import sha256

    name = ""
    for diff_id in config["rootfs"]["diff_ids"]:
        name = f"sha256:{sha256(f'{name} {diff_id}'.encode()).hexdigest()}" if name else diff_id
    return name


def pull_image(
    session: Session,
    ref: str,
    access_map: Mapping[str, Any],
    *,
    to_stderr: bool = False,
    **options: Any,
) -> str:
    """Pull with its progress shown; returns the image's name."""
    from lighter.ctl.progress import shown

    call = session.manager.begin("images.pull", name=ref, access=dict(access_map), **options)
    if session.json and not to_stderr:
        for item in call:
            print_json_line(item)
        print_json_line(call.value)
    else:
        with shown(to_stderr=to_stderr) as display:
            for item in call:
                display.show(item)
            display.finish(call.value)
    name: str = call.value["image"]
    return name


@grammar.command("push", short_help="push an image to a registry")
@registry_options
@grammar.option("--platform", default="", help="The manifest of one platform alone.")
@grammar.option("--manifest", default="", metavar="DIGEST", help="A document of the image's.")
@grammar.option(
    "--max-concurrent-uploaded-layers",
    type=grammar.Integer(1, 64),
    default=3,
    show_default=True,
    help="Layers at a time.",
)
@grammar.in_any_case("--allow-non-distributable-blobs", "they are pushed")
@_local
@format_option
@grammar.argument("remote", metavar="REF")
@grammar.argument("local", metavar="[LOCAL]", required=False, default="")
def push(
    session: Session,
    /,
    remote: str,
    local: str,
    platform: str,
    manifest: str,
    max_concurrent_uploaded_layers: int,
    **flags: Any,
) -> None:
    """Push an image, under its own name or as REF what LOCAL is here.

    \b
      ctl images push localhost:5000/nginx:alpine
      ctl images push localhost:5000/nginx:alpine docker.io/library/nginx:alpine
      ctl images push --platform linux/amd64 --plain-http harbor.example/library/nginx:latest
    """
    if platform and manifest:
        raise grammar.UsageError("--platform and --manifest exclude each other")
    _push(
        session,
        "images.push",
        name=remote,
        local=local,
        platform=platform,
        digest=manifest,
        at_once=max_concurrent_uploaded_layers,
        access=access(session, remote, flags),
    )


def _push(session: Session, method: str, **body: Any) -> None:
    from lighter.ctl.progress import shown

    call = session.manager.begin(method, **body)
    if session.json:
        for item in call:
            print_json_line(item)
        print_json_line(call.value)
        return
    with shown() as display:
        for item in call:
            display.show(item)
        display.finish(call.value)


@grammar.command("fetch", short_help="fetch an image's content")
@registry_options
@grammar.option("--label", multiple=True, metavar="KEY=VALUE", help="Label of the image.")
@_platforms
@grammar.option("--all-platforms", is_flag=True, help="All that the image is there for.")
@_all_metadata
@grammar.option("--metadata-only", is_flag=True, help="Manifests and configs alone, no layer.")
@format_option
@grammar.argument("ref")
def fetch(
    session: Session,
    /,
    ref: str,
    label: tuple[str, ...],
    platforms: tuple[str, ...],
    all_platforms: bool,
    all_metadata: bool,
    metadata_only: bool,
    **flags: Any,
) -> None:
    """Fetch all content of an image, and name it. Nothing is unpacked.

    \b
      ctl content fetch docker.io/library/nginx:alpine
      ctl content fetch --metadata-only --plain-http harbor.example/library/nginx:latest
    """
    if platforms and all_platforms:
        raise grammar.UsageError("--platform and --all-platforms exclude each other")
    pull_image(
        session,
        ref,
        access(session, ref, flags),
        **_wanted(platforms),
        all_platforms=all_platforms,
        unpack=False,
        all_metadata=all_metadata,
        metadata_only=metadata_only,
        labels=key_values(label, "label", bare=True),
    )


@grammar.command("push-object", short_help="push one piece of content")
@registry_options
@format_option
@grammar.argument("ref")
@grammar.argument("digest")
@grammar.argument("media_type", metavar="TYPE")
def push_object(session: Session, /, ref: str, digest: str, media_type: str, **flags: Any) -> None:
    """Push one blob or manifest to the repository of REF; a manifest under REF's tag.

    \b
      ctl content push-object harbor.example/library/nginx:1 sha256:… \\
          application/vnd.oci.image.layer.v1.tar+gzip
    """
    _push(
        session,
        "content.push_object",
        name=ref,
        digest=digest,
        media_type=media_type,
        access=access(session, ref, flags),
    )
