"""What a GPU asks of a run, shown where there is none: torch's meta device stands for it."""

import dataclasses
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch

from dreambooth_ext.models.text_encoder import Conditioning
from dreambooth_ext.progress import Progress
from dreambooth_ext.training import conditioning, loop, memory, optimizer, passes, precision, preview
from dreambooth_ext.training.activations import peak_bytes
from dreambooth_ext.training.conditioning import Prompts, Texts
from dreambooth_ext.training.data import Batch, Pictures
from dreambooth_ext.training.ema import Ema
from dreambooth_ext.training.loop import train
from dreambooth_ext.training.objective import Objective
from dreambooth_ext.training.optimizers.offloaded import LEAVING_BYTES, OffloadedAdamW
from dreambooth_ext.training.optimizers.prodigy import Prodigy

META = torch.device("meta")


def test_free_memory_is_asked_for_by_number(monkeypatch):
    """torch 2.1 raises ValueError for "cuda"."""
    def of_torch_2_1(device=None):
        if not isinstance(device, int):
            raise ValueError(f"Expected a torch.device with a specified index or an integer, but got:{device}")
        return 1000 + device, 9999

    monkeypatch.setattr(torch.cuda, "mem_get_info", of_torch_2_1)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    assert memory.free_bytes("cuda") == 1003
    assert memory.free_bytes("cuda:1") == 1001


def test_the_card_that_is_named_is_the_current_one_while_a_run_lasts(config, monkeypatch):
    """Accelerate, streams and what says "cuda" alone mean the current card."""
    import accelerate

    current, seen = [0], []
    for name, stand_in in {"is_available": lambda: True, "current_device": lambda: current[0],
                           "set_device": lambda device: current.__setitem__(0, getattr(device, "index", device))}.items():
        monkeypatch.setattr(torch.cuda, name, stand_in)
    monkeypatch.setattr(accelerate, "Accelerator", lambda **named: seen.append((current[0], named["cpu"])) or SimpleNamespace(
        device=torch.device("cpu")))
    for device in ("cuda:1", "cuda", "cpu"):
        with precision.accelerator_for(dataclasses.replace(config, device=device), "no"):
            pass
        assert current == [0]
    assert seen == [(1, False), (0, False), (0, True)]


def test_a_run_counts_its_own_memory(tiny_model, tiny_dataset, config, run, monkeypatch):
    """And not that of the pictures and the runs that this process had before."""
    calls = []
    monkeypatch.setattr(torch.cuda, "init", lambda: calls.append("init"))
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: calls.append(device))
    memory.forget_peak(torch.device("cuda:1"))
    memory.forget_peak(torch.device("cpu"))
    assert calls == ["init", torch.device("cuda:1")]
    forgotten = []
    monkeypatch.setattr(loop, "forget_peak", lambda device: forgotten.append(run.metrics()))
    train(dataclasses.replace(config, steps=1), tiny_model, tiny_dataset, run, Progress())
    assert forgotten == [[]]


class Network(torch.nn.Module):
    """Goes where it is told, with one number."""

    def __init__(self, device="cpu"):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.empty(1, device=device))
        self.config = SimpleNamespace(num_hidden_layers=12)

    def _apply(self, change, *more):
        self.weight = torch.nn.Parameter(change(torch.zeros(1)))
        return self

    @property
    def place(self):
        return self.weight.device.type


@pytest.fixture
def networks():
    """A UNet that is trained on the device, a text encoder and a VAE in RAM."""
    unet, texts, vae = Network("meta"), Network(), Network()
    return SimpleNamespace(unet=unet, text_encoders=(texts,), vae=vae, device=META, resolution=64)


@pytest.mark.parametrize("yields", [True, False])
def test_frozen_text_encoders_stand_on_the_device_instead_of_the_unet(yields, networks, monkeypatch):
    seen = []

    def encode(model, prompts, clip_skip, size):
        seen.append((model.unet.place, model.text_encoders[0].place))
        return Conditioning(torch.zeros(1, 77, 4))

    monkeypatch.setattr(conditioning, "encode_prompts", encode)
    Prompts(networks, {}, 1, META).freeze(["rxz dog", ""], [(64, 64)], yields)
    assert seen == [("cpu" if yields else "meta", "meta")] * 2
    assert (networks.unet.place, networks.text_encoders[0].place) == ("meta", "cpu")


