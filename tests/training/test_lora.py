"""Adapters: what they add, how narrow what they stand on is, and which optimizer trains them."""

import dataclasses

import pytest
import torch
from safetensors.torch import load_file

from dreambooth_ext.progress import Progress
from dreambooth_ext.run_folder import RunFolder
from dreambooth_ext.training import checkpoint, memory, upcast
from dreambooth_ext.training.loop import train
from dreambooth_ext.training.lora import Adapter, Lora
from dreambooth_ext.training.memory import faults, plan_for
from dreambooth_ext.training.session import Session

LAYERS = {
    "Linear": (lambda: torch.nn.Linear(12, 20), (2, 5, 12)),
    "1x1": (lambda: torch.nn.Conv2d(6, 8, 1), (2, 6, 5, 5)),
    "3x3 with a stride": (lambda: torch.nn.Conv2d(6, 8, 3, stride=2, padding=1), (2, 6, 8, 8)),
}


def adapted(kind, rank=3, alpha=5.0):
    """(frozen layer with its adapter's hook, the adapter, an input)"""
    torch.manual_seed(3)
    make, shape = LAYERS[kind]
    net = torch.nn.ModuleDict({"layers": torch.nn.ModuleDict({"0": make()})}).requires_grad_(False)
    Lora({"text_encoder": net}, rank, alpha, 0, seed=1)
    layer = net["layers"]["0"]
    torch.nn.init.normal_(layer.lora.up.weight)
    return layer, layer.lora, torch.randn(shape)


