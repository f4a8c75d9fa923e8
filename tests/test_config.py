"""Settings: written once, judged at once, read back as written."""

import dataclasses
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dreambooth_ext.config import VERSION, Concept, TrainConfig
from dreambooth_ext.errors import ConfigError
from dreambooth_ext.options import options_of

CONCEPT = Concept(instance_dir="pictures", token="rxz", class_noun="dog")
CONFIG = TrainConfig(base="base.safetensors", output_name="rxz_dog", concepts=(CONCEPT,))
OPTIONS = [(config_class, option) for config_class in (TrainConfig, Concept) for option in options_of(config_class)]
IDS = [option.name for _, option in OPTIONS]


def test_a_plain_config_has_no_faults():
    assert CONFIG.validate() is CONFIG


def test_all_faults_come_at_once():
    config = dataclasses.replace(CONFIG, base="", output_name="../x", resolution=100, lr_warmup_steps=9, steps=5)
    with pytest.raises(ConfigError) as caught:
        config.validate()
    assert len(caught.value.faults) == 4
    for flag in ("--base", "--output-name", "--resolution", "--lr-warmup-steps"):
        assert flag in str(caught.value)


@pytest.mark.parametrize("steps", [0, -1, True, "many", 1.5])
def test_steps_that_are_no_count_are_refused(steps):
    assert any("--steps" in fault for fault in dataclasses.replace(CONFIG, steps=steps).faults())


@pytest.mark.parametrize("token", ["", "  "])
def test_an_empty_token_is_refused(token):
    config = dataclasses.replace(CONFIG, concepts=(dataclasses.replace(CONCEPT, token=token),))
    assert any("--token" in fault for fault in config.faults())


def test_a_warm_up_that_the_schedule_does_not_have_is_refused():
    warmed = dataclasses.replace(CONFIG, steps=100, lr_warmup_steps=10)
    assert ["--lr-warmup-steps" in fault for fault in warmed.faults()] == [True]
    assert dataclasses.replace(warmed, lr_scheduler="constant_with_warmup").faults() == []


@pytest.mark.parametrize(("changes", "flag"), [
    ({"crop": "buckets"}, "--draw-order"), ({"random_flip": True}, "--random-flip"),
    ({"caption_dropout": 0.1}, "--caption-dropout"),
], ids=str)
def test_what_the_draws_of_diffusers_would_pass_over_is_refused(changes, flag):
    config = dataclasses.replace(CONFIG, **changes)
    assert config.faults() == []
    assert [fault.split(":")[0] for fault in dataclasses.replace(config, draw_order="diffusers").faults()] == [flag]


BAD_NAMES = ["", "../x", "a/b", "a\\b", "con", "CON.txt", "a.", " a", "a[b]", "x" * 200, "ä", "a\nb"]


@pytest.mark.parametrize("name", BAD_NAMES)
def test_a_name_that_escapes_or_cannot_be_a_file_is_refused(name):
    assert any("--output-name" in fault for fault in dataclasses.replace(CONFIG, output_name=name).faults())


@pytest.mark.parametrize(("config_class", "option"), OPTIONS, ids=IDS)
def test_each_option_has_what_every_front_end_needs(config_class, option):
    assert option.label and option.help.endswith((".", "?", "none"))
    assert option.group in ("model", "pictures", "class", "train", "watch")
    assert option.kind in (int, float, bool, str, tuple)
    assert option.fault(option.default) is None, "its default must be valid"


@pytest.mark.parametrize(("config_class", "option"), OPTIONS, ids=IDS)
def test_each_bound_is_held(config_class, option):
    if option.minimum is not None:
        assert option.fault(option.kind(option.minimum)) is None
        assert option.fault(option.kind(option.minimum) - 1)
    if option.maximum is not None:
        assert option.fault(option.kind(option.maximum)) is None
        assert option.fault(option.kind(option.maximum) + 1)
    if option.choices:
        assert option.fault("no such choice")
    if option.kind is float:
        assert option.fault(float("nan")) and option.fault(float("inf"))


def values_of(option):
    if option.kind is bool:
        return st.booleans()
    if option.choices:
        return st.sampled_from(option.choices)
    if option.kind is int:
        return st.integers(int(option.minimum), int(option.maximum if option.maximum is not None else 10**6))
    if option.kind is float:
        return st.floats(option.minimum, option.maximum)
    if option.kind is tuple:
        return st.lists(st.text(max_size=20), max_size=3).map(tuple)
    return st.text(max_size=20)


CONCEPTS = st.builds(Concept, **{option.name: values_of(option) for option in options_of(Concept)})
CONFIGS = st.builds(
    TrainConfig,
    concepts=st.lists(CONCEPTS, min_size=1, max_size=3).map(tuple),
    **{o.name: values_of(o) for o in options_of(TrainConfig)},
)


@given(CONFIGS)
def test_settings_survive_json(config):
    assert TrainConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@given(CONFIGS)
def test_judging_never_crashes(config):
    assert all(isinstance(fault, str) and fault for fault in config.faults())


@given(st.dictionaries(st.sampled_from([*IDS, "concepts", "version", "nonsense"]),
                       st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.lists(st.integers())))
def test_any_object_is_a_config_or_a_config_error(values):
    try:
        TrainConfig.from_dict(values).validate()
    except ConfigError as error:
        assert error.faults


def test_unknown_names_are_named():
    with pytest.raises(ConfigError, match="learning_rat"):
        TrainConfig.from_dict({"learning_rat": 1e-6})


def test_settings_of_a_newer_version_are_refused():
    with pytest.raises(ConfigError, match="Update"):
        TrainConfig.from_dict({"version": VERSION + 1})


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '"x"', "[" * 100_000])
def test_a_settings_file_that_is_none(tmp_path, text):
    path = tmp_path / "run.json"
    path.write_text(text)
    with pytest.raises(ConfigError):
        TrainConfig.read(path)


def test_prompts_come_from_token_and_class():
    assert CONCEPT.instance_text == "rxz dog"
    assert CONCEPT.class_texts == ("dog",)
    assert Concept(class_prompt="a dog| a puppy ").class_texts == ("a dog", "a puppy")


@pytest.mark.parametrize(("instance_prompt", "wished", "shown"), [
    ("", (), ("rxz dog", "dog")),
    ("a photo of [name] [class], [filewords]", (), ("a photo of rxz dog", "dog")),
    ("[filewords]", (), ("rxz dog", "dog")),  # nothing but captions: what is to be shown is the subject
    ("dog", (), ("dog",)),
    ("[filewords]", ("rxz dog in a box",), ("rxz dog in a box",)),
])
def test_previews_show_prompts_without_placeholders(instance_prompt, wished, shown):
    concept = dataclasses.replace(CONCEPT, instance_prompt=instance_prompt)
    assert dataclasses.replace(CONFIG, concepts=(concept,), preview_prompts=wished).shown_prompts == shown
