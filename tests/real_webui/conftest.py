"""Run by hand: pytest tests/real_webui --webui-dir DIR [--webui-url URL [--webui-base NAME] [--webui-runs N]]

DIR holds a WebUI's sources; URL is a running one with --api, this extension and a small checkpoint. Forge takes models of full
size only: there, `--webui-base full.safetensors --webui-settings '{"lora_rank": 4}' --webui-long 12` takes minutes on a CPU, and
`--webui-settings '{"memory_profile": "ultra", "steps": 1}'` trains the whole model in the 3 GiB that it can spare.
"""

import json
import socket
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

import pytest


def pytest_addoption(parser):
    group = parser.getgroup("real WebUI")
    group.addoption("--webui-dir", help="folder of a WebUI's sources")
    group.addoption("--webui-url", help="address of a running WebUI with --api and this extension")
    group.addoption("--webui-base", default="playground.safetensors", help="a small checkpoint that it lists")
    group.addoption("--webui-size", type=int, default=64, help="side of the pictures that its base is made for")
    group.addoption("--webui-settings", type=json.loads, default={}, help="settings of every run besides, as JSON")
    group.addoption("--webui-long", type=int, default=60, help="steps of a run that is to be stopped before it ends")
    group.addoption("--webui-runs", type=int, default=3, help="how many runs the memory test makes")


def wanted(config, name, what):
    value = config.getoption(name, default=None)
    if not value:
        pytest.skip(f"needs {what}: pytest tests/real_webui {name} ...")
    return value


@pytest.fixture(scope="session")
def webui_dir(request):
    return Path(wanted(request.config, "--webui-dir", "the sources of a real WebUI"))


class Http:
    """A running WebUI's HTTP interface."""

    def __init__(self, url, option):
        self.url, self.base, self.size = url.rstrip("/"), option("--webui-base"), option("--webui-size")
        self.runs, self.settings, self.long = option("--webui-runs"), option("--webui-settings"), option("--webui-long")

    def get(self, path):
        return self._answer(urllib.request.Request(self.url + path))

    def post(self, path, body=None):
        return self._answer(urllib.request.Request(
            self.url + path, json.dumps(body or {}).encode(), {"Content-Type": "application/json"}))

    @staticmethod
    def _answer(request):
        with urllib.request.urlopen(request, timeout=600) as answer:
            return json.loads(answer.read())

    def refused(self, path, body):
        try:
            self.post(path, body)
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read())
        raise AssertionError("it was not refused")

    def status(self):
        return self.get("/dreambooth/v1/status")

    def wait(self, job, limit_s=900):
        end = time.monotonic() + limit_s
        while time.monotonic() < end:
            last = self.status()["last"]
            if last and last["id"] == job["id"]:
                return last
            time.sleep(0.2)
        raise AssertionError(f"{job['name']} did not end in {limit_s} s: {self.status()}")

    def wait_for_phase(self, phase, limit_s=300, at_least=0):
        end = time.monotonic() + limit_s
        while time.monotonic() < end:
            status = self.status()
            running = status["running"]
            if running and running["phase"] == phase and running["done"] >= at_least:
                return running
            assert running or status["queue"], f"it ended: {status['last']}"
            time.sleep(0.05)
        raise AssertionError(f"{phase} was never reached: {self.status()}")

    def wait_for_restart(self, limit_s=60):
        """Until the server has gone down, and is up again.

        While it comes up it is asked for nothing: a request between the start of its server and of its API ends it ("Cannot add
        middleware after an application has started"). Its own page asks it, every 0.5 s from the third second on.
        """
        address, end = urllib.parse.urlsplit(self.url), time.monotonic() + limit_s
        was_down = False
        while time.monotonic() < end:
            try:
                socket.create_connection((address.hostname, address.port), 5).close()
                if was_down:
                    time.sleep(5)
                    return
            except OSError:
                was_down = True
            time.sleep(0.05)
        raise AssertionError("it did not come up again" if was_down else "it never went down")

    def txt2img(self, prompt, **more):
        body = {"prompt": prompt, "steps": 5, "width": self.size, "height": self.size, "sampler_name": "DDIM", "seed": 7,
                **more}
        return self.post("/sdapi/v1/txt2img", body)["images"][0]

    def selected(self):
        return self.get("/sdapi/v1/options")["sd_model_checkpoint"]

    def select(self, name):
        self.post("/sdapi/v1/options", {"sd_model_checkpoint": name})

    def ram_gib(self):
        return self.get("/sdapi/v1/memory")["ram"]["used"] / 2**30


@pytest.fixture(scope="session")
def webui(request):
    url = wanted(request.config, "--webui-url", "a running WebUI")
    return Http(url, request.config.getoption)
