import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dreambooth_ext import other_trainers
from dreambooth_ext.config import TrainConfig
from dreambooth_ext.errors import ConfigError


def test_settings_of_sd_dreambooth_extension(tmp_path):
    path = tmp_path / "db_config.json"
    path.write_text(json.dumps({
        "model_name": "rex", "learning_rate": 2e-6, "optimizer": "8bit AdamW", "mixed_precision": "bf16", "use_lora": True,
        "lr_scheduler": "dadapt_with_warmup",
        "concepts_list": [{"instance_data_dir": "pics", "instance_prompt": "photo of rxz dog", "class_prompt": "dog",
                           "num_class_images_per": 5}],
    }))
    imported = other_trainers.import_settings(path)
    config = TrainConfig.from_dict(imported.settings)
    assert (config.output_name, config.optimizer, config.mixed_precision) == ("rex", "adamw_8bit", "bf16")
    assert config.concepts[0].instance_prompt == "photo of rxz dog"
    for name in ("use_lora", "lr_scheduler", "num_class_images_per"):
        assert any(name in line for line in imported.not_taken)


def test_settings_of_sd_scripts(tmp_path):
    path = tmp_path / "args.json"
    path.write_text(json.dumps({"pretrained_model_name_or_path": "sd15.safetensors", "max_train_steps": 800, "network_dim": 16,
                                "resolution": "512,512", "xformers": True, "vae": None, "reg_data_dir": None, "seed": None}))
    imported = other_trainers.import_settings(path)
    assert imported.settings == {"base": "sd15.safetensors", "steps": 800, "lora_rank": 16, "resolution": 512}
    assert imported.not_taken == ("xformers: it has no counterpart here",)


def test_what_scripts_of_loras_are_given_counts(tmp_path):
    """unet_lr goes before learning_rate, wherever it stands; use_8bit_adam is an optimizer; epochs are told."""
    args = {"pretrained_model_name_or_path": "sd15.safetensors", "unet_lr": 2e-4, "learning_rate": 1e-4, "use_8bit_adam": True,
            "network_train_unet_only": True, "max_train_epochs": 10}
    imported = other_trainers.import_text(json.dumps(args), "args.json")
    assert imported.settings == {"base": "sd15.safetensors", "learning_rate": 2e-4, "text_encoder_learning_rate": 1e-4,
                                 "optimizer": "adamw_8bit", "train_text_encoder": False, "memory_profile": "none"}
    assert imported.not_taken == ("max_train_epochs: epochs are not counted here; give steps",)
    of_encoder = other_trainers.import_text(json.dumps({**args, "text_encoder_lr": 5e-5}), "args.json")
    assert of_encoder.settings["text_encoder_learning_rate"] == 5e-5


def test_what_stands_here_under_another_name_is_taken_from_sd_scripts():
    args = {"pretrained_model_name_or_path": "sd15.safetensors", "optimizer_type": "adamw8bit", "text_encoder_lr": [5e-5, 1e-5],
            "lr_scheduler_num_cycles": 2, "loss_type": "huber", "huber_c": 0.2, "enable_bucket": True, "v_parameterization": True,
            "save_precision": "float", "network_module": "networks.lora"}
    imported = other_trainers.import_text(json.dumps(args), "args.json")
    assert imported.settings == {
        "base": "sd15.safetensors", "optimizer": "adamw_8bit", "text_encoder_learning_rate": 5e-5, "lr_num_cycles": 2,
        "loss_type": "huber", "huber_c": 0.2, "crop": "buckets", "prediction_type": "v_prediction", "publish_dtype": "fp32",
        "lora_rank": 4, "memory_profile": "none"}
    TrainConfig.from_dict({**imported.settings, "output_name": "r"})
    assert imported.not_taken == ("network_module: it has no counterpart here",)
    args = {**args, "optimizer_type": None, "optimizer": "Lion", "max_resolution": "768,768"}  # the names in kohya_ss' page
    of_the_page = other_trainers.import_text(json.dumps(args), "x")
    assert (of_the_page.settings["optimizer"], of_the_page.settings["resolution"]) == ("lion", 768)


