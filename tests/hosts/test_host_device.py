"""A WebUI that computes on its second card, or on none: training, and what is told of it beforehand, go where it is."""

import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from campaign import SMALLEST

from dreambooth_ext import compare, recipe
from dreambooth_ext.config import Concept, TrainConfig
from dreambooth_ext.errors import Cancelled, ConfigError
from dreambooth_ext.hosts.standalone import StandaloneHost
from dreambooth_ext.models.family import SD1
from dreambooth_ext.models.specimen import specimen
from dreambooth_ext.progress import Progress
from dreambooth_ext.run_folder import RunFolder
from dreambooth_ext.service import Service

GIB = 2**30
CAPABILITIES = [(7, 5), (8, 6)]  # the first card has no bf16


@pytest.fixture
def cards(monkeypatch):
    """Two GPUs that torch only talks of: the first with 1 GiB free, the second with 2 GiB."""
    def numbered(device, optional):
        if device is None or (optional and torch.device(device).index is None):
            return 0
        number = device if isinstance(device, int) else torch.device(device).index
        if number is None:  # torch 2.1 takes no "cuda" there
            raise ValueError(f"Expected a torch.device with a specified index or an integer, but got:{device}")
        return number

    for name, stand_in in {
        "is_available": lambda: True, "device_count": lambda: 2, "current_device": lambda: 0,
        "get_device_capability": lambda device=None: CAPABILITIES[numbered(device, optional=True)],
        "mem_get_info": lambda device=None: ((numbered(device, optional=False) + 1) * GIB, 24 * GIB),
    }.items():
        monkeypatch.setattr(torch.cuda, name, stand_in)
    monkeypatch.setattr(torch.version, "hip", None)


@pytest.fixture
def computes_on(webui, monkeypatch):
    """What --device-id and --use-cpu have made of the WebUI."""
    from modules import devices

    return lambda device: monkeypatch.setattr(devices, "device", device and torch.device(device))


@pytest.fixture
def config(webui, inputs, tmp_path):
    specimen(SD1, size=SMALLEST).write(webui.folder / "real.safetensors", torch.float16)
    webui.sd_models.list_models()
    concept = Concept(instance_dir=str(inputs[1]), token="rxz", class_noun="dog")
    return TrainConfig(base=str(webui.folder / "real.safetensors"), output_name="new", steps=2, resolution=64,
                       models_dir=str(webui.folder), runs_dir=str(tmp_path / "runs"), concepts=(concept,),
                       with_prior_preservation=False)


@pytest.fixture
def trained_on(monkeypatch):
    """The devices that training was begun on; it goes no further."""
    seen = []

    def begin(config, *more):
        seen.append(config.device)
        raise Cancelled("enough")

    monkeypatch.setattr(recipe, "_train_model", begin)
    return seen


@pytest.mark.parametrize(("device", "named"), [
    (None, "auto"), ("cpu", "cpu"), ("cuda", "cuda"), ("cuda:1", "cuda:1"),
    ("mps", "cpu"), ("xpu:0", "cpu"),  # nothing trains there
])
def test_the_host_says_what_it_computes_on(host, computes_on, device, named):
    computes_on(device)
    assert host.device() == named


def test_a_run_trains_where_the_webui_computes_and_goes_on_where_it_then_does(host, config, cards, computes_on, trained_on):
    computes_on("cuda:1")
    with pytest.raises(Cancelled):
        recipe.train(config, host, Progress())
    run = RunFolder.for_config(config)
    assert run.config().device == "auto"
    for device in ("cuda", "cpu"):
        computes_on(device)
        with pytest.raises(Cancelled):
            recipe.resume(run, host, Progress())
    computes_on("cpu")
    with pytest.raises(Cancelled):  # the user's word counts more
        recipe.train(replace(config, output_name="named", device="cuda:0"), host, Progress())
    assert trained_on == ["cuda:1", "cuda", "cpu", "cuda:0"]


def test_faults_are_those_of_the_card_that_trains(host, config, cards, computes_on, trained_on):
    service = Service(host)
    half = replace(config, mixed_precision="bf16")
    low = replace(config, memory_profile="low")
    for device, has_bf16 in (("cuda:1", True), ("cuda:0", False)):
        computes_on(device)
        for each in (half, low, replace(half, device=device), replace(low, device=device)):
            faults = service.faults(each.to_dict())
            assert faults == [] if has_bf16 else "this card has no bf16" in faults[0], faults
    with pytest.raises(ConfigError, match="this card has no bf16"):
        recipe.train(half, host, Progress())
    assert trained_on == []


def test_a_card_that_is_not_there_is_told_with_those_that_are(host, config, cards):
    faults = Service(host).faults(replace(config, device="cuda:2").to_dict())
    assert faults == ["--device: cuda:2 is not here; torch sees cuda:0, cuda:1"]
    assert "is not one of" in Service(host).faults(replace(config, device="cuda:first").to_dict())[0]


def test_free_memory_is_that_of_the_card_that_trains(host, config, cards, computes_on, monkeypatch):
    from dreambooth_ext.training import estimate
    from dreambooth_ext.ui.sentences import Sentences

    monkeypatch.setattr(estimate, "_activations", lambda *more: 0)  # they take seconds, and are the same everywhere
    service = Service(host)
    sentences, values = Sentences(service), {**config.to_dict(), "instance_dir": config.concepts[0].instance_dir}
    values = {name: value for name, value in values.items() if name not in ("concepts", "version")}
    for device, gib in (("cuda:1", 2), ("cuda", 1)):
        computes_on(device)
        assert {row["free"] for row in service.estimate(values)} == {gib * GIB}
        told, end = "pending", time.monotonic() + 120
        while "pending" in told:
            assert time.monotonic() < end
            told = sentences.memory(values)
            time.sleep(0.01)
        assert f"{gib}.0 GiB are free" in told


def test_snapshots_are_measured_where_the_webui_computes(host, config, cards, computes_on, tmp_path, monkeypatch):
    from dreambooth_ext.host import on_device_of
    from dreambooth_ext.models import features, load

    places = []
    model = SimpleNamespace(to=lambda place: places.append(place))
    monkeypatch.setattr(load, "load_checkpoint", lambda base, dtypes, vae: places.append(dtypes["unet"]) or model)
    monkeypatch.setattr(features, "features", lambda *more: None)
    for device in ("cuda:1", "cpu"):
        computes_on(device)
        compare._features(on_device_of(host, config), 64, [], Progress())
    assert places == [torch.float16, "cuda:1", "cpu", torch.float32, "cpu", "cpu"]


def test_without_a_webui_auto_is_left_to_torch_and_a_named_card_is_asked(cards, tmp_path):
    assert StandaloneHost(tmp_path, tmp_path).device() == "auto"
    assert StandaloneHost(tmp_path, tmp_path, device="mps").device() == "auto"  # it renders there, but nothing trains
    first, second = (StandaloneHost(tmp_path, tmp_path, device=f"cuda:{number}") for number in (0, 1))
    assert second.device() == "cuda:1"
    assert first.batch_size(256, 256) == 1 < second.batch_size(256, 256)
