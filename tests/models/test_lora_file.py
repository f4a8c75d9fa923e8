import json
import re

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from dreambooth_ext.errors import BadNumbers, MissingTensors, UnsupportedFamily
from dreambooth_ext.models.checkpoint_file import open_checkpoint
from dreambooth_ext.models.family import SDXL
from dreambooth_ext.models.ldm_keys import canonical
from dreambooth_ext.models.load import load_checkpoint
from dreambooth_ext.models.lora_file import Base, extract_lora, low_rank, merge_lora, publish_lora
from dreambooth_ext.models.networks import tensors_of

# What the WebUI's Lora tab understands, by the first part of the name; a part of extensions-builtin/Lora/networks.py's table.
UNET_SD = re.compile(r"lora_unet_((down|up)_blocks_\d+|mid_block)_((attentions|resnets)_\d+_\w+|(down|up)samplers_0_conv)$")
UNET_XL = re.compile(r"lora_unet_((in|out)put_blocks_\d+_\d+|middle_block_\d+)_\w+$")
TEXT = re.compile(r"_text_model_encoder_layers_\d+_(self_attn_(q|k|v|out)_proj|mlp_fc[12])$")


def run_file(path, base, rank=2, *, parts=("unet", "text_encoder", "text_encoder_2"), alpha=3.0):
    """A file as training writes it: random adapters on every layer of these parts."""
    generator = torch.Generator().manual_seed(5)
    tensors = {}
    with open_checkpoint(base) as file:
        for (part, module), layer in Base(file).layers.items():
            if part not in parts:
                continue
            shape = layer.weight.shape
            down = (rank, *shape[1:])
            up = (shape[0], rank, 1, 1) if len(shape) == 4 else (shape[0], rank)
            tensors[f"{part}.{module}.lora_down.weight"] = torch.randn(down, generator=generator) * 0.05
            tensors[f"{part}.{module}.lora_up.weight"] = torch.randn(up, generator=generator) * 0.05
            tensors[f"{part}.{module}.alpha"] = torch.tensor(alpha)
    save_file(tensors, path, metadata={"format": "pt"})
    return path


@pytest.fixture
def trained(tmp_path, specimens, family):
    return run_file(tmp_path / "lora.safetensors", specimens(family.key))


def test_a_runs_lora_gets_the_names_of_the_lora_tab(tmp_path, specimens, family, trained):
    path = publish_lora(trained, specimens(family.key), tmp_path / "Lora", "dog", metadata={"steps": 7, "title": "dog"})
    assert path == tmp_path / "Lora" / "dog.safetensors"
    with safe_open(path, "pt") as file:
        header, names = file.metadata(), list(file.keys())
    ours, theirs = load_file(trained), load_file(path)
    assert len(names) == len(ours) and all(tensor.dtype == torch.float32 for tensor in theirs.values())
    heads = ("lora_te1", "lora_te2") if family is SDXL else ("lora_te",)
    for stem in {name.partition(".")[0] for name in names}:
        assert {f"{stem}.lora_up.weight", f"{stem}.lora_down.weight", f"{stem}.alpha"} <= set(names)
        unet = UNET_XL if family is SDXL else UNET_SD
        text = stem.startswith(heads) and TEXT.fullmatch(stem.removeprefix(next(head for head in heads if stem.startswith(head))))
        assert unet.fullmatch(stem) or text, stem
    for value in ours.values():
        assert value.isfinite().all()
    assert header["ss_network_dim"] == "2" and header["ss_network_alpha"] == "3.0"
    assert header["ss_base_model_version"] == {"sd1": "sd_v1", "sd2": "sd_v2", "sdxl": "sdxl_base_v1-0"}[family.key]
    assert json.loads(header["dreambooth.steps"]) == 7


def test_merging_a_lora_adds_it_to_the_weights(tmp_path, specimens, family, trained):
    """W + weight * alpha / rank * up @ down, in diffusers' modules; everything else stays bit for bit."""
    base = specimens(family.key)
    lora = publish_lora(trained, base, tmp_path, "dog")
    merged, = merge_lora(base, lora, tmp_path, "merged", 0.5)
    before, after, adapters = load_checkpoint(base), load_checkpoint(merged), load_file(trained)
    touched = 0
    for part, module in before.parts.items():
        new = tensors_of(after.parts[part])
        for name, tensor in tensors_of(module).items():
            stem = f"{part}.{canonical(name).removesuffix('.weight')}"
            if f"{stem}.alpha" in adapters:
                up, down = adapters[f"{stem}.lora_up.weight"].flatten(1), adapters[f"{stem}.lora_down.weight"].flatten(1)
                tensor = tensor + 0.5 * 3.0 / 2 * (up @ down).reshape(tensor.shape)
                touched += 1
                assert torch.allclose(new[name], tensor, atol=1e-6), name
            else:
                assert torch.equal(new[name], tensor), name
    assert touched == len(adapters) // 3


