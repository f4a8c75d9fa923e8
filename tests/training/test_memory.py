"""Every memory profile trains, resumes exactly, and refuses what it cannot do."""

import copy
import dataclasses
import warnings

import pytest
import torch

from dreambooth_ext import recipe
from dreambooth_ext.errors import Cancelled
from dreambooth_ext.models.diffusers_folder import load_diffusers
from dreambooth_ext.models.family import SD1
from dreambooth_ext.models.specimen import SMALL, specimen
from dreambooth_ext.progress import Progress
from dreambooth_ext.run_folder import RunFolder
from dreambooth_ext.training import loop, memory, optimizer
from dreambooth_ext.training.gradient_checkpointing import checkpoint_gradients
from dreambooth_ext.training.loop import train
from dreambooth_ext.training.memory import PROFILES, faults, plan_for

pytestmark = pytest.mark.engine


def fresh_model(tiny, former):
    unet, vae, text_encoder = tiny.modules()
    return dataclasses.replace(former, unet=unet, vae=vae, text_encoders=(text_encoder,))


def fresh_run(path, config):
    run = RunFolder(path)
    run.create(config)
    return run


def weights_of(model):
    return {f"{part}.{name}": tensor.clone() for part, module in model.parts.items()
            for name, tensor in module.state_dict().items()}


def stopped_at(step):
    progress = Progress()
    progress.listen(lambda report: progress.cancel() if report.phase == "training" and report.done == step else None)
    return progress


@pytest.mark.parametrize("profile", PROFILES)
def test_a_cut_run_ends_like_a_whole_one(profile, tiny, tiny_model, tiny_dataset, config, tmp_path):
    config = dataclasses.replace(config, memory_profile=profile, ema_decay=0.9, steps=3, lr_scheduler="cosine", lr_warmup_steps=1,
                                 random_flip=True, noise_offset=0.1)
    whole, cut = (fresh_run(tmp_path / name, config) for name in ("whole", "cut"))
    train(config, tiny_model, tiny_dataset, whole, Progress())
    with pytest.raises(Cancelled):
        train(config, fresh_model(tiny, tiny_model), tiny_dataset, cut, stopped_at(2))
    train(config, fresh_model(tiny, tiny_model), tiny_dataset, cut, Progress(), resume=True)
    first, second = (weights_of(load_diffusers(run.diffusers_dir, tiny_model)) for run in (whole, cut))
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
    assert [entry["loss"] for entry in whole.metrics()] == [entry["loss"] for entry in cut.metrics()]


@pytest.fixture
def without_triton(monkeypatch):
    """As on a GPU where kernels run, but that torch's operations do what they would do."""
    monkeypatch.setattr(memory, "why_no_kernels", lambda device: "")
    own = optimizer.build
    monkeypatch.setattr(optimizer, "build", lambda groups, config, plan, *more: own(
        groups, config, dataclasses.replace(plan, kernels=False), *more))


@pytest.mark.parametrize("profile", ["low", "ultra"])
def test_with_kernels_weights_and_state_lie_channels_last(profile, tiny, tiny_model, tiny_dataset, config, tmp_path, monkeypatch,
                                                          without_triton):
    """Their layout is that of the run's beginning: the state lies in its order."""
    config = dataclasses.replace(config, memory_profile=profile, steps=3, ema_decay=0.9)
    before = plan_for(dataclasses.replace(config, kernels="torch"))
    assert plan_for(config).channels_last and not before.channels_last
    layouts, own = [], loop.Session.update

    def update(self, last=False):
        layouts.append(self.model.unet.conv_in.weight.is_contiguous(memory_format=torch.channels_last))
        own(self, last)

    monkeypatch.setattr(loop.Session, "update", update)
    whole, cut = (fresh_run(tmp_path / name, config) for name in ("whole", "cut"))
    train(config, tiny_model, tiny_dataset, whole, Progress())
    with pytest.raises(Cancelled):
        train(config, fresh_model(tiny, tiny_model), tiny_dataset, cut, stopped_at(2))
    monkeypatch.setattr(memory, "why_no_kernels", lambda device: "Triton is gone")
    train(config, fresh_model(tiny, tiny_model), tiny_dataset, cut, Progress(), resume=True)
    assert layouts == [True] * 6
    first, second = (weights_of(load_diffusers(run.diffusers_dir, tiny_model)) for run in (whole, cut))
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("profile", ["low", "ultra"])
def test_a_layout_changes_where_numbers_lie_but_not_what_is_learnt(profile, tiny, tiny_model, tiny_dataset, config, tmp_path,
                                                                   without_triton):
    losses = {}
    for kernels in ("auto", "torch"):
        run = fresh_run(tmp_path / kernels, config)
        changed = dataclasses.replace(config, memory_profile=profile, steps=8, learning_rate=1e-3, kernels=kernels)
        train(changed, fresh_model(tiny, tiny_model), tiny_dataset, run, Progress())
        losses[kernels] = [entry["loss"] for entry in run.metrics()]
    assert losses["auto"] == pytest.approx(losses["torch"], rel=0.02)  # rounding draws other numbers