@pytest.mark.parametrize("kind", LAYERS)
def test_a_layer_gives_what_one_with_the_product_in_its_weights_gives(kind):
    layer, adapter, x = adapted(kind)
    found = layer(x)
    with torch.no_grad():
        product = adapter.up.weight.flatten(1) @ adapter.down.weight.flatten(1)
        layer.weight.add_(product.view_as(layer.weight), alpha=5.0 / 3)
        del layer.lora
    torch.testing.assert_close(found, layer(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", LAYERS)
def test_over_a_bf16_layer_nothing_wide_is_kept_for_the_way_back(kind):
    """Gradients are fp32 all the same, as near to those of fp32 layers as bf16 products are."""
    layer, adapter, x = adapted(kind)
    layer(x).square().sum().backward()
    wanted = {name: weight.grad.clone() for name, weight in adapter.named_parameters()}
    adapter.zero_grad()
    for parameter in (layer.weight, layer.bias):
        parameter.data = parameter.data.bfloat16()
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        layer(x.bfloat16()).float().square().sum().backward()
    adapters = {weight.shape for weight in adapter.parameters()}
    assert all(tensor.dtype == torch.bfloat16 for tensor in kept[:-1] if tensor.shape not in adapters)  # the last is the loss's
    for name, weight in adapter.named_parameters():
        assert weight.grad.dtype == torch.float32
        assert float((weight.grad - wanted[name]).norm() / wanted[name].norm()) < 0.03


def test_an_adapter_starts_as_nothing():
    layer = torch.nn.Linear(4, 4)
    adapter = Adapter(layer, 2, 2.0, torch.Generator().manual_seed(0))
    assert not adapter(torch.randn(3, 4)).any() and adapter.down.weight.any()


@pytest.fixture
def on_a_card(monkeypatch):
    def made(bf16):
        monkeypatch.setattr(memory.precision, "device_of", lambda config: "cuda")
        monkeypatch.setattr(memory.precision, "has_bf16", lambda device: bf16)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)

    return made


@pytest.mark.parametrize(("settings", "bf16", "weights", "autocast"), [
    ({"memory_profile": "fast"}, True, "bf16", "no"), ({"memory_profile": "balanced"}, True, "bf16", "no"),
    ({"memory_profile": "low"}, True, "bf16", "no"), ({"mixed_precision": "bf16"}, True, "bf16", "no"),
    ({"memory_profile": "fast"}, False, "fp16", "fp16"), ({"memory_profile": "balanced"}, False, "fp16", "fp16"),
    ({"mixed_precision": "fp16"}, False, "fp16", "fp16"), ({}, True, "fp32", "no"),
])
def test_on_a_card_what_is_frozen_is_as_narrow_as_it_computes(settings, bf16, weights, autocast, config, on_a_card):
    on_a_card(bf16)
    config = dataclasses.replace(config, device="auto", lora_rank=4, **settings)
    plan = plan_for(config)
    assert (plan.weights, plan.autocast, plan.fused_backward) == (weights, autocast, False)
    assert plan.unet_yields == (settings.get("memory_profile") in ("balanced", "low"))
    assert set(memory.loaded_dtypes(config).values()) == ({memory.DTYPES[weights]} - {torch.float32})
    assert not faults(dataclasses.replace(config, mixed_precision=plan.precision))


@pytest.mark.parametrize("profile", ["auto", "fast", "balanced", "low", "ultra"])
def test_the_optimizer_is_the_users_choice_in_every_profile(profile, config, on_a_card):
    on_a_card(True)
    config = dataclasses.replace(config, device="auto", lora_rank=4, memory_profile=profile, optimizer="prodigy", learning_rate=1.0)
    assert not faults(config)
    assert plan_for(config, "fast" if profile == "auto" else None).optimizer == "prodigy"
    assert any("brings its own" in fault for fault in faults(dataclasses.replace(config, lora_rank=0)))


@pytest.mark.parametrize("changes", [
    {"memory_profile": "fast"}, {"memory_profile": "balanced"}, {"memory_profile": "ultra"}, {"gradient_checkpointing": True},
    {"memory_profile": "low", "lora_conv_rank": 2, "clip_skip": 2},
], ids=str)
def test_every_adapter_learns(changes, tiny_model, tiny_dataset, config, run):
    """The layers below them are frozen: gradient checkpointing may lose what goes through them."""
    config = dataclasses.replace(config, steps=2, lora_rank=2, **changes)
    train(config, tiny_model, tiny_dataset, run, Progress())
    ups = {name: weight for name, weight in load_file(run.diffusers_dir / "lora.safetensors").items() if "lora_up" in name}
    last = tiny_model.text_encoder.config.num_hidden_layers - 1
    unread = f"text_encoder.encoder.layers.{last}." if "clip_skip" in changes else "none"
    still = sorted(name for name, weight in ups.items() if not weight.any())
    assert still == sorted(name for name in ups if name.startswith(unread)) and any(name.startswith("text_encoder") for name in ups)


def test_in_bf16_throughout_as_on_a_card_it_learns_what_it_learns_in_fp32(
    tiny, tiny_model, tiny_dataset, config, tmp_path, monkeypatch
):
    ends = {}
    for profile in ("none", "low"):
        unet, vae, text_encoder = tiny.modules()
        model = dataclasses.replace(tiny_model, unet=unet, vae=vae, text_encoders=(text_encoder,))
        own = dataclasses.replace(config, steps=12, lora_rank=4, learning_rate=1e-2, memory_profile=profile)
        run = RunFolder(tmp_path / profile)
        run.create(own)
        monkeypatch.setattr(upcast, "install", lambda modules: [])  # layers are not widened, as they are for a CPU's sake
        train(own, model, tiny_dataset, run, Progress())
        losses = [entry["loss"] for entry in run.metrics()]
        ends[profile] = load_file(run.diffusers_dir / "lora.safetensors"), losses
    (wide, wide_losses), (narrow, narrow_losses) = ends.values()
    assert narrow_losses == pytest.approx(wide_losses, rel=0.05) and narrow_losses != wide_losses
    learnt = [torch.cat([state[name].flatten() for name in sorted(state) if "lora_up" in name]) for state in (wide, narrow)]
    assert float(torch.cosine_similarity(*learnt, dim=0)) > 0.9


def test_bf16_weights_under_adapters_are_not_trained(tiny_model, tiny_dataset, config, tmp_path):
    config, run = dataclasses.replace(config, steps=2, lora_rank=2, memory_profile="low"), RunFolder(tmp_path / "run")
    before = {name: tensor.bfloat16() for name, tensor in tiny_model.unet.state_dict().items()}
    run.create(config)
    train(config, tiny_model, tiny_dataset, run, Progress())
    after = tiny_model.unet.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    assert [path.name for path in run.diffusers_dir.iterdir()] == ["lora.safetensors"]


def test_a_snapshot_of_the_time_when_profiles_brought_an_optimizer_for_a_lora_too_goes_on(
    tiny, tiny_model, tiny_dataset, config, tmp_path, monkeypatch
):
    config = dataclasses.replace(config, steps=4, lora_rank=2, memory_profile="low", snapshot_every=2)
    run = RunFolder(tmp_path / "run")
    run.create(config)
    with monkeypatch.context() as then:
        then.setattr(memory, "_under_adapters", lambda plan, config, device: dataclasses.replace(plan, fused_backward=False))
        train(config, tiny_model, tiny_dataset, run, Progress())
    whole = load_file(run.diffusers_dir / "lora.safetensors")
    for path in (run.diffusers_dir, run.checkpoints_dir / "step-000004"):
        path.rename(tmp_path / path.name)
    path = run.checkpoints_dir / "step-000002" / "state.pt"
    state = torch.load(path, weights_only=True)
    assert state.pop("optimizer_name") == "adamw_8bit"
    torch.save(state, path)
    assert checkpoint.made_of(path.parent).optimizer == "adamw_8bit"
    unet, vae, text_encoder = tiny.modules()
    train(config, dataclasses.replace(tiny_model, unet=unet, vae=vae, text_encoders=(text_encoder,)), tiny_dataset, run, Progress(),
          resume=True)
    ended = load_file(run.diffusers_dir / "lora.safetensors")
    assert whole.keys() == ended.keys() and all(torch.equal(whole[name], ended[name]) for name in whole)


def test_each_parameter_of_a_session_is_an_adapters(tiny_model, config):
    config = dataclasses.replace(config, lora_rank=2)
    plan = plan_for(config)
    with memory.precision.accelerator_for(config, plan.autocast) as accelerator:
        session = Session(config, plan, tiny_model, accelerator)
        names = [name for module in session.modules.values() for name, weight in module.named_parameters() if weight.requires_grad]
        assert names and all(".lora." in name for name in names)
        session.close()