def test_extracting_what_was_merged_gives_it_back(tmp_path, tiny_base):
    base = tiny_base
    lora = publish_lora(run_file(tmp_path / "lora.safetensors", base), base, tmp_path, "dog")
    tuned, = merge_lora(base, lora, tmp_path, "tuned")
    result = extract_lora(base, tuned, tmp_path / "again.safetensors", 2, conv_rank=2)
    assert result.layers == len(load_file(lora)) // 3
    assert result.beyond == 0 and result.error < 1e-4 * result.difference
    again, = merge_lora(base, result.path, tmp_path, "again-tuned")
    one, two = load_file(tuned), load_file(again)
    assert max((one[name].float() - two[name].float()).abs().max() for name in one) < 1e-5


@pytest.mark.parametrize("shape", [(24, 40), (40, 24), (24, 8, 3, 3), (16, 16, 1, 1), (8, 8)])
@pytest.mark.parametrize("rank", [1, 4, 8])
def test_truncation_is_as_good_as_the_bound_says(shape, rank):
    delta = torch.randn(shape, generator=torch.Generator().manual_seed(rank))
    low, left = low_rank(delta, rank)
    values = torch.linalg.svdvals(delta.flatten(1).double())
    least = values[rank:].square().sum().sqrt()
    error = (delta - low.delta(shape)).double().norm()
    assert error <= least * (1 + 1e-5) + 1e-5
    assert abs(left**0.5 - least) < 1e-5
    assert low.up.ndim == low.down.ndim == delta.ndim and low.rank == rank == low.alpha


def test_truncation_of_less_than_the_rank_stays_finite_in_half_precision():
    delta = torch.outer(torch.arange(1, 31.0), torch.linspace(-1, 1, 50)) * 1e-4
    low, left = low_rank(delta, 16)
    assert low.up.half().isfinite().all() and low.down.half().isfinite().all()
    assert torch.allclose(low.delta(delta.shape), delta, atol=1e-9) and left < 1e-12


def test_a_full_rank_difference_loses_just_what_it_must(tmp_path, tiny_base):
    tensors = load_file(tiny_base)
    generator = torch.Generator().manual_seed(0)
    for name, tensor in tensors.items():
        if ".attn" in name and tensor.ndim == 2 and name.startswith("model.diffusion_model."):
            tensor += torch.randn(tensor.shape, generator=generator) * 0.01
    tensors["model.diffusion_model.out.0.bias"] += 1
    tuned = tmp_path / "tuned.safetensors"
    save_file(tensors, tuned)
    tuned.with_suffix(".yaml").write_bytes(tiny_base.with_suffix(".yaml").read_bytes())
    result = extract_lora(tiny_base, tuned, tmp_path / "lora.safetensors", 4)
    assert 0 < result.bound * 0.999999 <= result.error <= result.bound * 1.0001 < result.difference
    assert abs(result.beyond - 32**0.5) < 1e-3
    assert str(result).startswith("128 layers; 89.9% of their difference is lost")


def test_a_lora_of_another_base_is_refused(tmp_path, specimens):
    trained = run_file(tmp_path / "lora.safetensors", specimens("sd1"), parts=("unet",))
    with pytest.raises(MissingTensors, match=r"unet\."):
        publish_lora(trained, specimens("sdxl"), tmp_path, "dog")
    lora = publish_lora(trained, specimens("sd1"), tmp_path, "dog")
    with pytest.raises(MissingTensors):
        merge_lora(specimens("sdxl"), lora, tmp_path, "merged")
    with pytest.raises(MissingTensors, match="different kinds"):
        extract_lora(specimens("sd1"), specimens("sd2"), tmp_path / "x.safetensors", 4)
    assert not list(tmp_path.glob("merged*")) and not (tmp_path / "x.safetensors").exists()


OUTSIDE = {"sd1": ("time_embedding_linear_1", "time_embed_2", "conv_in", "out_2", "down_blocks_0_resnets_0_conv1"),
           "sdxl": ("time_embed_0", "label_emb_0_2", "input_blocks_0_0", "conv_out", "input_blocks_1_0_in_layers_2")}