def test_a_run_of_before_keeps_its_layout(tiny, tiny_model, tiny_dataset, config, tmp_path, monkeypatch, without_triton):
    config = dataclasses.replace(config, memory_profile="ultra", steps=3)
    run = fresh_run(tmp_path / "run", config)
    with pytest.raises(Cancelled):
        train(dataclasses.replace(config, kernels="torch"), tiny_model, tiny_dataset, run, stopped_at(2))
    path = next(run.checkpoints_dir.rglob("state.pt"))
    state = torch.load(path, weights_only=True)
    assert state.pop("channels_last") is False
    torch.save(state, path)  # as earlier versions wrote it
    plans, own = [], loop.plan_for
    monkeypatch.setattr(loop, "plan_for", lambda *args, **more: plans.append(own(*args, **more)) or plans[-1])
    train(config, fresh_model(tiny, tiny_model), tiny_dataset, run, Progress(), resume=True)
    assert [plan.channels_last for plan in plans] == [False]


@pytest.mark.parametrize(("fits", "loaded"), [("none", torch.float32), ("ultra", torch.bfloat16)])
def test_auto_loads_a_base_as_narrow_as_it_will_be_trained(fits, loaded, tiny_dataset, config, tmp_path, monkeypatch):
    """SDXL's UNet in fp32 would take 10 GB of RAM, though it is trained in bf16. A run that goes on has the profile that it had."""
    base = specimen(SD1, size=SMALL["sd1"]).write(tmp_path / "base.safetensors", torch.float16)
    config = dataclasses.replace(config, base=str(base), memory_profile="auto", steps=2, train_text_encoder=False)
    seen, load = [], memory.load_model

    def watched(config):
        model = load(config)
        seen.append((config.memory_profile, model.unet.dtype))
        return model

    monkeypatch.setattr(memory, "load_model", watched)
    monkeypatch.setattr(loop, "profile_that_fits", lambda config, model=None: fits)
    run = fresh_run(tmp_path / "run", config)
    recipe._train_model(config, tiny_dataset, run, Progress(), False)
    monkeypatch.setattr(loop, "profile_that_fits", lambda config, model=None: "none")
    recipe._train_model(dataclasses.replace(config, steps=3), tiny_dataset, run, Progress(), True)
    assert seen == [(fits, loaded)] * 2 and run.config().memory_profile == "auto"


@pytest.mark.parametrize("profile", PROFILES)
def test_every_weight_learns(profile, tiny_model, tiny_dataset, config, tmp_path):
    config = dataclasses.replace(config, memory_profile=profile, learning_rate=1e-2, adam_weight_decay=0.0)
    before = weights_of(tiny_model)
    train(config, tiny_model, tiny_dataset, fresh_run(tmp_path / "run", config), Progress())
    after = weights_of(tiny_model)
    still = {name for name, tensor in after.items() if torch.equal(tensor, before[name].to(tensor.dtype))}
    assert {name for name in still if not name.startswith("vae.")} <= {"text_encoder.text_model.embeddings.position_ids"}


