import importlib.util
from importlib.metadata import version

import pytest

from edge_runtime.adapters.interpreter import PACKAGES, InterpreterRuntime
from edge_runtime.adapters.lazy_runtime import LazyRuntime
from edge_runtime.adapters.runtime_name import MODULES, runtime_name

HERE = [short for short in MODULES if importlib.util.find_spec(MODULES[short]) is not None]


@pytest.mark.parametrize("short", HERE)
def test_the_name_that_is_found_without_loading_is_the_packages_version(short):
    assert runtime_name(short) == f"{short} {version(PACKAGES[short])}"


@pytest.mark.parametrize("short", [each for each in MODULES if each not in HERE] or ["none"])
def test_an_interpreter_that_is_not_installed_is_none(short):
    if short == "none":
        pytest.skip("both interpreters are installed here")
    assert runtime_name(short) == "none"


def test_numpy_is_named_by_its_package_too():
    assert runtime_name("numpy") == f"numpy {version('numpy')}"


def test_what_was_let_go_is_loaded_again():
    runtime = LazyRuntime("auto")
    assert runtime.name.startswith(tuple(HERE)) and runtime._loaded is None
    runtime.mark_checked("a")
    assert runtime.checked("a") and isinstance(runtime._loaded, InterpreterRuntime)
    runtime.let_go()
    assert runtime._loaded is None and not runtime.checked("a")
