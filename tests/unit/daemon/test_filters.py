"""containerd's filter language."""

import pytest

from lighter.daemon import filters
from lighter.daemon.filterfields import of_container
from lighter.daemon.types import Container
from lighter.proto.errors import InvalidArgument

IMAGE = {
    ("name",): "docker.io/library/nginx:alpine",
    ("labels", "tier"): "web",
    ("labels", "a.b/c"): "1,2",
    ("labels", "empty"): "",
}


@pytest.mark.parametrize(
    ("texts", "wanted"),
    [
        ([], True),
        ([""], True),
        (["name==nginx", ""], True),
        (["name==docker.io/library/nginx:alpine"], True),
        (["name==nginx"], False),
        (["name!=nginx"], True),
        (["name~=^docker.io/.*:alpine$"], True),
        (["name~=^nginx"], False),
        (["name~=|^docker.io/|,labels.tier==web"], True),
        (["name~=|^nginx|"], False),
        (["name~=/nginx/"], True),
        (["name~=/library/nginx"], True),
        (["labels.tier"], True),
        (["labels.empty"], True),
        (["labels.none"], False),
        (["labels.none!=x"], True),
        (['labels."a.b/c"=="1,2"'], True),
        (['labels."a.b/c"==1'], False),
        (["name~=nginx,labels.tier==web"], True),
        (["name~=nginx,labels.tier==db"], False),
        (["labels.tier==db", "labels.tier==web"], True),
        (["labels.empty=="], True),
        (["labels.none=="], False),
        (["labels.none!="], False),
        (["labels.empty!="], False),
        (["labels.tier!="], True),
        (["name~=nginx, labels.tier==db"], False),
        (["name~=nginx, labels.tier == web"], True),
        ([' labels.tier== "web"'], True),
    ],
)
def test_what_a_filter_takes(texts: list[str], wanted: bool) -> None:
    assert filters.any_of(texts)(IMAGE.get) is wanted


@pytest.mark.parametrize(
    "text",
    [
        " ",
        "==x",
        "name=~x",
        "name==a b",
        "name==a,",
        'name=="a',
        "name~=(",
        "name..x",
        'name=="\\q"',
        'name=="\\ud800"',
        'name~="\\ud800"',
        'labels."\\udfff"',
    ],
)
def test_what_is_no_filter_is_refused(text: str) -> None:
    with pytest.raises(InvalidArgument, match=r"^parse filter "):
        filters.any_of([text])


def test_a_text_that_is_empty_is_not_there() -> None:
    empty = Container("ns", "c", "", "", "", "", b"", {"empty": ""}, {}, 0, 0)
    for field in ("image", "runtime.name", "image==", "image!=", "runtime.name=="):
        assert not filters.any_of([field])(of_container(empty)), field
    for field in ("id", "id==c", "image!=x", "image~=^$", "labels.empty", "labels.empty=="):
        assert filters.any_of([field])(of_container(empty)), field


def test_filters_are_bounded() -> None:
    for texts in (["name"] * 65, ["n" * 5000]):
        with pytest.raises(InvalidArgument, match="are allowed"):
            filters.any_of(texts)


def test_no_pattern_takes_for_ever() -> None:
    """One that others try 2^70 ways for: containerd's engine is linear, and so is this one."""
    assert filters.any_of(["name~=^(a+)+$"])(lambda _path: "a" * 70 + "!") is False
    with pytest.raises(InvalidArgument, match="no regular expression"):
        filters.any_of(['name~="a(?=b)"'])