@pytest.mark.parametrize("key", OUTSIDE)
def test_what_others_adapt_beside_transformers_is_merged_too(tmp_path, specimens, key):
    """LyCORIS adapts what embeds the timestep, and the first and last convolutions, under either kind of name."""
    base = specimens(key)
    ldm = {"time_embedding_linear_1": "time_embed.0", "conv_in": "input_blocks.0.0", "conv_out": "out.2",
           "down_blocks_0_resnets_0_conv1": "input_blocks.1.0.in_layers.2", "time_embed_2": "time_embed.2", "out_2": "out.2",
           "time_embed_0": "time_embed.0", "label_emb_0_2": "label_emb.0.2", "input_blocks_0_0": "input_blocks.0.0",
           "input_blocks_1_0_in_layers_2": "input_blocks.1.0.in_layers.2"}
    tensors, whole = {}, load_file(base)
    for name in OUTSIDE[key]:
        shape = whole[f"model.diffusion_model.{ldm[name]}.weight"].shape
        tensors[f"lora_unet_{name}.lora_down.weight"] = torch.full((1, *shape[1:]), 0.5)
        tensors[f"lora_unet_{name}.lora_up.weight"] = torch.ones(shape[0], 1, *(1 for _ in shape[2:]))
    save_file(tensors, tmp_path / "lycoris.safetensors")
    merged, = merge_lora(base, tmp_path / "lycoris.safetensors", tmp_path, "merged")
    after = load_file(merged)
    adapted = {f"model.diffusion_model.{ldm[name]}.weight" for name in OUTSIDE[key]}
    assert {name for name in whole if not torch.equal(whole[name], after[name])} == adapted
    assert all(torch.equal(after[name], (whole[name].float() + 0.5).to(whole[name].dtype)) for name in adapted)


def test_a_layer_that_the_base_lacks_is_told_as_what_it_is(tmp_path, tiny_base, whole_lora):
    tensors = load_file(whole_lora)
    tensors |= {f"lora_unet_down_blocks_7_extra.lora_{end}.weight": torch.ones(1, 1) for end in ("down", "up")}
    save_file(tensors, tmp_path / "odd.safetensors")
    with pytest.raises(MissingTensors, match="no layer lora_unet_down_blocks_7_extra, of the ") as caught:
        merge_lora(tiny_base, tmp_path / "odd.safetensors", tmp_path, "merged")
    assert "family" not in str(caught.value)


@pytest.fixture(scope="module")
def whole_lora(tmp_path_factory, tiny_base):
    folder = tmp_path_factory.mktemp("whole")
    trained = run_file(folder / "lora.safetensors", tiny_base, parts=("text_encoder",))
    return publish_lora(trained, tiny_base, folder, "dog")


@pytest.mark.parametrize("change, error, text", [
    (lambda tensors, stem: tensors.pop(f"{stem}.lora_up.weight"), MissingTensors, "incomplete"),
    (lambda tensors, stem: tensors.update({f"{stem}.lora_up.weight": torch.zeros(3, 2)}), MissingTensors, "another size"),
    (lambda tensors, stem: tensors.update({f"{stem}.lora_up.weight": torch.zeros(0)}), MissingTensors, "another size"),
    (lambda tensors, stem: tensors[f"{stem}.lora_down.weight"].fill_(float("nan")), BadNumbers, "NaN"),
    (lambda tensors, stem: tensors.update({f"{stem}.dora_scale": torch.zeros(1)}), UnsupportedFamily, r"no plain LoRA \(a DoRA"),
    (lambda tensors, stem: tensors.update({f"{stem}.lora_mid.weight": torch.zeros(1)}), UnsupportedFamily, "third factor"),
    (lambda tensors, stem: tensors.update({"unet.to_q.lora_A.weight": torch.zeros(1)}), UnsupportedFamily, "names of PEFT"),
    (lambda tensors, stem: tensors.update({f"{stem}.lokr_w1": torch.zeros(1)}), UnsupportedFamily, "a LoKr"),
    (lambda tensors, stem: tensors.update({"model.diffusion_model.input_blocks.0.0.weight": torch.zeros(1)}), UnsupportedFamily,
     "a whole checkpoint"),
    (lambda tensors, stem: tensors.update({f"{stem}.diff": torch.zeros(1)}), UnsupportedFamily, "LyCORIS with whole differences"),
    (lambda tensors, stem: tensors.update({"other": torch.zeros(1)}), UnsupportedFamily, r"no plain LoRA \(other"),
    (lambda tensors, stem: tensors.update({f"{stem}.alpha": torch.zeros(2)}), MissingTensors, "no number"),
])
def test_a_broken_lora_is_refused(tmp_path, tiny_base, whole_lora, change, error, text):
    tensors = load_file(whole_lora)
    change(tensors, "lora_te_text_model_encoder_layers_3_mlp_fc1")
    save_file(tensors, tmp_path / "broken.safetensors")
    with pytest.raises(error, match=text):
        merge_lora(tiny_base, tmp_path / "broken.safetensors", tmp_path, "merged")


def test_half_precision_on_request(tmp_path, tiny_base):
    trained = run_file(tmp_path / "lora.safetensors", tiny_base, parts=("text_encoder",))
    path = publish_lora(trained, tiny_base, tmp_path, "half", dtype="fp16")
    assert {tensor.dtype for tensor in load_file(path).values()} == {torch.float16}