@pytest.mark.parametrize("profile", ["low", "offload", "balanced"])
def test_a_profile_learns_what_plain_adamw_learns(profile, tiny, tiny_model, tiny_dataset, config, tmp_path):
    ends = {}
    for name in ("none", profile):
        changed = dataclasses.replace(config, memory_profile=name, steps=12, max_grad_norm=0.0, learning_rate=3e-3)
        run = fresh_run(tmp_path / name, changed)
        train(changed, fresh_model(tiny, tiny_model), tiny_dataset, run, Progress())
        ends[name] = [entry["validation_loss"] for entry in run.metrics() if "validation_loss" in entry]
    assert ends[profile][-1] == pytest.approx(ends["none"][-1], rel=0.1)


def test_ultra_keeps_bf16_weights_and_hardly_any_state(tiny_model, tiny_dataset, config, tmp_path):
    config = dataclasses.replace(config, memory_profile="ultra", steps=1)
    run = fresh_run(tmp_path / "run", config)
    train(config, tiny_model, tiny_dataset, run, Progress())
    state = torch.load(next(run.checkpoints_dir.glob("step-*/state.pt")), weights_only=True)
    stored = sum(value.numel() for entry in state["optimizer"]["state"].values() for value in entry.values()
                 if isinstance(value, torch.Tensor))
    numbers = sum(parameter.numel() for parameter in tiny_model.unet.parameters())
    assert {parameter.dtype for parameter in tiny_model.unet.parameters()} == {torch.bfloat16}
    assert stored < 0.1 * numbers


@pytest.mark.parametrize(("changes", "told"), [
    ({"memory_profile": "low", "gradient_accumulation_steps": 2}, "nothing can be accumulated"),
    ({"memory_profile": "ultra", "optimizer": "lion"}, "brings its own"),
    ({"memory_profile": "offload", "lora_rank": 4}, "next to none"),
    ({"optimizer": "prodigy", "learning_rate": 1e-5}, "finds the rate itself"),
    ({"mixed_precision": "fp16"}, "needs an NVIDIA or AMD GPU"),
    ({"device": "cuda"}, "sees no GPU"), ({"device": "dml"}, "is not one of"),
])
def test_what_cannot_be_combined_is_told_beforehand(changes, told, config):
    if changes.get("device") == "cuda" and torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    found = faults(dataclasses.replace(config, **changes))
    assert any(told in fault for fault in found), found


def test_each_profile_says_what_is_in_effect(config):
    for name in PROFILES:
        plan = plan_for(dataclasses.replace(config, memory_profile=name))
        assert name in plan.sentence and plan.use
        assert ("during the backward pass" in plan.sentence) == plan.fused_backward


