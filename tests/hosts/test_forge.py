"""The adapter in the double as Forge: what is selected is loaded by the next picture, and lists show no hashes."""

import sys
import threading
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

from dreambooth_ext.errors import HostError
from dreambooth_ext.host import OwnPictures, Txt2Img
from dreambooth_ext.progress import Progress

REQUEST = Txt2Img("dog", (1, 2), steps=2, width=16, height=16)


@pytest.fixture
def webui(tmp_path):
    import double

    with double.running(tmp_path / "webui", {"a-first.ckpt": b"first", "base.ckpt": b"base"}, forge=True) as running:
        yield running


@pytest.fixture
def host(webui):
    from dreambooth_ext.hosts.detect import webui_host

    webui_host.cache_clear()
    yield webui_host()
    webui_host.cache_clear()


@pytest.fixture
def progress():
    heard = []
    progress = Progress(heard.append)
    progress.heard = heard
    return progress


def said(progress):
    return "\n".join(report.text for report in progress.heard if report.phase == "log")


def in_memory(webui):
    return webui.sd_models.model_data.sd_model


def next_picture(webui):
    """What the user's own txt2img renders with: (name, content)."""
    model = webui.sd_models.for_rendering()
    return model.sd_checkpoint_info.name, model.content


def loaded(host):
    return [checkpoint.title for checkpoint in host.checkpoints() if checkpoint.loaded]


def train(host, base, progress, name="rex.ckpt", content=b"trained", *, class_images=True):
    path = host.models_dir / name
    with host.job("run", progress):
        if class_images:
            list(host.txt2img(base, REQUEST, progress))
        with host.free_gpu():
            path.write_bytes(content)
        host.select(path)
    return path


def test_it_is_told_by_what_it_offers_and_nothing_is_loaded_yet(host, webui):
    assert host.name == "Forge" and host.provenance()["host"] == "Forge"
    assert not hasattr(in_memory(webui), "content")
    assert [(c.path.name, c.title, c.loaded) for c in host.checkpoints()] == [
        ("a-first.ckpt", "a-first.ckpt", True), ("base.ckpt", "base.ckpt", False)]


def test_what_the_user_has_set_for_txt2img_is_known(host, webui):
    assert host.own_pictures() == OwnPictures("user.vae.pt", 2)
    webui.opts.data["forge_additional_modules"] = ["/models/VAE/a.safetensors", "/models/text_encoder/b.safetensors"]
    assert host.own_pictures().vae == "a.safetensors, b.safetensors"
    webui.opts.data["forge_additional_modules"] = []
    assert host.own_pictures() == OwnPictures("", 2)


def test_forges_one_field_for_vae_and_text_encoders_is_told_apart(host, webui):
    """Left there from Flux, they would take the place of what was trained; a T5 does not."""
    names = {"some.vae": "decoder.conv_in.weight", "clip_l": "text_model.encoder.layers.0.layer_norm1.weight",
             "t5xxl": "encoder.block.0.layer.0.SelfAttention.q.weight"}
    for name, tensor in names.items():
        save_file({tensor: torch.zeros(2)}, webui.folder / f"{name}.safetensors")
    files = [str(webui.folder / f"{name}.safetensors") for name in names]
    webui.opts.data["forge_additional_modules"] = [*files, str(webui.folder / "t5.gguf")]
    assert host.own_pictures() == OwnPictures("some.vae.safetensors", 2, "clip_l.safetensors")


@pytest.mark.parametrize("class_images", [True, False])
def test_the_published_model_counts_as_loaded_and_renders_the_next_picture(host, webui, base, progress, class_images):
    """Though the base, which rendered the class images, is still in memory: the page's list must not go back to it."""
    train(host, base, progress, class_images=class_images)
    assert loaded(host) == ["rex.ckpt"] and webui.opts.sd_model_checkpoint == "rex.ckpt"
    assert "rex.ckpt is selected." in said(progress) and webui.opts.saved
    assert next_picture(webui) == ("rex.ckpt", b"trained")


@pytest.mark.parametrize("short", [False, True])
def test_titles_are_those_of_its_own_list(host, webui, base, progress, short):
    """With a hash, which is known once a model was loaded, the field of the next page would be empty."""
    webui.opts.data["sd_checkpoint_dropdown_use_short"] = short
    list(host.txt2img(base, REQUEST, progress))
    host.select(base)
    tiles = webui.sd_models.checkpoint_tiles(short)
    assert [checkpoint.title for checkpoint in host.checkpoints()] == tiles
    assert loaded(host) == [webui.opts.sd_model_checkpoint] and webui.opts.sd_model_checkpoint in tiles


def test_two_files_that_differ_by_their_suffix_alone_are_told_apart_in_short_titles_too(host, webui, base):
    webui.opts.data["sd_checkpoint_dropdown_use_short"] = True
    other = base.with_suffix(".safetensors")
    other.write_bytes(b"other")
    for path in (base, other):
        host.select(path)
        assert next_picture(webui)[0] == path.name


