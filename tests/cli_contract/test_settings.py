from typing import Annotated, Literal

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cli_contract.errors import CommandError
from cli_contract.settings import BrokenRule, load_settings, parse_settings, read_settings

Rows = Annotated[int, msgspec.Meta(ge=1, le=9)]


class Rule(msgspec.Struct, frozen=True):
    name: str
    value: float = 0.0


class Night(msgspec.Struct, frozen=True):
    opens: str = "23:00"
    closes: str = "06:00"


class Settings(msgspec.Struct, frozen=True):
    population: str
    goal_count: int = 20
    night: Night = Night()
    rules: tuple[Rule, ...] = ()
    least: Rows = 3
    most: Rows = 5
    quiet: bool = False
    mode: Literal["on", "off"] = "on"

    def broken_rules(self):
        if self.least > self.most:
            yield BrokenRule(("least", "most"), f'"least" is at most "most", got {self.least} and {self.most}')


def mistakes(text):
    return [mistake.told("f") for mistake in read_settings(text, Settings).mistakes]


def test_a_good_file_becomes_settings():
    settings = parse_settings('population = "en"\n[night]\nopens = "22:00"\n', Settings, "a.toml")
    assert settings == Settings("en", 20, Night("22:00", "06:00"))


def test_the_lines_of_what_is_set_are_known():
    reading = read_settings('population = "en"\n\n[night]\nopens = "22:00"\n[[rules]]\nname = "a"\n', Settings)
    assert reading.lines == {"population": 1, "night": 3, "night.opens": 4, "rules[0]": 5, "rules[0].name": 6}


def test_every_mistake_is_named_at_once_with_line_column_key_and_near_miss():
    text = '\ngoal_cuont = 3\ngoal_count = "three"\n[night]\n  opns = "22:00"\ncloses = 6\n'
    with pytest.raises(CommandError) as caught:
        parse_settings(text, Settings, "fleet.toml")
    assert caught.value.exit_code == 2
    assert caught.value.message.split("; fleet.toml:") == [
        'fleet.toml:1:1: key "population" is missing',
        '2:1: unknown key "goal_cuont"; did you mean "goal_count"?',
        '3:14: "goal_count" is a whole number, got "three"',
        '5:3: unknown key "night.opns"; did you mean "night.opens"?',
        '6:10: "night.closes" is text, got 6; put it into quotes',
    ]


def test_a_mistake_in_a_list_of_tables_is_named_with_its_number():
    text = 'population = "a"\n[[rules]]\nname = "x"\n[[rules]]\nnmae = "y"\nvalue = "3"\n'
    assert mistakes(text) == [
        'f:4:1: key "rules[1].name" is missing',
        'f:5:1: unknown key "rules[1].nmae"; did you mean "rules[1].name"?',
        'f:6:9: "rules[1].value" is a number, got "3"; leave the quotes out: 3',
    ]


def test_a_list_whose_elements_are_no_tables_is_told_as_a_whole():
    assert mistakes('population = "a"\nrules = ["x"]\n') == [
        'f:2:9: "rules" is a list, each of it a table, got a list of 1'
    ]


def test_a_rule_between_fields_stands_at_the_first_field_that_the_file_sets():
    broken = '"least" is at most "most", got {} and {}'
    assert mistakes('population = "a"\n\nmost = 5\nleast = 6\n') == [f"f:4:9: {broken.format(6, 5)}"]
    assert mistakes('population = "a"\nmost = 2\n') == [f"f:2:8: {broken.format(3, 2)}"]
    assert mistakes('population = "a"\nleast = 5\n') == []


def test_a_rule_is_not_judged_by_the_default_of_a_field_that_is_wrong():
    assert mistakes('population = "a"\nmost = "eight"\nleast = 7\n') == [
        'f:2:8: "most" is a whole number from 1 to 9, got "eight"'
    ]


@pytest.mark.parametrize(
    ("line", "remedy"),
    [
        ("quiet = 1", "; write true"),
        ('quiet = "True"', "; leave the quotes out: true"),
        ("quiet = 'no'", 'is true or false, got "no"'),
        ("goal_count = 3.0", "; leave the fraction out: 3"),
        ("mode = true", 'is one of "on", "off", got true'),
        ('mode = "Off"', '; did you mean "off"?'),
        ("population = 1979-05-27", "got the date 1979-05-27; put it into"),
    ],
)
def test_a_value_that_is_nearly_right_is_told_how_it_gets_right(line, remedy):
    text = line if line.startswith("population") else f'population = "a"\n{line}'
    (told,) = mistakes(text)
    assert remedy in told


@pytest.mark.parametrize("number", ["nan", "-nan", "inf", "-inf"])
def test_a_number_without_bounds_is_finite_all_the_same(number):
    (told,) = mistakes(f'population = "a"\n[[rules]]\nname = "x"\nvalue = {number}\n')
    assert told.startswith('f:4:9: "rules[0].value" is a number, got ')


@pytest.mark.parametrize(
    ("number", "good"), [(2**63 - 1, True), (2**63, False), (-(2**63), True), (-(2**63) - 1, False)]
)
def test_a_whole_number_without_bounds_has_the_64_bits_that_toml_promises(number, good):
    assert (mistakes(f'population = "a"\ngoal_count = {number}\n') == []) is good


def test_a_syntax_error_names_line_column_and_key():
    with pytest.raises(CommandError, match=r'^fleet.toml:2:14: "goal_count": '):
        parse_settings('population = "a"\ngoal_count = = 3\n', Settings, "fleet.toml")


def test_a_missing_file_is_not_found(tmp_path):
    with pytest.raises(CommandError) as caught:
        load_settings(tmp_path / "none.toml", Settings)
    assert caught.value.exit_code == 3


@given(st.text(alphabet="populationrulesgoal_count=[]{}\"'.\n 123#,", max_size=60))
def test_any_text_is_settings_or_mistakes_that_name_a_place_in_it(text):
    reading = read_settings(text, Settings)
    assert (reading.settings is None) == bool(reading.mistakes)
    lines = text.split("\n")
    for mistake in reading.mistakes:
        assert 1 <= mistake.line <= len(lines)
        assert 1 <= mistake.column <= len(lines[mistake.line - 1]) + 1
        assert "\n" not in mistake.message and mistake.message


@given(st.binary(max_size=80))
def test_any_bytes_are_settings_or_one_line(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "any.toml"
    path.write_bytes(data)
    try:
        load_settings(path, Settings)
    except CommandError as e:
        assert e.exit_code == 2 and str(path) in e.message and e.message.isprintable()