def test_a_card_without_bf16_is_told_which_profiles_run(config, monkeypatch):
    monkeypatch.setattr(memory.precision, "device_of", lambda config: "cuda")
    monkeypatch.setattr(memory.precision, "has_bf16", lambda device: False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    told = {name: [fault for fault in faults(dataclasses.replace(config, memory_profile=name, device="auto"))
                   if "no bf16" in fault] for name in PROFILES}
    assert not told["fast"] and not told["balanced"]
    for name in ("low", "ultra", "offload"):
        assert name in told[name][0] and "fast and balanced run on it" in told[name][0]
    assert plan_for(dataclasses.replace(config, memory_profile="fast")).autocast == "fp16"


@pytest.fixture(params=["highest", "medium"])
def precision_of_products(request):
    torch.set_float32_matmul_precision(request.param)
    yield
    torch.set_float32_matmul_precision("highest")


def test_a_job_leaves_torchs_flags_as_it_found_them(config, precision_of_products):
    flags = [(torch.backends.cuda.matmul, "allow_tf32"), (torch.backends.cudnn, "allow_tf32"), (torch.backends.cudnn, "benchmark")]
    before = [getattr(owner, name) for owner, name in flags], torch.get_float32_matmul_precision(), torch.is_grad_enabled()
    with pytest.raises(ZeroDivisionError), memory.precision.accelerator_for(config, "no"):
        for owner, name in flags:
            setattr(owner, name, not getattr(owner, name))
        torch.manual_seed(99)
        raise ZeroDivisionError
    after = [getattr(owner, name) for owner, name in flags], torch.get_float32_matmul_precision(), torch.is_grad_enabled()
    assert before == after


def test_a_torch_that_asserts_that_it_knows_a_flag_trains_all_the_same(config, monkeypatch):
    """As 2.1.2 does, the WebUI's: `torch.backends.cuda.matmul` of its own kind."""
    class Matmul:
        allow_tf32 = False

        def __getattr__(self, name):
            raise AssertionError("Unknown attribute " + name)

    monkeypatch.setattr(torch.backends.cuda, "matmul", Matmul())
    with memory.precision.accelerator_for(config, "no"):
        torch.backends.cuda.matmul.allow_tf32 = True
    assert torch.backends.cuda.matmul.allow_tf32 is False


@pytest.mark.skipif(not memory.precision.knows_newer_names(), reason="this torch knows the older names alone")
@pytest.mark.parametrize("wanted", ["tf32", "ieee"])
def test_a_host_may_use_the_newer_names_of_torchs_flags(config, wanted):
    """After which torch tells nothing by the older ones."""
    torch.backends.cuda.matmul.fp32_precision = torch.backends.cudnn.conv.fp32_precision = wanted
    try:
        with memory.precision.accelerator_for(config, "no"):
            torch.set_float32_matmul_precision("high")  # as on a GPU
            torch.backends.cudnn.allow_tf32 = True
        assert torch.backends.cuda.matmul.fp32_precision == torch.backends.cudnn.conv.fp32_precision == wanted
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = False, True
        torch.set_float32_matmul_precision("highest")


@pytest.mark.parametrize(("variable", "settings", "told"), [
    ({"ACCELERATE_USE_FSDP": "true"}, {}, "this launch has one"),
    ({"ACCELERATE_USE_FSDP": "1", "WORLD_SIZE": "2", "FSDP_VERSION": "2"}, {}, "launch with --fsdp_version 1"),
    ({"ACCELERATE_USE_FSDP": "true", "WORLD_SIZE": "2", "FSDP_OFFLOAD_PARAMS": "true"}, {}, "--fsdp_offload_params false"),
    ({"ACCELERATE_USE_FSDP": "true", "WORLD_SIZE": "2", "FSDP_SHARDING_STRATEGY": "2"}, {}, "--fsdp_sharding_strategy FULL_SHARD"),
    ({"ACCELERATE_USE_FSDP": "true", "WORLD_SIZE": "2"}, {"memory_profile": "low"}, "choose fast"),
    ({"ACCELERATE_USE_FSDP": "true", "WORLD_SIZE": "2"}, {"memory_profile": "balanced"}, "adamw 8bit has to see them whole"),
    ({"ACCELERATE_USE_FSDP": "true", "WORLD_SIZE": "2"}, {"optimizer": "adafactor"}, "adafactor has to see them whole"),
    ({"ACCELERATE_USE_FSDP": "true", "WORLD_SIZE": "2"}, {"optimizer": "prodigy", "learning_rate": 1.0}, "prodigy has to see them"),
    ({"ACCELERATE_USE_FSDP": "true", "WORLD_SIZE": "2"}, {"lora_rank": 4}, "a LoRA is small"),
    ({"ACCELERATE_USE_FSDP": "true", "WORLD_SIZE": "2"}, {"mixed_precision": "fp16"}, "not for networks that FSDP splits"),
    ({"ACCELERATE_USE_FSDP": "true", "WORLD_SIZE": "2"}, {"speed_up": "compile"}, "compile is for networks that are whole"),
    ({"ACCELERATE_USE_FSDP": "true", "WORLD_SIZE": "2"}, {"speed_up": "graphs"}, "networks that are whole"),
    ({"ACCELERATE_USE_DEEPSPEED": "true"}, {}, "DEEPSPEED splits the networks"),
    ({"WORLD_SIZE": "2"}, {"memory_profile": "low"}, "choose balanced"),
    ({"WORLD_SIZE": "2"}, {"draw_order": "diffusers"}, "draws are those of one process"),
])
def test_launches_that_cannot_work_are_refused(monkeypatch, config, variable, settings, told):
    wished = dataclasses.replace(config, **settings)
    alone = set(faults(wished))
    for name, value in variable.items():
        monkeypatch.setenv(name, value)
    assert any(told in fault for fault in set(faults(wished)) - alone)


def test_a_torch_whose_fsdp_needs_a_gpu_is_told(monkeypatch, config):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("WORLD_SIZE", "2")
    told = f"FSDP of torch {torch.__version__} runs on GPUs alone"
    for stream, wanted in ((object, True), (lambda priority: None, False)):
        monkeypatch.setattr(torch.cpu, "Stream", stream)
        assert any(told in fault for fault in faults(config)) == wanted


def test_a_launch_that_splits_networks_is_taken_with_what_works_there(monkeypatch, config):
    """As both of Accelerate's generations set its variables."""
    wished = dataclasses.replace(config, memory_profile="fast")
    monkeypatch.setattr(memory.sharding, "runs_on", lambda device: True)  # as on a GPU, whatever torch this is
    for variables in ({"FSDP_SHARDING_STRATEGY": "1", "FSDP_USE_ORIG_PARAMS": "false"},
                      {"FSDP_SHARDING_STRATEGY": "FULL_SHARD", "FSDP_VERSION": "1", "FSDP_RESHARD_AFTER_FORWARD": "true",
                       "FSDP_ACTIVATION_CHECKPOINTING": "false"}):
        with monkeypatch.context() as patch:
            for name, value in {**variables, "ACCELERATE_USE_FSDP": "true", "WORLD_SIZE": "2",
                                "FSDP_OFFLOAD_PARAMS": "false"}.items():
                patch.setenv(name, value)
            assert faults(wished) == [] and plan_for(wished).sharded


def test_text_encoders_are_checkpointed_layer_by_layer_with_gradients_below_frozen_embeddings(tiny):
    """Whatever the transformers; torch says nothing, a copy computes by itself, and afterwards all is as it was."""
    encoder = tiny.modules()[2].train()
    embeddings = encoder.get_input_embeddings().requires_grad_(False)
    classes = {name: type(module) for name, module in encoder.named_modules()}
    calls, tokens = [], torch.arange(77)[None]
    parts = [module for name, module in encoder.named_modules() if name.endswith(".layer_norm1")]
    for part in parts:
        part.register_forward_hook(lambda module, given, result: calls.append(module))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        hooks = checkpoint_gradients(encoder)
        encoder(tokens).last_hidden_state.sum().backward()
    assert len(calls) == 2 * len(parts) and embeddings.weight.grad is None
    assert all(layer.grad is not None for name, layer in encoder.named_parameters() if ".layers." in name)
    calls.clear()
    copied = copy.deepcopy(encoder)
    copied(tokens).last_hidden_state.sum().backward()
    assert not set(calls) & set(parts)
    with torch.no_grad():
        calls.clear()
        encoder(tokens)
        assert len(calls) == len(parts)
    for hook in hooks:
        hook.remove()
    assert {name: type(module) for name, module in encoder.named_modules()} == classes


def test_a_network_that_did_not_fit_is_whole_again():
    """Its layers are moved one by one: those that were there already leave, and memory can be asked for again."""
    class Layers(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight, self.went = torch.nn.Parameter(torch.ones(1)), []

        def to(self, device):
            self.went.append(str(device))
            if device == "cuda":
                raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    layers = Layers()
    with pytest.raises(torch.cuda.OutOfMemoryError), memory.on_device(layers, "cuda"):
        pytest.fail("it is not there")
    assert layers.went == ["cuda", "cpu"]
