"""Reading image configurations: the usual ones, and everything else."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lighter.daemon.oci.config import MAX_CONFIG_BYTES, read_image_config
from lighter.daemon.types import ImageConfig
from lighter.proto.errors import InvalidArgument
from lighter.proto.names import check_labels

DIGEST = "sha256:" + "a" * 64


def document(config: Any = None, **root: Any) -> bytes:
    return json.dumps({"architecture": "amd64", "os": "linux", "config": config, **root}).encode()


def test_a_full_document() -> None:
    raw = document(
        {
            "User": "web:disk",
            "Env": ["PATH=/bin", "EMPTY="],
            "Entrypoint": ["/bin/sh", "-c"],
            "Cmd": ["true"],
            "WorkingDir": "/srv",
            "StopSignal": "SIGQUIT",
            "Labels": {"k": "v"},
            "Volumes": {"/data": {}},
            "ExposedPorts": {"80/tcp": {}},
        },
        rootfs={"type": "layers", "diff_ids": [DIGEST]},
        history=[{"created_by": "x"}],
    )
    assert read_image_config(raw)[0] == ImageConfig(
        entrypoint=("/bin/sh", "-c"),
        cmd=("true",),
        env=("PATH=/bin", "EMPTY="),
        user="web:disk",
        working_dir="/srv",
        stop_signal="SIGQUIT",
        labels={"k": "v"},
        volumes=("/data",),
        diff_ids=(DIGEST,),
        architecture="amd64",
    )


@pytest.mark.parametrize("config", [None, {}, {"Cmd": None, "Env": None, "Labels": None}])
def test_empty_parts(config: Any) -> None:
    assert read_image_config(document(config))[0] == ImageConfig(architecture="amd64")


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"null",
        b"[]",
        b"{",
        b"\xff",
        b"\xef\xbb\xbf{}",
        b'{"os": NaN}',
        b'{"config": {}, "config": {}}',
        b'{"config": {"User": "0", "User": "web"}}',
        b'{"config": {"User": "\\ud800"}}',
        b'{"x": ' + b"[" * 100_000,
        b'{"x": ' + b"1" * 1_000_000 + b"}",
        document([]),
        document("x"),
        document({"Cmd": "sh"}),
        document({"Cmd": [1]}),
        document({"Cmd": [None]}),
        document({"Cmd": ["a\0b"]}),
        document({"Env": {"A": "1"}}),
        document({"Env": [["A=1"]]}),
        document({"Env": ["A=\0"]}),
        document({"User": 0}),
        document({"WorkingDir": ["/"]}),
        document({"Labels": {"k": 1}}),
        document({"Labels": ["k=v"]}),
        document({"Volumes": ["/data"]}),
        document(rootfs=[]),
        document(rootfs={"diff_ids": DIGEST}),
        document(rootfs={"diff_ids": ["sha256:../../x"]}),
        document(rootfs={"diff_ids": [DIGEST.upper()]}),
        document(rootfs={"diff_ids": [DIGEST + "\n"]}),
        document(rootfs={"diff_ids": [DIGEST] * 5000}),
        document(architecture=1),
        document(history=[{}] * 50_001),
        document(n=10**100),
        b" " * (MAX_CONFIG_BYTES + 1),
    ],
)
def test_refused_documents(raw: bytes) -> None:
    with pytest.raises(InvalidArgument, match="read image config"):
        read_image_config(raw)


def test_what_is_dropped_is_told() -> None:
    config, warnings = read_image_config(
        document({"Env": ["SECRET", "*", "=x", "A=1"], "Labels": {"io.containerd.x": "", "k": ""}})
    )
    assert config.env == ("A=1",)
    assert config.labels == {"k": ""}
    assert len(warnings) == 4
    assert "'SECRET'" in warnings[0]


def test_labels_that_every_container_would_have_a_copy_of_are_bounded() -> None:
    config, warnings = read_image_config(
        document({"Labels": {f"k{n:03}": "x" * 4000 for n in range(900)}})
    )
    assert list(config.labels) == [f"k{n:03}" for n in range(261)]
    assert warnings == ("drop 639 labels of the image: over 1048576 bytes in all",)


def test_a_label_that_no_container_can_have_is_dropped() -> None:
    """Images of development containers describe themselves in one."""
    labels = {"devcontainer.metadata": "x" * 5000, "long": "x" * 4092, "k": "v"}
    config, warnings = read_image_config(document({"Labels": labels}))
    assert list(config.labels) == ["long", "k"]
    assert check_labels(dict(config.labels))
    said = "drop label 'devcontainer.metadata' of the image: it has more than 4096 bytes"
    assert warnings == (said,)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=8,
)
KEYS = ("Entrypoint", "Cmd", "Env", "User", "WorkingDir", "StopSignal", "Labels", "Volumes")


@given(st.fixed_dictionaries({}, optional=dict.fromkeys(KEYS, JSON)), JSON)
def test_any_shape_gives_texts_or_a_typed_error(config: Any, rootfs: Any) -> None:
    try:
        parsed = read_image_config(document(config, rootfs=rootfs))[0]
    except InvalidArgument:
        return
    for text in (*parsed.entrypoint, *parsed.cmd, *parsed.env, parsed.user, parsed.working_dir):
        assert isinstance(text, str)
    assert all("=" in entry for entry in parsed.env)
