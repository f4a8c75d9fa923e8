"""The host is told by what it offers, not by its name."""

import sys
from types import ModuleType, SimpleNamespace

import pytest

from dreambooth_ext.hosts import detect


@pytest.fixture
def offering(monkeypatch):
    def pretend(*names):
        monkeypatch.setattr(detect, "_offers", lambda name: name in names)
        detect.webui_host.cache_clear()
        return detect.webui_host()

    yield pretend
    detect.webui_host.cache_clear()


@pytest.mark.parametrize(("modules", "name"), [
    ((), "AUTOMATIC1111"),
    (("modules_forge.main_entry", "backend.memory_management"), "Forge"),
    (("ldm_patched.modules.model_management",), "Forge Classic"),
    (("modules_forge.main_entry", "ldm_patched.modules.model_management"), "Forge Classic"),
])
def test_which_adapter(offering, modules, name):
    assert offering(*modules).name == name


@pytest.mark.parametrize(("version", "name"), [
    ("classic", "Forge Classic"), ("1.0.0v2-v1.10.1RC", "reForge"), ("0.0.17v1.8.0rc-latest", "Forge"), ("2.1", "Forge Classic"),
])
def test_forks_that_are_built_alike_are_told_apart_by_their_version(offering, monkeypatch, version, name):
    monkeypatch.setitem(sys.modules, "modules_forge", ModuleType("modules_forge"))
    monkeypatch.setitem(sys.modules, "modules_forge.forge_version", SimpleNamespace(version=version))
    assert offering("ldm_patched.modules.model_management").name == name


def test_one_adapter_for_the_process(offering):
    assert offering() is detect.webui_host()


def test_a_host_without_any_of_it_is_the_plain_one():
    assert not detect._offers("modules_forge.main_entry") and not detect._offers("no_such_package")
