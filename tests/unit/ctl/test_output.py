"""Tables, JSON, times, sizes: values in, text out."""

import json
import unicodedata

import pytest

from lighter.ctl import output


def test_a_column_is_as_wide_as_its_widest_cell_and_the_padding(
    capsys: pytest.CaptureFixture[str],
) -> None:
    output.table(("TASK", "PID", "STATUS"), [("nginx1", 3395, "RUNNING")])
    assert capsys.readouterr().out == "TASK      PID     STATUS\nnginx1    3395    RUNNING\n"


def test_an_empty_list_prints_ctrs_header(capsys: pytest.CaptureFixture[str]) -> None:
    header = ("REF", "TYPE", "DIGEST", "SIZE", "PLATFORMS", "LABELS")
    output.table(header, [], min_width=1, padding=1)
    assert capsys.readouterr().out == "REF TYPE DIGEST SIZE PLATFORMS LABELS\n"


def test_control_characters_do_not_reach_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    output.table(("NAME",), [("a\x1b[2Jb\n",)])
    assert capsys.readouterr().out.splitlines()[1] == "a\\x1b[2Jb\\n"


def test_json_has_no_character_that_a_terminal_obeys(capsys: pytest.CaptureFixture[str]) -> None:
    value = {"a\x9b2J": ["\x1b[2J", "\x7f", "\x80\x9f", "\xa0\xe9 \u6f22"]}
    for show in (output.print_json, output.print_json_line):
        show(value)
        shown = capsys.readouterr().out
        assert not [char for char in shown if unicodedata.category(char) == "Cc" and char != "\n"]
        assert "\\u009b2J" in shown and "\xe9 \u6f22" in shown
        assert json.loads(shown) == value


@pytest.mark.parametrize(
    ("time_ns", "text"),
    [
        (None, None),
        (0, None),
        (1_000_000_000, "1970-01-01T00:00:01Z"),
        (1_700_000_000_120_000_000, "2023-11-14T22:13:20.12Z"),
        (1_700_000_000_000_000_001, "2023-11-14T22:13:20.000000001Z"),
    ],
)
def test_times_are_rfc_3339_in_utc_or_null(time_ns: int | None, text: str | None) -> None:
    assert output.rfc3339(time_ns) == text


def test_plain_converts_times_by_their_key_and_bytes_to_text() -> None:
    value = {"created_at": 1_000_000_000, "pid": 1_000_000_000, "rows": [{"exited_at": None}]}
    assert output.plain({**value, "data": b"\xffx"}) == {
        "created_at": "1970-01-01T00:00:01Z",
        "pid": 1_000_000_000,
        "rows": [{"exited_at": None}],
        "data": "\ufffdx",
    }


def test_a_list_in_json_is_an_array(capsys: pytest.CaptureFixture[str]) -> None:
    output.listing(True, [{"id": "a"}], ("ID",), lambda row: (row["id"],))
    assert json.loads(capsys.readouterr().out) == [{"id": "a"}]


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [(0, "0.0 B"), (1023, "1023.0 B"), (1024, "1.0 KiB"), (10_171_187, "9.7 MiB")],
)
def test_sizes_read_as_in_ctr(size_bytes: int, text: str) -> None:
    assert output.size_text(size_bytes) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 seconds"), (1, "1 second"), (119, "1 minute"), (7200, "2 hours"), (90000, "1 day")],
)
def test_lengths_of_time_are_in_their_largest_unit(seconds: int, text: str) -> None:
    now = 1_700_000_000_000_000_000
    assert output.for_how_long(now - seconds * 1_000_000_000, now) == text