def args_of(tmp_path, **more):
    path = tmp_path / "args.json"
    path.write_text(json.dumps({"pretrained_model_name_or_path": "b", "train_data_dir": str(tmp_path / "img"), **more}))
    return path


def test_the_folders_that_sd_scripts_wants_within_a_folder_are_found(tmp_path):
    for name in ("img/10_rxz dog", "img/.thumbnails", "reg/1_dog"):
        (tmp_path / name).mkdir(parents=True)
    alone = other_trainers.import_settings(args_of(tmp_path)).settings
    assert alone == {"base": "b", "instance_dir": str(tmp_path / "img" / "10_rxz dog"), "token": "rxz", "class_noun": "dog",
                     "with_prior_preservation": False}  # without reg_data_dir it has none
    for name in ("1.png", "2.JPG", "2.txt"):
        (tmp_path / "reg" / "1_dog" / name).touch()
    settings = other_trainers.import_settings(args_of(tmp_path, reg_data_dir=str(tmp_path / "reg"))).settings
    assert settings == {**alone, "num_class_images": 2, "with_prior_preservation": True, "foreign_class_images": "use",
                        "class_dir": str(tmp_path / "reg" / "1_dog")}
    TrainConfig.from_dict({**settings, "output_name": "r"})

    (tmp_path / "reg" / "1_dog").rename(tmp_path / "reg" / "1_animal")
    settings = other_trainers.import_settings(args_of(tmp_path, reg_data_dir=str(tmp_path / "reg"))).settings
    assert (settings["class_dir"], settings["class_prompt"]) == (str(tmp_path / "reg" / "1_animal"), "animal")
    (tmp_path / "reg" / "1_animal").rename(tmp_path / "reg" / "1_dog")

    (tmp_path / "img" / "3_sks big cat").mkdir()
    settings = other_trainers.import_settings(args_of(tmp_path, reg_data_dir=str(tmp_path / "reg"))).settings
    concepts = TrainConfig.from_dict({**settings, "output_name": "r"}).concepts
    assert [each.class_dir for each in concepts] == [str(tmp_path / "reg" / "1_dog"), ""]  # dogs are no cats
    (tmp_path / "reg" / "1_big cat").mkdir()
    settings = other_trainers.import_settings(args_of(tmp_path, reg_data_dir=str(tmp_path / "reg"))).settings
    concepts = TrainConfig.from_dict({**settings, "output_name": "r"}).concepts
    assert [(each.token, each.class_noun, each.repeats, each.class_dir) for each in concepts] == [
        ("rxz", "dog", 10, str(tmp_path / "reg" / "1_dog")), ("sks", "big cat", 3, str(tmp_path / "reg" / "1_big cat"))]


def test_no_folder_is_looked_into_for_who_imports_through_the_page(tmp_path):
    (tmp_path / "img" / "10_rxz dog").mkdir(parents=True)
    text = args_of(tmp_path).read_text()
    assert other_trainers.import_text(text, "args.json").settings == {"base": "b", "instance_dir": str(tmp_path / "img")}


def test_a_command_line_is_no_file_of_settings_and_what_makes_one_is_told(tmp_path):
    (tmp_path / "train.sh").write_text("accelerate launch train_network.py --network_dim=8")
    with pytest.raises(ConfigError, match="--output_config"):
        other_trainers.import_settings(tmp_path / "train.sh")


JSON = st.recursive(st.none() | st.booleans() | st.floats() | st.text(max_size=9), lambda inner: st.lists(inner, max_size=3)
                    | st.dictionaries(st.sampled_from(["model_name", "concepts_list", "seed", "optimizer", "x"]), inner))


@given(JSON)
def test_any_file_is_taken_or_refused(tmp_path_factory, value):
    path = tmp_path_factory.mktemp("x") / "settings.json"
    path.write_text(json.dumps(value))
    try:
        other_trainers.import_settings(path)
    except ConfigError as error:
        assert error.faults
