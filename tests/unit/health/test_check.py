"""Docker's rules of health, and what is read of images and callers."""

import json

import pytest

from lighter.daemon.health.check import (
    HEALTHY,
    STARTING,
    UNHEALTHY,
    Health,
    HealthCheck,
    Probe,
    chosen,
    from_record,
)
from lighter.daemon.oci.config import read_image_config
from lighter.proto.errors import InvalidArgument

SECOND = 1_000_000_000


def probed(health: Health, check: HealthCheck, *codes: int, at_s: int = 0) -> Health:
    for code in codes:
        health = health.after(Probe(at_s * SECOND, at_s * SECOND, code, ""), check, at_s)
    return health


def test_failures_on_end_make_it_unhealthy_and_one_success_healthy() -> None:
    check = HealthCheck(("true",), retries=3)
    health = probed(Health("a"), check, 1, 1)
    assert (health.status, health.failing_streak) == (STARTING, 2)
    health = probed(health, check, 0)
    assert (health.status, health.failing_streak) == (HEALTHY, 0)
    health = probed(health, check, 1, 1)
    assert health.status == HEALTHY
    assert probed(health, check, 2).status == UNHEALTHY
    assert len(probed(health, check, 0, 0, 0, 0).log) == 5


def test_failures_in_the_start_period_count_once_it_was_healthy() -> None:
    check = HealthCheck(("true",), retries=1, start_period_s=10)
    assert probed(Health("a"), check, 1, 1, at_s=9) == Health(
        "a", STARTING, 0, (Probe(9 * SECOND, 9 * SECOND, 1, ""),) * 2
    )
    assert probed(Health("a"), check, 1, at_s=10).status == UNHEALTHY
    assert probed(Health("a"), check, 0, 1, at_s=1).status == UNHEALTHY


def test_probes_are_closer_in_the_start_period() -> None:
    check = HealthCheck(("true",), interval_s=30, start_period_s=10, start_interval_s=2)
    assert Health("a").pause_s(check, 1) == 2
    assert Health("a").pause_s(check, 10) == 30
    assert Health("a", HEALTHY).pause_s(check, 1) == 30


def image(**config: object) -> tuple[dict[str, object], tuple[str, ...]]:
    document = {"config": config, "rootfs": {"diff_ids": []}}
    parsed = read_image_config(json.dumps(document).encode())[0]
    return dict(parsed.health), parsed.shell


def test_the_images_own_check_and_what_a_caller_puts_over_it() -> None:
    health, shell = image(
        Healthcheck={
            "Test": ["CMD-SHELL", "curl -f http://localhost"],
            "Interval": 5 * SECOND,
            "Retries": 7,
        },
        Shell=["/bin/bash", "-c"],
    )
    record = chosen({}, health, shell)
    assert record is not None
    assert from_record(record) == HealthCheck(
        ("/bin/bash", "-c", "curl -f http://localhost"), interval_s=5, retries=7
    )
    record = chosen({"test": ["CMD", "true"], "retries": 1}, health, ())
    assert record is not None
    assert from_record(record) == HealthCheck(("true",), interval_s=5, retries=1)
    assert chosen({"test": ["NONE"]}, health, ()) is None
    assert chosen({}, *image()) is None
    assert chosen({}, *image(Healthcheck={"Test": ["NONE"]})) is None


@pytest.mark.parametrize(
    "config",
    [
        {"Test": "true"},
        {"Test": ["CMD"], "Interval": "5s"},
        {"Test": ["CMD", "true"], "Retries": -1},
        {"Test": ["CMD", "true"], "Interval": True},
    ],
)
def test_an_image_whose_check_is_none_is_refused(config: dict[str, object]) -> None:
    with pytest.raises(InvalidArgument, match="read image config"):
        image(Healthcheck=config)


@pytest.mark.parametrize(
    "given",
    [
        {"test": ["CMD"]},
        {"test": ["CMD-SHELL", "a", "b"]},
        {"test": ["sh"]},
        {"test": ["CMD", "true"], "interval_s": 1e-9},
        {"test": ["CMD", "true"], "retries": 1 << 40},
    ],
)
def test_a_callers_check_that_is_none_is_refused(given: dict[str, object]) -> None:
    with pytest.raises(InvalidArgument, match="choose health"):
        chosen(given, {}, ())
