import msgspec
import pytest

from cli_contract.errors import CommandError
from cli_contract.settings import load_settings, parse_settings


class Night(msgspec.Struct, frozen=True):
    opens: str = "23:00"
    closes: str = "06:00"


class Settings(msgspec.Struct, frozen=True):
    population: str
    goal_count: int = 20
    night: Night = Night()


def test_a_good_file_becomes_settings():
    settings = parse_settings('population = "en"\n[night]\nopens = "22:00"\n', Settings, "a.toml")
    assert settings == Settings("en", 20, Night("22:00", "06:00"))


def test_every_mistake_is_named_at_once_with_line_key_and_near_miss():
    text = '\ngoal_cuont = 3\ngoal_count = "three"\n[night]\nopns = "22:00"\ncloses = 6\n'
    with pytest.raises(CommandError) as caught:
        parse_settings(text, Settings, "fleet.toml")
    message = caught.value.message
    assert caught.value.exit_code == 2
    assert 'fleet.toml:2: unknown key "goal_cuont"; did you mean "goal_count"?' in message
    assert 'fleet.toml:3: "goal_count": Expected `int`, got `str`' in message
    assert 'fleet.toml:5: unknown key "night.opns"; did you mean "opens"?' in message
    assert 'fleet.toml:6: "night.closes": Expected `str`' in message
    assert 'key "population" is missing' in message


def test_a_syntax_error_names_line_and_column():
    with pytest.raises(CommandError, match=r"fleet.toml:2:\d+"):
        parse_settings('population = "a"\ngoal_count = = 3\n', Settings, "fleet.toml")


def test_a_missing_file_is_not_found(tmp_path):
    with pytest.raises(CommandError) as caught:
        load_settings(tmp_path / "none.toml", Settings)
    assert caught.value.exit_code == 3
