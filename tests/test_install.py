"""install.py: nothing to do is silent and quick; what is missing is added, and nothing that is there is changed."""

import os
import runpy
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

from dreambooth_ext import needs

INSTALL = Path(__file__).resolve().parents[1] / "install.py"


def run(python=sys.executable, **environment):
    return subprocess.run([str(python), str(INSTALL)], capture_output=True, text=True, timeout=600,
                          env={**os.environ, "PIP_NO_INDEX": "1", **environment}, check=False)


def computed_s(act):
    """Seconds that the processes which `act` starts and awaits compute: what the machine does besides does not count."""
    before = os.times()
    act()
    after = os.times()
    return after.children_user + after.children_system - before.children_user - before.children_system


def test_with_nothing_to_do_it_is_silent_and_quick():
    def started():
        done = run()
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")

    def bare():
        subprocess.run([sys.executable, "-c", ""], check=True)

    assert min(computed_s(started) for _ in range(3)) - min(computed_s(bare) for _ in range(3)) < 0.3


def test_it_loads_nothing_heavy():
    code = "import sys, runpy; runpy.run_path(sys.argv[1]); print(sorted({'torch', 'gradio', 'PIL'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code, str(INSTALL)], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


# ---- in a Python of its own, with an index of three stand-in packages

HOSTS = {"accelerate": "0.21.0", "transformers": "4.30.2", "safetensors": "0.4.2", "Pillow": "9.5.0", "PyYAML": "6.0",
         "tqdm": "4.65.0", "huggingface_hub": "0.36.2", "numpy": "1.26.2"}


def wheel(folder, name, version, requires=()):
    stem = f"{name}-{version}"
    with zipfile.ZipFile(folder / f"{stem}-py3-none-any.whl", "w") as archive:
        metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        metadata += "".join(f"Requires-Dist: {requirement}\n" for requirement in requires)
        archive.writestr(f"{name}.py", f"version = '{version}'\n")
        archive.writestr(f"{stem}.dist-info/METADATA", metadata)
        archive.writestr(f"{stem}.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{stem}.dist-info/RECORD", "")


@pytest.fixture(scope="module")
def wheels(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheels")
    for name, version in HOSTS.items():
        wheel(folder, name, version)
    wheel(folder, "numpy", "2.0.0")
    wheel(folder, "importlib_metadata", "8.0.0")
    return folder


@pytest.fixture(scope="module")
def host(tmp_path_factory, wheels):
    """A Python with a host's packages, but without diffusers: who adds it takes it away again."""
    folder = tmp_path_factory.mktemp("host") / "venv"
    venv.create(folder, with_pip=True)
    python = folder / ("Scripts" if os.name == "nt" else "bin") / "python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", "--no-index", "--find-links", wheels,
                    *(f"{name}=={version}" for name, version in HOSTS.items())], check=True, timeout=300)
    return python


def frozen(python):
    return subprocess.run([python, "-m", "pip", "freeze"], capture_output=True, text=True, check=True).stdout.split()


def test_rather_nothing_than_a_changed_package(host, wheels, tmp_path):
    wheel(tmp_path, "diffusers", "0.31.0", ["numpy>=2"])
    before = frozen(host)
    done = run(host, PIP_FIND_LINKS=f"{wheels} {tmp_path}")
    assert done.returncode == 0 and "could not be installed" in done.stdout
    assert frozen(host) == before


def test_without_a_network_it_says_so_in_one_line_with_the_command_that_mends_it(host):
    done = run(host)
    assert done.returncode == 0 and done.stderr == ""
    assert len(done.stdout.splitlines()) == 1
    assert "diffusers could not be installed" in done.stdout and "-m pip install" in done.stdout


def test_it_adds_what_is_missing_and_changes_nothing(host, wheels, tmp_path):
    wheel(tmp_path, "diffusers", "0.31.0", ["importlib_metadata", "numpy"])
    before = frozen(host)
    done = run(host, PIP_FIND_LINKS=f"{wheels} {tmp_path}")
    try:
        assert done.returncode == 0
        assert "installed diffusers==0.31.0, importlib_metadata==8.0.0" in done.stdout
        assert set(frozen(host)) - set(before) == {"diffusers==0.31.0", "importlib_metadata==8.0.0"}
        assert set(before) <= set(frozen(host))
        done = run(host)
        assert (done.returncode, done.stdout) == (0, "")
    finally:
        subprocess.run([host, "-m", "pip", "uninstall", "--quiet", "--yes", "diffusers", "importlib_metadata"], check=True)


# ---- the table of needs


def pretend(monkeypatch, versions):
    monkeypatch.setattr(needs, "installed", versions.get)


def test_all_there(monkeypatch):
    pretend(monkeypatch, {**HOSTS, "diffusers": "0.35.2"})
    assert needs.missing() == [] and needs.advice() == ""


def test_what_is_there_is_never_asked_for_however_old(monkeypatch):
    pretend(monkeypatch, {**HOSTS, "diffusers": "0.21.4"})
    assert needs.missing() == []
    assert "diffusers 0.21.4 is installed; training needs 0.31.0 or newer" in needs.advice()


def test_what_is_missing_is_named_with_one_command(monkeypatch):
    pretend(monkeypatch, HOSTS)
    assert [need.name for need in needs.missing()] == ["diffusers"]
    assert needs.requested(needs.missing()) == ["diffusers==0.31.0"]
    assert needs.advice().count("pip install") == 1


def test_hub_is_bounded_where_there_is_none(monkeypatch):
    pretend(monkeypatch, {name: version for name, version in HOSTS.items() if name != "huggingface_hub"})
    assert needs.HUB in needs.requested(needs.missing())


def test_a_current_host_gets_a_current_diffusers(monkeypatch):
    pretend(monkeypatch, {**HOSTS, "huggingface_hub": "1.2.0"})
    assert needs.requested(needs.missing()) == ["diffusers>=0.36"]


@pytest.mark.parametrize(("first", "second"), [("0.4.2", "0.31.0"), ("4.9", "4.30.2"), ("9.5.0", "10.0"), ("1.0rc1", "1.1")])
def test_versions_are_compared_as_numbers(first, second):
    assert needs._key(first) < needs._key(second)


def test_one_version_that_pip_cannot_read_keeps_nothing_from_being_installed(monkeypatch):
    """Debian's and Ubuntu's own packages have such; they are seen where a WebUI has no environment of its own."""
    code = runpy.run_path(str(INSTALL))
    odd, read = {"distro-info": "0.23ubuntu1"}, {"torch": "2.1.2+cu121", "numpy": "1.26.2", "clip": "1.0", "x": "2.0rc1.post2.dev3"}
    constraints = []

    def pip(command, **_):
        constraints.append(Path(command[command.index("--constraint") + 1]).read_text().splitlines())

    monkeypatch.setattr(subprocess, "run", pip)
    monkeypatch.setitem(code["install"].__globals__, "_installed", lambda: {**odd, **read})
    code["install"](["diffusers"])
    assert constraints == [[f"{name}=={version}" for name, version in read.items()]]
