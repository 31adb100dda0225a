"""The part of YAML that is read, and what is refused of the rest."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lighter.daemon.oci.plainyaml import parse
from lighter.proto.errors import InvalidArgument

GENERATED = """\
---
# made by a vendor's tool
cdiVersion: 0.5.0
kind: nvidia.com/gpu
containerEdits:
  deviceNodes:
  - path: /dev/nvidia-modeset
    fileMode: 0666
  - path: "/dev/nvidiactl"   # the control node
  env:
  - NVIDIA_VISIBLE_DEVICES=void
  hooks:
    - args: [nvidia-cdi-hook, "create-symlinks", --link]
      hookName: createContainer
      path: /usr/bin/nvidia-cdi-hook
  mounts: []
devices:
- containerEdits:
    deviceNodes:
    - path: /dev/nvidia0
      major: 195
      uid: 0
  name: "0"
-
  name: 'it''s'
  empty:
  no: {}
  flags: [true, null, 1.5, -3]
"""


def test_what_tools_generate() -> None:
    assert parse(GENERATED, "x") == {
        "cdiVersion": "0.5.0",
        "kind": "nvidia.com/gpu",
        "containerEdits": {
            "deviceNodes": [
                {"path": "/dev/nvidia-modeset", "fileMode": 0o666},
                {"path": "/dev/nvidiactl"},
            ],
            "env": ["NVIDIA_VISIBLE_DEVICES=void"],
            "hooks": [
                {
                    "args": ["nvidia-cdi-hook", "create-symlinks", "--link"],
                    "hookName": "createContainer",
                    "path": "/usr/bin/nvidia-cdi-hook",
                }
            ],
            "mounts": [],
        },
        "devices": [
            {
                "containerEdits": {
                    "deviceNodes": [{"path": "/dev/nvidia0", "major": 195, "uid": 0}]
                },
                "name": "0",
            },
            {"name": "it's", "empty": None, "no": {}, "flags": [True, None, 1.5, -3]},
        ],
    }


def test_json_and_small_documents() -> None:
    assert parse('{"a": [1, {"b": null}]}', "x") == {"a": [1, {"b": None}]}
    assert parse("", "x") is None
    assert parse("- - 1\n  - 2\n- a: b\n  c: d\n", "x") == [[1, 2], {"a": "b", "c": "d"}]
    assert parse('"quoted: key": v\nurl: http://x:80/y\n', "x") == {
        "quoted: key": "v",
        "url": "http://x:80/y",
    }


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ("a: &x 1", "anchor"),
        ("a: *x", "alias"),
        ("a: !!python/object x", "tag"),
        ("a: |\n  b", "a text"),
        ("<<: {}", "expected a key|merge"),
        ("a: 1\na: 2", "repeated"),
        ("\ta: 1", "tab"),
        ("a: 1\n---\nb: 2", "second document"),
        ("a: 'x", "not closed"),
        ('a: "x', "quoted"),
        ("a: [b", "one line"),
        ("a:\n  b: 1\n c: 2", "indented"),
        ("a: 1\n  b: 2", "indented"),
        ("just words", "key and a colon"),
        ("{", "not JSON"),
        ("\n".join(f"{' ' * n}a:" for n in range(99)), "too deeply"),
        ("a: " + "[" * 5000, "too deeply"),
        ("a: " + "9" * 5000, "too long"),
        ("a: [" + "9" * 5000 + "]", "too long"),
        ("a: [" + "b  , " * 5000, "one line"),
    ],
)
def test_what_is_refused(text: str, cause: str) -> None:
    with pytest.raises(InvalidArgument, match=cause):
        parse(text, "x")


@given(st.text(alphabet="ab:- #'\"[]{}&*!|>\n\t0.,", max_size=80))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        parse(text, "x")
    except InvalidArgument:
        pass
