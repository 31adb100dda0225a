"""Image names in full."""

import pytest

from lighter.daemon.images.pull import repositories_in
from lighter.daemon.images.reference import Reference, normalise
from lighter.proto.errors import InvalidArgument

DIGEST = "sha256:" + "0" * 64


@pytest.mark.parametrize(
    ("short", "full"),
    [
        ("nginx", "docker.io/library/nginx:latest"),
        ("nginx:alpine", "docker.io/library/nginx:alpine"),
        ("user/app", "docker.io/user/app:latest"),
        ("docker.io/nginx", "docker.io/library/nginx:latest"),
        ("index.docker.io/nginx:1", "docker.io/library/nginx:1"),
        ("localhost/app", "localhost/app:latest"),
        ("localhost:5000/app", "localhost:5000/app:latest"),
        ("localhost:5000/a/b/c:1.2_3", "localhost:5000/a/b/c:1.2_3"),
        ("harbor.example/library/nginx:latest", "harbor.example/library/nginx:latest"),
        ("[::1]:5000/app:1", "[::1]:5000/app:1"),
        ("Registry/app", "Registry/app:latest"),
        (f"nginx@{DIGEST}", f"docker.io/library/nginx@{DIGEST}"),
        (f"nginx:1@{DIGEST}", f"docker.io/library/nginx:1@{DIGEST}"),
        ("a__b/c--d", "docker.io/a__b/c--d:latest"),
    ],
)
def test_full_forms(short: str, full: str) -> None:
    assert normalise(short) == full
    assert normalise(full) == full


def test_where_content_came_from_is_told_by_the_host_with_or_without_its_port() -> None:
    labels = {
        "containerd.io/distribution.source.reg.example": "a,b",
        "containerd.io/distribution.source.reg.example:5000": "b,c",
        "containerd.io/distribution.source.::1": "d",
        "containerd.io/distribution.source.docker.io": "library/nginx",
    }
    for name, expected in (
        ("reg.example:5000/x", {"a", "b", "c"}),
        ("reg.example/x", {"a", "b"}),
        ("[::1]:5000/x", {"d"}),
        ("[::1]/x", {"d"}),
        ("nginx", {"library/nginx"}),
        ("other.example/x", set()),
    ):
        assert repositories_in(labels, Reference.parse(name)) == expected, name


@pytest.mark.parametrize(
    "name",
    [
        *("", "Nginx", "a b", "nginx:", "nginx:-x", "nginx@sha256:x", "/nginx", "nginx/"),
        *("a//b", "a/../b", "../b", "a.-b", "-a", "a___b", "nginx:" + "t" * 129, "a" * 300),
        *("nginx\n", "ngin\u0445", "example.com:x/app", "-x.com/app", "a" * 5000),
    ],
)
def test_what_is_no_name(name: str) -> None:
    with pytest.raises(InvalidArgument):
        normalise(name)
