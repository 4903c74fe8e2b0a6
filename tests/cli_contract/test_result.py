import json

import pytest

from cli_contract.exit_codes import ExitCode
from cli_contract.result import Result, describe, envelope, table


def test_a_table_has_no_boxes_a_header_in_capitals_and_numbers_to_the_right():
    assert table([("a", 5), ("long", 10)], ("name", "size")) == "NAME  SIZE\na        5\nlong    10"


def test_what_a_device_calls_itself_cannot_steer_the_terminal():
    hostile = "x\x1b[2J\nfake row\r\x07"
    for shown in (table([(hostile,)], ("label",)), describe({"label": hostile})):
        assert "\x1b" not in shown
        assert "\r" not in shown
        assert shown.count("\n") <= 1
        assert "fake row" in shown


def test_the_envelope_is_one_line_with_the_commands_own_keys_beside_it():
    line = envelope("x y", Result({"devices": 3, "note": "a\nb"}, exit_code=ExitCode.REFUSED))
    assert "\n" not in line
    assert json.loads(line) == {
        "schema_version": "1", "command": "x y", "status": "error", "exit_code": 4, "devices": 3, "note": "a\nb",
    }  # fmt: skip


def test_a_command_may_not_use_the_envelopes_keys():
    with pytest.raises(ValueError, match="status"):
        envelope("x", Result({"status": 1}))