def test_weights_stay_on_the_device_between_batches(host, webui, base, progress):
    from backend import memory_management

    with host.job("run", progress):
        for _ in range(3):
            list(host.txt2img(base, REQUEST, progress))
    assert memory_management.moves == ["in"]


def test_a_base_without_vae_renders_with_the_one_that_is_named(host, webui, base, progress):
    list(host.txt2img(base, replace(REQUEST, vae=Path("other.vae.pt")), progress))
    assert webui.processing.calls[-1]["vae"] == "other.vae.pt"
    list(host.txt2img(base, REQUEST, progress))
    assert webui.processing.calls[-1]["vae"] is None


def test_the_users_settings_do_not_act_on_class_images_and_are_in_effect_afterwards(host, webui, base, progress):
    before = dict(webui.opts.data)
    list(host.txt2img(base, REQUEST, progress))
    made_of = webui.processing.calls[-1]
    assert (made_of["checkpoint"], made_of["vae"], made_of["clip_skip"]) == ("base.ckpt", None, 1)
    assert in_memory(webui).weights is None  # not in 4 bits
    assert webui.opts.data == before
    assert next_picture(webui)[0] == "a-first.ckpt"
    assert (in_memory(webui).vae, in_memory(webui).weights) == ("user.vae.pt", "nf4")


def test_a_checkpoint_that_is_chosen_while_class_images_are_rendered_stays_and_draws_none(host, webui, base, progress):
    whole = [image.tobytes() for image in host.txt2img(base, REQUEST, progress)]
    from modules_forge import main_entry

    load, other = host._load_selected, host._title(host._listed(webui.folder / "a-first.ckpt"))
    main_entry.checkpoint_change(host._title(host._listed(base)))
    choose = iter([True])

    def then_chosen(vae):
        load(vae)
        if next(choose, False):
            page = threading.Thread(target=main_entry.checkpoint_change, args=[other])
            page.start()
            page.join()

    host._load_selected = then_chosen
    assert [image.tobytes() for image in host.txt2img(base, REQUEST, progress)] == whole
    assert webui.opts.sd_model_checkpoint == other and Path(host._loaded_file()).name == "a-first.ckpt"


@pytest.mark.parametrize("rendered_before", [True, False])
def test_the_lora_of_the_last_picture_is_taken_out_of_the_model(host, webui, base, progress, rendered_before):
    if rendered_before:
        next_picture(webui)
        webui.extra_networks.loaded[:] = ["the LoRA of the last txt2img"]
    list(host.txt2img(webui.folder / "a-first.ckpt", REQUEST, progress))
    assert webui.processing.calls[-1]["networks"] == () and webui.extra_networks.complaints == []


def test_a_model_that_it_takes_for_another_kind_renders_nothing(host, webui, base, progress):
    asked = replace(REQUEST, prediction_type="v_prediction")
    with pytest.raises(HostError) as refused:
        list(host.txt2img(base, asked, progress))
    assert refused.value.why == "the WebUI takes it for epsilon"
    base.with_suffix(".yaml").write_text("model: its makers' own")
    webui.sd_models.model_data.forge_hash = ""  # as after a restart
    assert len(list(host.txt2img(base, asked, progress))) == 2


def test_a_file_that_it_does_not_recognise_is_told_and_the_users_model_renders_again(host, webui, progress):
    (webui.folder / "bad.ckpt").write_bytes(b"rejected")
    with pytest.raises(HostError, match=r"bad\.ckpt.*Forge does not know it.*\n?.*Keep the class as it is"):
        list(host.txt2img(webui.folder / "bad.ckpt", REQUEST, progress))
    assert next_picture(webui) == ("a-first.ckpt", b"first")


@pytest.mark.parametrize("class_images", [True, False])
def test_publishing_over_the_selected_file_renders_its_new_content(host, webui, base, progress, class_images):
    train(host, base, progress)
    assert next_picture(webui) == ("rex.ckpt", b"trained")
    train(host, base, progress, content=b"trained again", class_images=class_images)
    assert ("written anew" in said(progress)) != class_images  # then the base was in its place anyway
    assert next_picture(webui) == ("rex.ckpt", b"trained again") and loaded(host) == ["rex.ckpt"]


def test_publishing_over_the_file_in_memory_while_another_is_selected_renders_its_new_content(host, webui, base, progress):
    train(host, base, progress)
    assert next_picture(webui) == ("rex.ckpt", b"trained")
    host.select(base)  # and no picture by it
    train(host, base, progress, content=b"trained again", class_images=False)
    assert next_picture(webui) == ("rex.ckpt", b"trained again")


