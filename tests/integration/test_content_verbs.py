"""`ctl content fetch` and `push-object`, with Debian's registry and a scripted one."""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness import Lighterd
from tests.registries import (
    OCI_INDEX,
    OCI_MANIFEST,
    PASSWORD,
    USER,
    DebianRegistry,
    Reply,
    Scripted,
    SmallImage,
    describe,
    small_image,
)

LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"
CONFIG = "application/vnd.oci.image.config.v1+json"


@pytest.fixture(scope="module")
def image() -> SmallImage:
    return small_image(20_000, 10_000)


@pytest.fixture
def registry(image: SmallImage) -> Iterator[Scripted]:
    with Scripted() as registry:
        registry.serve(image, "app", "1")
        yield registry


def done(lighterd: Lighterd, *args: str) -> str:
    ran = lighterd.ctl(*args)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.decode()


def refused(lighterd: Lighterd, *args: str) -> str:
    ran = lighterd.ctl(*args)
    text = ran.stderr.decode()
    assert ran.returncode == 1 and text.count("\n") == 1 and "Traceback" not in text, text
    return text


def here(lighterd: Lighterd) -> set[str]:
    return set(done(lighterd, "content", "ls", "-q").split())


def test_fetch_brings_all_content_and_the_name_and_unpacks_nothing(
    lighterd: Lighterd, registry: Scripted, image: SmallImage
) -> None:
    name = f"{registry.host}/app:1"
    text = done(lighterd, "content", "fetch", "--label", "who=me", name)
    assert f"{name}: done {image.descriptor.digest}" in text
    assert here(lighterd) == {image.descriptor.digest, *image.blobs}
    (row,) = json.loads(done(lighterd, "--format", "json", "images", "ls"))
    assert row["name"] == name and row["labels"]["who"] == "me"
    assert json.loads(done(lighterd, "--format", "json", "snapshots", "ls")) == []


def test_metadata_only_leaves_the_layers_where_they_are(
    lighterd: Lighterd, registry: Scripted, image: SmallImage
) -> None:
    name = f"{registry.host}/app:1"
    done(lighterd, "content", "fetch", "--metadata-only", name)
    layers = {layer.digest for layer in image.layers}
    assert here(lighterd) == {image.descriptor.digest, *image.blobs} - layers
    assert not [digest for digest in layers if registry.asked("", digest)]
    # What is missing comes with the next pull, and nothing else does.
    done(lighterd, "images", "pull", "--no-unpack", name)
    assert here(lighterd) == {image.descriptor.digest, *image.blobs}
    assert all(len(registry.asked("GET", f"/blobs/{digest}")) == 1 for digest in image.blobs)


def test_all_metadata_brings_one_platforms_layers(lighterd: Lighterd) -> None:
    host, other = small_image(5000, seed=1), small_image(5000, seed=2)
    entries = [
        {
            "mediaType": OCI_MANIFEST,
            "digest": of.descriptor.digest,
            "size": of.descriptor.size,
            "platform": {"os": "linux", "architecture": architecture},
        }
        for of, architecture in ((host, "amd64"), (other, "s390x"))
    ]
    index = json.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries}).encode()
    with Scripted() as registry:
        registry.serve(host, "app")
        registry.serve(other, "app")
        registry.route(
            "/v2/app/manifests/1", Reply(body=index, headers=(("Content-Type", OCI_INDEX),))
        )
        name = f"{registry.host}/app:1"
        platform = ("--platform", "linux/amd64")
        done(lighterd, "content", "fetch", "--all-metadata", *platform, name)
    assert here(lighterd) == {
        describe(OCI_INDEX, index).digest,
        *(of.descriptor.digest for of in (host, other)),
        *host.blobs,
        *(other.blobs.keys() - {layer.digest for layer in other.layers}),
    }


def test_labels_are_edited_and_filtered_by(
    lighterd: Lighterd, registry: Scripted, image: SmallImage
) -> None:
    done(lighterd, "content", "fetch", f"{registry.host}/app:1")
    layer, config = image.layers[0].digest, image.config.digest
    assert "tier=web" in done(lighterd, "content", "edit-label", layer, "tier=web", "b=c")
    ls = ("content", "ls", "-q")
    assert done(lighterd, *ls, "labels.tier==web").split() == [layer]
    assert set(done(lighterd, *ls, "labels.tier", f"digest=={config}").split()) == {layer, config}
    assert done(lighterd, *ls, "labels.tier==web,labels.b==d") == ""
    assert "tier" not in done(lighterd, "content", "edit-label", layer, "tier=")
    assert "b=c" in done(lighterd, "content", "label", layer)
    assert "filter" in refused(lighterd, "content", "ls", "=nothing")


def test_fetch_says_what_it_cannot_find(lighterd: Lighterd, registry: Scripted) -> None:
    text = refused(lighterd, "content", "fetch", f"{registry.host}/app:2")
    assert f"{registry.host}/app:2" in text
    assert "parse image name" in refused(lighterd, "content", "fetch", f"{registry.host}/APP:1")
    assert done(lighterd, "images", "ls", "-q") == ""
    ran = lighterd.ctl("content", "fetch", "--platform", "linux/arm64", "--all-platforms", "x")
    assert ran.returncode == 2 and b"exclude each other" in ran.stderr


def test_objects_pushed_one_by_one_are_an_image_at_last(
    lighterd: Lighterd, registry: Scripted, image: SmallImage, tmp_path: Path
) -> None:
    done(lighterd, "content", "fetch", f"{registry.host}/app:1")
    manifest = image.descriptor.digest
    with DebianRegistry(tmp_path / "registry", htpasswd=True) as target:
        name = f"{target.host}/pushed/app:2"
        push = ("content", "push-object", "--plain-http", "-u", f"{USER}:{PASSWORD}", name)
        # Its own words: the registry takes no manifest before its blobs.
        text = refused(lighterd, *push, manifest, OCI_MANIFEST)
        assert target.host in text and manifest in text and PASSWORD not in text
        text = refused(lighterd, *push[:3], name, image.layers[0].digest, LAYER)
        assert target.host in text
        for layer in image.layers:
            done(lighterd, *push, layer.digest, LAYER)
        config = (image.blobs.keys() - {layer.digest for layer in image.layers}).pop()
        done(lighterd, *push, config, CONFIG)
        done(lighterd, *push, config, CONFIG)  # again is nothing
        text = done(lighterd, *push, manifest, OCI_MANIFEST)
        assert f"{name}: done {manifest}" in text
        argv = ["skopeo", "inspect", "--tls-verify=false", f"--creds={USER}:{PASSWORD}"]
        looked = subprocess.run([*argv, f"docker://{name}"], capture_output=True, check=True)
        assert json.loads(looked.stdout)["Digest"] == manifest


def test_push_object_refuses_what_is_none(
    lighterd: Lighterd, registry: Scripted, image: SmallImage
) -> None:
    done(lighterd, "content", "fetch", f"{registry.host}/app:1")
    sent = len(registry.requests)
    name, layer, manifest = f"{registry.host}/x:1", image.layers[0].digest, image.descriptor.digest
    push = ("content", "push-object", name)
    absent = "sha256:" + "0" * 64
    assert absent in refused(lighterd, *push, absent, LAYER)
    assert "digest" in refused(lighterd, *push, "sha256:../../x", LAYER)
    assert "no media type" in refused(lighterd, *push, layer, "not a type")
    # A layer is no manifest, and a manifest no index.
    assert layer in refused(lighterd, *push, layer, OCI_MANIFEST)
    assert "came as" in refused(lighterd, *push, manifest, OCI_INDEX)
    assert len(registry.requests) == sent