def test_nothing_is_beside_the_unet_while_a_preview_is_made(networks, config, monkeypatch):
    def all_places(name, result):
        def call(*arguments, **named):
            seen.append((name, networks.unet.place, networks.text_encoders[0].place, networks.vae.place))
            return result
        return call

    seen = []
    for name, result in (("encode_request", None), ("sample_latents", 1), ("decode_latents", 2), ("to_images", ["picture"])):
        monkeypatch.setattr(preview, name, all_places(name, result))
    config = dataclasses.replace(config, preview_prompts=("rxz dog",))
    assert preview.render_previews(networks, config, unet_yields=True) == ["picture"]
    assert seen == [("encode_request", "cpu", "meta", "cpu"), ("sample_latents", "meta", "cpu", "cpu"),
                    ("decode_latents", "cpu", "cpu", "meta"), ("to_images", "cpu", "cpu", "meta")]
    assert networks.unet.place == "meta"


def test_a_text_encoder_that_is_there_already_moves_nobody(networks, monkeypatch):
    networks.text_encoders = (Network("meta"),)
    seen = []

    def encode(model, *more):
        seen.append(model.unet.place)
        return Conditioning(torch.zeros(1, 77, 4))

    monkeypatch.setattr(conditioning, "encode_prompts", encode)
    Prompts(networks, {}, 1, META).freeze(["rxz dog"], [(64, 64)], True)
    assert seen == ["meta"] and networks.text_encoders[0].place == "meta"


def pictures(prompt):
    return Pictures(torch.randn(1, 4, 8, 8), torch.randn(1, 4, 8, 8), torch.tensor([5]), (prompt,))


def test_what_travels_to_the_device_is_what_was_pinned_for_it(monkeypatch):
    """Pictures joined in RAM would lie in ordinary memory, and each step would wait for the device to have read it."""
    own, left = torch.Tensor.to, []

    def to(tensor, *arguments, **named):
        moved = own(tensor, *arguments, **named)
        if moved.is_meta and not tensor.is_meta:
            left.append((tensor.data_ptr(), named.get("non_blocking")))
        return moved

    model = SimpleNamespace(alphas_cumprod=lambda: torch.ones(1000), prediction_type="epsilon")
    prompts = SimpleNamespace(texts=lambda prompts, size: Texts((torch.empty(len(prompts), 77, device="meta"),)))
    objective = Objective(SimpleNamespace(device=META, model=model, prompts=prompts))
    batch = Batch(pictures("rxz dog"), pictures("dog"), 1)
    monkeypatch.setattr(torch.Tensor, "to", to)
    inputs = objective.inputs(batch)
    pinned = {tensor.data_ptr() for each in (batch.instance, batch.prior) for tensor in (each.latents, each.noise, each.timesteps)}
    assert {pointer for pointer, _ in left} == pinned and all(non_blocking for _, non_blocking in left)
    (part,) = inputs.parts
    assert part.pictures.latents.shape == (2, 4, 8, 8) and part.pictures.prompts == ("rxz dog", "dog")
    assert all(tensor.is_meta for tensor in inputs.tensors())


def test_prodigys_estimate_is_loaded_to_where_its_weights_are():
    """A snapshot is read into RAM."""
    kept = Prodigy([{"params": [torch.nn.Parameter(torch.ones(3))], "lr": 1.0}], 1.0, (0.9, 0.99), 1e-8, 0.0).state_dict()
    there = Prodigy([{"params": [torch.nn.Parameter(torch.ones(3, device="meta"))], "lr": 1.0}], 1.0, (0.9, 0.99), 1e-8, 0.0)
    there.load_state_dict(kept)
    assert there.param_groups[0]["distance"].is_meta and there.param_groups[0]["numerator"].is_meta


class Elsewhere(torch.nn.Parameter):
    """Says that it is on a GPU."""

    is_cuda = True