@pytest.mark.parametrize("ram_too", [True, False])
def test_its_model_leaves_the_device_and_comes_back_with_the_next_picture(host, webui, base, progress, ram_too):
    webui.opts.data["dreambooth_free_ram"] = ram_too
    next_picture(webui)
    with host.job("run", progress), host.free_gpu():
        assert getattr(in_memory(webui), "device", "cpu") == "cpu"
        assert hasattr(in_memory(webui), "content") != ram_too
    assert next_picture(webui) == ("a-first.ckpt", b"first") and in_memory(webui).device == "cuda"


def test_a_lora_is_listed_and_the_selected_model_stays(host, webui, progress):
    with host.job("run", progress):
        host.select(host.lora_dir / "rex.safetensors")
    assert "rex.safetensors is in the list of LoRAs." in said(progress) and "selected" not in said(progress)
    assert loaded(host) == ["a-first.ckpt"]


def test_under_frozen_settings_nothing_is_selected_and_it_says_so(host, webui, base, progress):
    webui.shared.cmd_opts.freeze_settings = True
    train(host, base, progress)
    assert "rex.ckpt is to be selected: " in said(progress) and loaded(host) == ["a-first.ckpt"]


def test_no_checkpoint_at_all(tmp_path):
    import double

    from dreambooth_ext.hosts.forge import ForgeHost

    with double.running(tmp_path / "empty", {}, forge=True):
        host = ForgeHost()
        assert host.checkpoints() == []
        with host.job("run", Progress()), host.free_gpu():
            pass


def test_reforge_looks_through_the_scripts_of_each_picture_and_finds_none(tmp_path, progress, monkeypatch):
    import double

    from dreambooth_ext.hosts.forge import ManagedMemoryHost

    with double.running(tmp_path / "webui", {"base.ckpt": b"base"}) as webui:
        process = webui.processing.process_images

        def as_reforge(p):
            assert next((script for script in p.scripts.alwayson_scripts), None) is None
            return process(p)

        monkeypatch.setattr(webui.processing, "process_images", as_reforge)
        assert len(list(ManagedMemoryHost().txt2img(webui.folder / "base.ckpt", REQUEST, progress))) == 2


@pytest.fixture
def reforge(tmp_path, monkeypatch):
    """reForge: a checkpoint gets its text encoder while it is read, and keeps it whatever the setting says later."""
    import double

    with double.running(tmp_path / "webui", {"base.ckpt": b"base", "other.ckpt": b"other"}) as webui:
        options = [SimpleNamespace(label=f"TE: {path.stem}", model_name=path.stem, te_info=SimpleNamespace(filename=str(path)))
                   for path in (webui.folder / "base.ckpt", webui.folder / "other.ckpt")]
        encoders = SimpleNamespace(text_encoder_options=options, current_text_encoder_option=None)
        monkeypatch.setitem(sys.modules, "modules.sd_text_encoder", encoders)
        monkeypatch.setattr(sys.modules["modules"], "sd_text_encoder", encoders, raising=False)
        webui.opts.add_option("sd_text_encoder", SimpleNamespace(default="Automatic", onchange=None))
        plain = webui.sd_models.Model

        def read(info):
            model, label = plain(info), webui.opts.sd_text_encoder
            model.filename = info.filename
            found = next((option for option in options
                          if option.label == label or (label == "Automatic" and option.model_name == info.model_name)), None)
            if found is not None:
                encoders.current_text_encoder_option, model._separate_te_loaded = found, True
                model.content += b" with the text encoder of " + found.model_name.encode()
            return model

        monkeypatch.setattr(webui.sd_models, "Model", read)
        yield webui


def of_class_images(webui):
    return [call["content"] for call in webui.processing.calls]


@pytest.mark.parametrize("setting", ["Automatic", "None", "TE: base", "TE: other", "TE: gone"])
def test_class_images_have_the_bases_own_text_encoder_whatever_reforge_is_set_to(reforge, progress, setting):
    from dreambooth_ext.hosts.forge import ManagedMemoryHost

    reforge.opts.data["sd_text_encoder"] = setting
    of_user = reforge.sd_models.reload_model_weights(forced_reload=True)
    own = {b"base", b"base with the text encoder of base"}
    host = ManagedMemoryHost()
    assert host.own_pictures().text_encoder == (setting if setting.startswith("TE") else "")
    with host.job("run", progress):
        for _ in range(2):
            list(host.txt2img(reforge.folder / "base.ckpt", REQUEST, progress))
    assert len(set(of_class_images(reforge))) == 1
    assert of_class_images(reforge)[0] in {sha256(content).hexdigest() for content in own}
    assert reforge.opts.sd_text_encoder == setting
    after = reforge.sd_models.model_data.sd_model
    assert after.content == of_user.content  # the user's own pictures are as they were
    assert (after is of_user) == (setting != "TE: other")  # what is right already is not read again
