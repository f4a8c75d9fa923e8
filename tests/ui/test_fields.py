"""Every option has its widget, and what a widget says is read back as it was."""

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dreambooth_ext.config import OPTIONS, Concept, TrainConfig
from dreambooth_ext.ui import fields, tab, train_panel


def components(service):
    page = tab.build(service)
    return [block for block in page.blocks.values() if getattr(block, "elem_id", None)]


def test_every_option_has_exactly_one_widget(service):
    ids = [component.elem_id for component in components(service)]
    for name in OPTIONS:
        assert ids.count(f"dreambooth_{name}") == 1, name


def test_ids_are_our_own_unique_and_no_generate_button(service):
    ids = [component.elem_id for component in components(service)]
    assert len(ids) == len(set(ids))
    assert all(name.startswith("dreambooth_") and not name.endswith("_generate") for name in ids)


def test_labels_are_unique(service):
    labels = [component.label for component in components(service) if getattr(component, "label", None)]
    twice = {label for label in labels if labels.count(label) > 1}
    assert twice <= {"Run"}  # the list of runs stands on two tabs


def test_defaults_come_back_as_they_were():
    defaults = {}
    for owner in (TrainConfig(), Concept()):
        defaults.update({name: getattr(owner, name) for name in OPTIONS if hasattr(owner, name)})
    names = list(OPTIONS)
    assert fields.values_of(names, [fields.shown(OPTIONS[name], defaults[name]) for name in names]) == defaults


@pytest.mark.parametrize(("name", "said", "value"), [
    ("steps", "", None), ("steps", "1200", 1200), ("steps", 1200, 1200), ("steps", None, None), ("steps", "many", "many"),
    ("learning_rate", "5e-6", 5e-6), ("learning_rate", " 0.001 ", 1e-3), ("learning_rate", "fast", "fast"),
    ("learning_rate", "", 5e-6), ("snr_gamma", "", None), ("snr_gamma", 5, 5.0), ("seed", 7.0, 7), ("seed", None, 0),
    ("preview_prompts", " a dog \n\nb ", ("a dog", "b")), ("token", "  rxz ", "rxz"), ("token", None, ""),
    ("train_text_encoder", False, False),
])
def test_what_people_type(name, said, value):
    assert fields.values_of([name], [said]) == {name: value}


@given(st.floats(min_value=1e-12, max_value=10, allow_nan=False))
@settings(max_examples=50)
def test_learning_rates_keep_their_first_six_digits(rate):
    shown = fields.shown(OPTIONS["learning_rate"], rate)
    read = fields.values_of(["learning_rate"], [shown])["learning_rate"]
    assert read == pytest.approx(rate, rel=1e-5)


def test_faults_go_to_their_step_in_words_of_the_tab():
    config = dataclasses.replace(TrainConfig(), steps=0, resolution=3, preview_seed=-1)
    faults = config.faults()
    told = fields.faults_of_group(faults, "train")
    assert "<b>Steps:</b> 0 is less than 1, the least that makes sense" in told and 'data-option="steps"' in told
    assert 'data-option="preview_seed"' in told
    assert "<b>Resolution:</b> 3 is less than 64" in fields.faults_of_group(faults, "pictures")
    assert fields.faults_of_group(["nonsense: there is no such setting"], "train")


@pytest.mark.parametrize("name", OPTIONS)
def test_no_fault_falls_between_the_steps(name):
    fault = f"{OPTIONS[name].flag}: it is wrong <somehow>"
    shown = "".join(fields.faults_of_group([fault], group) for group in train_panel.STEPS)
    assert shown.count("<p") == 1 and f'data-option="{name}"' in shown and "&lt;somehow&gt;" in shown


def test_a_new_form_starts_from_the_hosts_preset(service):
    service.preset = "face"
    shown = {component.elem_id: getattr(component, "value", None) for component in components(service)}
    assert (shown["dreambooth_class_noun"], shown["dreambooth_learning_rate"], shown["dreambooth_token"]) == ("person", "2e-06", "")


@pytest.mark.parametrize("name", ["not there", "../elsewhere"])
def test_a_preset_of_the_host_that_is_not_there_is_told_at_the_top(service, name):
    service.preset = name
    shown = {component.elem_id: getattr(component, "value", None) for component in components(service)}
    assert name in shown["dreambooth_preset_problem"] and shown["dreambooth_learning_rate"] == "5e-06"
