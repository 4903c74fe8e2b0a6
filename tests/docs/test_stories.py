"""The two life stories name real functions, in order; a rename must be told there, too."""

import importlib
import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"
STORIES = ("life-of-an-update.md", "life-of-a-model-version.md")
PACKAGES = ("wire_contract", "edge_runtime", "cloud_aggregator", "model_export", "keyboard_demo", "fleet_simulator")


def names(story: str) -> list[str]:
    found = re.findall(r"`([a-z_]+(?:\.\w+)+)`", (DOCS / story).read_text())
    return [name for name in found if name.split(".")[0] in PACKAGES]


def resolve(name: str) -> object:
    """Find the longest module, then its attributes, without importing TensorFlow for model_export's names."""
    parts = name.split(".")
    root = Path(__file__).parents[2]
    for end in range(len(parts), 0, -1):
        if (root / "/".join(parts[:end])).with_suffix(".py").is_file():
            if parts[0] == "model_export":
                source = (root / "/".join(parts[:end])).with_suffix(".py").read_text()
                for attribute in parts[end:]:
                    if not re.search(rf"^\s*(?:def|class) {attribute}\b", source, re.MULTILINE):
                        raise AttributeError(name)
                return source
            value: object = importlib.import_module(".".join(parts[:end]))
            for attribute in parts[end:]:
                value = getattr(value, attribute)
            return value
    raise ModuleNotFoundError(name)


@pytest.mark.parametrize("story", STORIES)
def test_every_function_that_a_story_names_exists(story):
    assert len(names(story)) >= 15
    missing = []
    for name in names(story):
        try:
            resolve(name)
        except (AttributeError, ModuleNotFoundError):
            missing.append(name)
    assert missing == []


def test_a_renamed_function_would_be_found():
    with pytest.raises(AttributeError):
        resolve("cloud_aggregator.staleness.wait")
    with pytest.raises(AttributeError):
        resolve("model_export.convert.convertt")


@pytest.mark.parametrize("page", sorted(DOCS.rglob("*.md")), ids=lambda p: p.name)
def test_every_relative_link_leads_somewhere(page):
    for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
        assert (page.parent / target).exists(), target