def test_weights_that_are_updated_from_afar_are_those_updated_in_place(monkeypatch):
    """The way through pinned memory, streams and a thread, with the streams left out."""
    stream = SimpleNamespace(device=torch.device("cpu"), wait_stream=lambda other: None)
    event = SimpleNamespace(record=lambda stream: None, synchronize=lambda: None)
    for name, stand_in in {"Stream": lambda device: stream, "current_stream": lambda device: stream, "Event": lambda: event,
                           "stream": lambda each: nullcontext(), "device": lambda each: nullcontext()}.items():
        monkeypatch.setattr(torch.cuda, name, stand_in)
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *shape, pin_memory=False, **named: empty(*shape, **named))
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda tensor, stream: None)
    ends = []
    for kind in (torch.nn.Parameter, Elsewhere):
        draws = torch.Generator().manual_seed(0)
        weights = [kind(torch.randn(shape, generator=draws).bfloat16()) for shape in ((40, 30), (7,), (4, 3, 3, 3))]
        offloaded = OffloadedAdamW([{"params": weights, "lr": 0.01}], 0.01, (0.9, 0.99), 1e-8, 0.02)
        for _ in range(5):
            for weight in weights:
                weight.grad = torch.randn(weight.shape, generator=draws).bfloat16()
            offloaded.step()
            offloaded.finish()
        ends.append([weight.detach().clone() for weight in weights])
    assert all(torch.equal(here, there) for here, there in zip(*ends, strict=True))


def test_few_gradients_wait_on_the_device_for_their_way_to_ram():
    class Event:
        waited = False

        def synchronize(self):
            self.waited = True

    offloaded = OffloadedAdamW([{"params": [torch.nn.Parameter(torch.ones(3))], "lr": 1.0}], 1.0, (0.9, 0.99), 1e-8, 0.0)
    events = [Event() for _ in range(8)]
    for event in events:
        offloaded._leaving.append((event, LEAVING_BYTES // 4))
        offloaded._hold_up()
        assert sum(LEAVING_BYTES // 4 for each in events[: events.index(event) + 1] if not each.waited) <= LEAVING_BYTES
    assert [event.waited for event in events] == [True] * 4 + [False] * 4
    offloaded.finish()
    assert not offloaded._leaving


def test_averages_of_narrower_weights_widen_one_at_a_time():
    weights = [torch.nn.Parameter(torch.empty(1000, dtype=torch.bfloat16, device="meta")) for _ in range(8)]
    assert peak_bytes(Ema(weights, 0.9).update) <= 4 * 1000


def test_adapters_lie_as_the_networks_do(tiny_model, tiny_dataset, config, run, monkeypatch):
    """On a GPU gradients take the layout of what they are gradients of, and torch 2.1's fused AdamW refuses any other."""
    seen, make = [], passes.Pass.__init__

    def look(self, session, objective):
        seen.extend(weight for weight in session.trained_parameters() if weight.dim() == 4)
        make(self, session, objective)

    monkeypatch.setattr(passes.Pass, "__init__", look)
    config = dataclasses.replace(config, steps=1, memory_profile="fast", lora_rank=2, lora_conv_rank=2)
    train(config, tiny_model, tiny_dataset, run, Progress())
    assert any(weight.shape[2:] == (1, 1) for weight in seen)
    assert all(weight.stride() == torch.empty(weight.shape, memory_format=torch.channels_last).stride() for weight in seen)


def test_moments_that_were_joined_without_a_layout_still_belong_to_their_weights():
    """As the fused AdamW sees them, for which only the order of memory counts."""
    def stepped(**arguments):
        draws = torch.Generator().manual_seed(0)
        weight = torch.nn.Parameter(torch.randn(8, 4, 3, 3, generator=draws).to(memory_format=torch.channels_last))
        adamw = torch.optim.AdamW([weight], lr=0.1, **arguments)
        for step in range(2):
            weight.grad = torch.randn(8, 4, 3, 3, generator=draws).to(memory_format=torch.channels_last)
            adamw.step()
            if step == 0:
                kept = adamw.state_dict()
                for name in ("exp_avg", "exp_avg_sq"):
                    kept["state"][0][name] = kept["state"][0][name].clone(memory_format=torch.contiguous_format)
                adamw.load_state_dict(kept)
                optimizer.lay_out(adamw)
        assert all(adamw.state[weight][name].stride() == weight.stride() for name in ("exp_avg", "exp_avg_sq"))
        return weight.detach()

    fastest = {"fused": True} if optimizer.is_fused_on("cpu") else {"foreach": True}
    assert torch.allclose(stepped(**fastest), stepped(foreach=False), atol=1e-5)
