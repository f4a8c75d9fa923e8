"""The command line as a person meets it: whole runs, plain refusals, exit codes."""

import json
import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import torch
from campaign import SMALLEST
from PIL import Image
from safetensors import safe_open

from dreambooth_ext import presets
from dreambooth_ext.cli import BAD_INPUT, DONE, FAILED, INTERRUPTED, run
from dreambooth_ext.config import TrainConfig
from dreambooth_ext.errors import Cancelled
from dreambooth_ext.progress import Progress
from dreambooth_ext.run_folder import RunFolder


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A small SD 1.x checkpoint of random weights."""
    from dreambooth_ext.models.family import SD1
    from dreambooth_ext.models.specimen import specimen

    path = tmp_path_factory.mktemp("base") / "base.safetensors"
    specimen(SD1, size=SMALLEST).write(path, torch.float16)
    return path


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    random = np.random.default_rng(0)
    for number in range(3):
        Image.fromarray(random.integers(0, 255, (80, 96, 3), dtype=np.uint8)).save(folder / f"{number}.png")
    return folder


@pytest.fixture
def arguments(base, pictures, tmp_path):
    """A run of three steps that takes seconds."""
    return {"--base": base, "--instance-dir": pictures, "--token": "rxz", "--class-noun": "dog", "--output-name": "rxz_dog",
            "--models-dir": tmp_path / "models", "--runs-dir": tmp_path / "runs", "--steps": 3, "--resolution": 64,
            "--num-class-images": 2, "--class-steps": 2, "--preview-steps": 2, "--seed": 1}


def flat(arguments):
    return [str(part) for pair in arguments.items() for part in pair]


def tree(folder):
    """{name: content} of all files below a folder; {} if it is not there."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_from_pictures_to_a_selected_model_that_renders(arguments, tmp_path, capsys):
    assert run(["train", *flat(arguments), "--publish-format", "both", "--json"]) == DONE
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {line["phase"] for line in lines[:-1]} >= {"preparing", "class images", "training", "publishing"}
    assert len(lines) < 400  # a line for each tensor that is published would be thousands
    models = tmp_path / "models"
    assert {path.name for path in models.iterdir()} >= {"rxz_dog.ckpt", "rxz_dog.safetensors", "selected.json"}
    assert json.loads((models / "selected.json").read_text())["name"] == "rxz_dog.ckpt"
    from diffusers import DiffusionPipeline

    assert DiffusionPipeline.from_pretrained(str(tmp_path / "runs" / "rxz_dog" / "diffusers"), local_files_only=True).unet
    for name in ("rxz_dog.ckpt", "rxz_dog.safetensors"):
        out = tmp_path / name.replace(".", "_")
        assert run(["render", "--base", str(models / name), "--prompt", "rxz dog", "--out", str(out), "--render-steps", "2",
                    "--size", "64"]) == DONE
    pixels = [np.asarray(Image.open(tmp_path / folder / "00-0.png")) for folder in ("rxz_dog_ckpt", "rxz_dog_safetensors")]
    assert np.array_equal(*pixels)


def test_a_lora_run_ends_in_a_file_for_the_lora_tab_that_merges_into_the_base(arguments, base, tmp_path, capsys):
    from safetensors.torch import load_file

    assert run(["train", *flat(arguments), "--lora-rank", "2", "--lora-conv-rank", "1", "--learning-rate", "0.01"]) == DONE
    lora = load_file(tmp_path / "models" / "rxz_dog.safetensors")
    stems = {name.partition(".")[0] for name in lora}
    assert any(stem.startswith("lora_unet_") for stem in stems) and any(stem.startswith("lora_te_") for stem in stems)
    assert not (tmp_path / "models" / "selected.json").exists()  # it is no checkpoint
    merged = tmp_path / "merged.safetensors"
    assert run(["merge-lora", str(base), str(tmp_path / "models" / "rxz_dog.safetensors"), str(merged)]) == DONE
    learnt = load_file(tmp_path / "runs" / "rxz_dog" / "diffusers" / "lora.safetensors")  # by the run's own names
    layer = "encoder.layers.0.mlp.fc1"
    down, up, alpha = (learnt[f"text_encoder.{layer}.{end}"].float() for end in ("lora_down.weight", "lora_up.weight", "alpha"))
    before, after = (load_file(path)[f"cond_stage_model.transformer.text_model.{layer}.weight"].float() for path in (base, merged))
    added = up @ down * alpha / 2
    assert added.norm() > 0 and (after - before - added).norm() < 0.05 * added.norm()


@pytest.fixture
def parted(base, tmp_path):
    """The base without its VAE, and that VAE as a file of its own."""
    from safetensors.torch import load_file, save_file

    values = load_file(base)
    vae = {name: values.pop(name) for name in list(values) if name.startswith("first_stage_model.")}
    save_file(values, tmp_path / "lacking.safetensors")
    save_file({name.partition(".")[2]: tensor for name, tensor in vae.items()}, tmp_path / "vae.safetensors")
    return tmp_path / "lacking.safetensors", tmp_path / "vae.safetensors"


@pytest.mark.parametrize("lora", [[], ["--lora-rank", "2"]], ids=["whole", "lora"])
def test_a_base_without_vae_is_trained_with_the_one_that_is_named(arguments, base, parted, tmp_path, lora, capsys):
    """Class images, previews, the model, and its comparison with the base: all as with the base's own."""
    from safetensors.torch import load_file

    lacking, vae = parted
    whole = {**arguments, "--publish-format": "safetensors", "--steps": 1}
    assert run(["train", *flat({**whole, "--base": lacking, "--output-name": "none"}), *lora]) == BAD_INPUT
    assert "lacking.safetensors is to be used: it has no VAE of its own (Name a VAE file" in capsys.readouterr().err
    assert run(["train", *flat({**whole, "--output-name": "rex"}), *lora]) == DONE
    assert run(["train", *flat({**whole, "--output-name": "max", "--base": lacking, "--vae": vae}), *lora]) == DONE
    one, other = (load_file(tmp_path / "models" / f"{name}.safetensors") for name in ("rex", "max"))
    assert one.keys() == other.keys() and all(torch.equal(tensor, other[name]) for name, tensor in one.items())
    runs = tmp_path / "runs"
    previews = [{path.name: path.read_bytes() for path in (runs / name / "previews").iterdir()} for name in ("rex", "max")]
    assert previews[0] == previews[1] and previews[0]
    drawn = [sorted(path.read_bytes() for path in folder.glob("*.png")) for folder in (runs / "class-images").glob("dog-*")]
    assert len(drawn) == 2 and drawn[0] == drawn[1] and len(drawn[0]) == 2
    if not lora:  # a LoRA's comparison renders the base, and a merged model
        return
    compare = ["--runs-dir", str(runs), "--prompts", "rxz dog", "--count", "1", "--render-steps", "1"]
    assert run(["compare", "rex", *compare]) == DONE and run(["compare", "max", *compare]) == DONE
    seen = [{path.relative_to(runs / name): path.read_bytes() for path in (runs / name / "comparison").rglob("*.png")}
            for name in ("rex", "max")]
    assert seen[0] == seen[1] and len(seen[0]) > 1


def test_the_other_commands_take_the_vae_of_a_base_that_has_none(arguments, base, parted, tmp_path, capsys):
    lacking, vae = map(str, parted)
    of_base = ["--base", lacking, "--vae", vae, "--runs-dir", str(tmp_path / "runs")]
    drawn = ["--prompt", "a dog", "--render-steps", "2", "--size", "64", "--out"]
    assert run(["render", "--base", lacking, "--vae", vae, *drawn, str(tmp_path / "one")]) == DONE
    assert run(["render", "--base", str(base), *drawn, str(tmp_path / "two")]) == DONE
    assert tree(tmp_path / "one") == tree(tmp_path / "two")
    assert run(["estimate", *of_base[:4], "--memory-profile", "low"]) == DONE
    assert run(["token", *of_base, "--token", "rxz", "--count", "1", "--resolution", "64"]) == DONE
    assert run(["convert", lacking, str(tmp_path / "whole.safetensors"), "--vae", vae]) == DONE
    assert run(["convert", lacking, str(tmp_path / "folder"), "--vae", vae]) == DONE
    assert run(["convert", lacking, str(tmp_path / "folder2")]) == BAD_INPUT
    assert run(["render", "--base", str(tmp_path / "whole.safetensors"), *drawn, str(tmp_path / "three")]) == DONE
    assert tree(tmp_path / "three") == tree(tmp_path / "two")


@pytest.mark.parametrize("name", presets.PRESETS)
def test_estimate_and_class_images_take_presets(name, arguments, tmp_path, capsys):
    flags = [flag for flag in presets.PRESETS[name] if flag in ("memory_profile", "lora_rank")]
    written = [word for flag in flags for word in (f"--{flag.replace('_', '-')}", str(presets.PRESETS[name][flag]))]
    answers = []
    for words in (["--preset", name], written):
        assert run(["estimate", "--gpu-gib", "24", "--json", *words]) == DONE
        answers.append(capsys.readouterr().out)
    assert answers[0] == answers[1] != ""
    needed = ("--base", "--instance-dir", "--token", "--class-noun", "--models-dir", "--runs-dir")
    assert run(["class-images", "--plan", "--preset", name, *flat({flag: arguments[flag] for flag in needed})]) == DONE
    assert run(["estimate", "--preset", "none"]) == BAD_INPUT


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("command", ["render --prompt x --size 64 --out", "token --token rxz --runs-dir", "estimate"])
def test_a_device_that_is_not_here_is_told(base, tmp_path, command, capsys):
    name, *rest = command.split()
    for device, told in (("cuda", "--device: cuda, but torch sees no GPU here"), ("gpu7", "--device: 'gpu7' is not one of auto")):
        into = [str(tmp_path / "x")] if rest else []
        assert run([name, *rest, *into, "--base", str(base), "--device", device]) == BAD_INPUT and told in capsys.readouterr().err


def test_runs_are_listed_and_published_again(arguments, tmp_path, capsys):
    assert run(["train", *flat(arguments)]) == DONE
    capsys.readouterr()
    assert run(["runs", "--runs-dir", str(tmp_path / "runs")]) == DONE
    assert "rxz_dog" in (out := capsys.readouterr().out) and "finished" in out
    assert run(["runs", "--runs-dir", str(tmp_path / "runs"), "--json"]) == DONE
    assert [json.loads(line)["name"] for line in capsys.readouterr().out.splitlines()] == ["rxz_dog"]
    again = ["publish", "rxz_dog", "--runs-dir", str(tmp_path / "runs"), "--publish-format", "safetensors", "--name", "second"]
    assert run(again) == DONE
    assert (tmp_path / "models" / "second.safetensors").is_file()
    early = ["publish", "rxz_dog", "--runs-dir", str(tmp_path / "runs"), "--name", "early", "--snapshot"]
    assert run([*early, "step-000009"]) == BAD_INPUT and "Choose one of: step-000001" in capsys.readouterr().err
    assert run([*early, "step-000001"]) == DONE and (tmp_path / "models" / "early.ckpt").is_file()


def test_a_run_whose_loss_became_nan_goes_on_at_a_lower_rate_alone(arguments, tmp_path, monkeypatch, capsys):
    from dreambooth_ext.training import loop

    losses, rates = loop.Objective.losses, []

    def too_fast(self, inputs):
        rates.append(self._session.config.learning_rate)
        found = losses(self, inputs)
        return {**found, "loss": found["loss"] * float("nan")} if len(rates) > 2 and rates[-1] > 1e-5 else found

    monkeypatch.setattr(loop.Objective, "losses", too_fast)
    fast = {**arguments, "--learning-rate": 4e-5, "--text-encoder-learning-rate": 2e-5, "--snapshot-every": 1,
            "--validation-every": 9}
    assert run(["train", *flat(fast)]) == FAILED
    told = capsys.readouterr().err
    assert "The last good snapshot is of step 2. The same settings would lead there again" in told
    again = ["resume", "rxz_dog", "--runs-dir", str(tmp_path / "runs")]
    assert f"Go on with: python -m dreambooth_ext {' '.join(again)} --learning-rate 2e-05" in told
    for more in ([], ["--snapshot", "step-000001"]):
        assert run([*again, *more]) == BAD_INPUT
        error = capsys.readouterr().err
        assert "its loss would become NaN again" in error and f"resume {' '.join(again[1:])} --learning-rate" in error
    assert run([*again, "--learning-rate", "0"]) == BAD_INPUT
    assert len(rates) == 3 and run([*again, "--learning-rate", "1e-5"]) == DONE
    kept = TrainConfig.read(tmp_path / "runs" / "rxz_dog" / "config.json")
    assert (kept.learning_rate, kept.text_encoder_learning_rate) == (1e-5, 5e-6) and rates[3:] == [1e-5]
    lines = [json.loads(line) for line in (tmp_path / "runs" / "rxz_dog" / "metrics.jsonl").read_text().splitlines()]
    assert [(line["step"], line["lr"], line["lr_text_encoder"]) for line in lines] == [
        (1, 4e-5, 2e-5), (2, 4e-5, 2e-5), (3, 1e-5, 5e-6)]
    publish = ["publish", "rxz_dog", "--runs-dir", str(tmp_path / "runs"), "--publish-format", "safetensors", "--name"]
    for name, of_which, rate in (("early", ["--snapshot", "step-000002"], "4e-05"), ("last", [], "1e-05")):
        assert run([*publish, name, *of_which]) == DONE
        with safe_open(tmp_path / "models" / f"{name}.safetensors", "pt") as file:
            assert file.metadata()["dreambooth.learning_rate"] == rate
        assert f"Learning rate {rate}, " in (tmp_path / "models" / f"{name}.json").read_text()


def test_the_same_name_twice_is_refused_and_the_first_run_is_left_alone(arguments, tmp_path, capsys):
    assert run(["train", *flat(arguments)]) == DONE
    before = tree(tmp_path / "models")
    assert run(["train", *flat(arguments)]) == BAD_INPUT
    assert f"resume rxz_dog --runs-dir {tmp_path / 'runs'}" in capsys.readouterr().err  # it can be pasted as it is
    assert tree(tmp_path / "models") == before


@pytest.mark.parametrize("command", ["resume", "publish", "compare"])
def test_what_goes_on_from_another_folder_is_told_where_the_run_was_begun(command, tmp_path, capsys, monkeypatch):
    """A timer's, or a service's: base and pictures would be missing there, or the model be written to a folder beside it."""
    config = TrainConfig.from_dict({"base": "/models/b.ckpt", "instance_dir": "/pictures", "output_name": "rxz_dog", "token": "rxz",
                                    "class_noun": "dog", "runs_dir": "out/runs"})
    (tmp_path / "begun" / "models").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    RunFolder(tmp_path / "begun" / "out" / "runs" / "rxz_dog").create(config)
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert run([command, str(tmp_path / "begun" / "out" / "runs" / "rxz_dog")]) == BAD_INPUT
    told = capsys.readouterr().err
    assert f"its models is in {tmp_path / 'begun'}" in told and f'cd "{tmp_path / "begun"}", then {command} rxz_dog' in told
    assert not list((tmp_path / "elsewhere").iterdir())
    (tmp_path / "elsewhere" / "models").mkdir()  # moved there, say: then it is as good
    assert run([command, str(tmp_path / "begun" / "out" / "runs" / "rxz_dog")]) == BAD_INPUT
    assert "where the run was begun" not in capsys.readouterr().err


def test_a_run_without_a_model_says_how_it_can_be_published(tmp_path, capsys):
    """What is told can be pasted; a snapshot that there is would do as well."""
    values = {"base": "b", "instance_dir": "pictures", "output_name": "rxz_dog", "token": "rxz", "class_noun": "dog"}
    folder, runs = RunFolder(tmp_path / "runs" / "rxz_dog"), ["--runs-dir", str(tmp_path / "runs")]
    folder.create(TrainConfig.from_dict({**values, "runs_dir": str(tmp_path / "runs")}))
    finish = f"python -m dreambooth_ext resume rxz_dog --runs-dir {tmp_path / 'runs'}"
    assert run(["publish", "rxz_dog", *runs]) == BAD_INPUT and f"Continue it first: {finish}" in capsys.readouterr().err
    assert run(["ask", "rxz_dog", "stop", *runs]) == BAD_INPUT and f"Go on with it: {finish}" in capsys.readouterr().err
    assert run(["ask", "rxz_dog", "discard", *runs]) == BAD_INPUT
    assert f"Delete it: {finish.replace('resume', 'delete')}" in capsys.readouterr().err
    for step in ("step-000002", "step-000004"):
        (folder.checkpoints_dir / step / "unet").mkdir(parents=True)
    assert run(["publish", "rxz_dog", *runs]) == BAD_INPUT
    assert f"--snapshot step-000004. Or finish it first: {finish}" in capsys.readouterr().err


def test_a_model_that_no_run_has_made_is_never_replaced(arguments, base, tmp_path, capsys):
    models = tmp_path / "models"
    models.mkdir()
    for name in ("rxz_dog.safetensors", "second.yaml"):  # a model of another trainer, and what belongs to one
        (models / name).write_text("somebody else's")
    assert run(["train", *flat(arguments)]) == BAD_INPUT
    assert "--output-name: rxz_dog.safetensors is in the models folder already" in capsys.readouterr().err
    assert not (tmp_path / "runs" / "rxz_dog").exists()
    (models / "rxz_dog.safetensors").unlink()
    assert run(["train", *flat(arguments)]) == DONE
    publish = ["publish", "rxz_dog", "--runs-dir", str(tmp_path / "runs"), "--name"]
    assert run([*publish, "second"]) == BAD_INPUT
    assert "--name: second.yaml is in the models folder already" in capsys.readouterr().err
    assert tree(models)["second.yaml"] == b"somebody else's" and not (models / "second.ckpt").exists()
    for name in ("third", "third", "rxz_dog"):  # what runs have made may be made anew
        assert run([*publish, name]) == DONE


def test_a_deleted_runs_model_is_never_replaced_not_even_by_what_is_trained_from_it(arguments, tmp_path, capsys):
    assert run(["train", *flat(arguments)]) == DONE
    assert run(["delete", "rxz_dog", "--runs-dir", str(tmp_path / "runs"), "--yes"]) == DONE
    before, model = tree(tmp_path / "models"), next((tmp_path / "models").glob("rxz_dog.*t*"))
    for base in (arguments["--base"], str(model)):
        assert run(["train", *flat({**arguments, "--base": base})]) == BAD_INPUT
        assert f"--output-name: {model.name} is in the models folder already" in capsys.readouterr().err
    assert tree(tmp_path / "models") == before and not (tmp_path / "runs" / "rxz_dog").exists()


def test_class_images_are_rendered_once(arguments, tmp_path, capsys):
    given = {name: value for name, value in arguments.items() if name not in ("--output-name", "--preview-steps")}
    assert run(["class-images", *flat(given)]) == DONE
    first = tree(tmp_path / "runs" / "class-images")
    assert sum(name.endswith(".png") for name in first) == 2
    assert run(["class-images", *flat({**given, "--num-class-images": 3})]) == DONE
    second = tree(tmp_path / "runs" / "class-images")
    assert sum(name.endswith(".png") for name in second) == 3
    assert all(second[name] == content for name, content in first.items() if name.endswith(".png"))


def folder_of_nothing(path):
    path.mkdir()
    return path


def truncated(path):
    path.mkdir()
    Image.fromarray(np.random.default_rng(1).integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(path / "whole.png")
    (path / "cut.png").write_bytes((path / "whole.png").read_bytes()[:300])
    return path


def a_text(path):
    path.write_text("these are notes")
    return path


def a_text_named_png(path):
    path.mkdir()
    (path / "notes.png").write_text("these are notes")
    return path


@pytest.mark.parametrize(("flag", "make", "said"), [
    ("--instance-dir", lambda path: path / "nowhere", "no such folder"),
    ("--instance-dir", folder_of_nothing, "holds no pictures"),
    ("--instance-dir", truncated, "cut.png"),
    ("--instance-dir", a_text_named_png, "notes.png"),
    ("--base", lambda path: path / "nowhere.safetensors", "nowhere.safetensors"),
    ("--token", lambda path: "", "--token"),
    ("--steps", lambda path: 0, "--steps"),
    ("--steps", lambda path: -5, "--steps"),
    ("--steps", lambda path: "many", "--steps"),
    ("--output-name", lambda path: "../escaped", "--output-name"),
    ("--vae", lambda path: path / "nowhere.pt", "nowhere.pt is to be used: there is no such file"),
    ("--vae", a_text, "it is neither a .safetensors nor a .ckpt file"),
    ("--class-dir", a_text, "is a file, and no folder"),
    ("--learning-rate", lambda path: "nan", "--learning-rate"),
], ids=lambda value: value if isinstance(value, str) else "")
def test_bad_input_is_refused_before_anything_starts(flag, make, said, arguments, tmp_path, capsys):
    arguments[flag] = make(tmp_path / "bad")
    assert run(["train", *flat(arguments)]) == BAD_INPUT
    error = capsys.readouterr().err
    assert said in error and "Traceback" not in error
    assert not (tmp_path / "runs" / "rxz_dog").exists() and not list((tmp_path / "models").glob("*.*"))


@pytest.mark.parametrize(("command", "said"), [
    ("train --resolutoin 64", "Is --resolution meant?"), ("train --max_train_steps=400", "Is --steps meant?"),
    ("train --instance_data_dir photos", "Is --instance-dir meant?"), ("train --network-dim 8", "Is --lora-rank meant?"),
    ("show rex --zzz", "there is no --zzz."),
    ("trian --steps 4", "There is no command trian. Is train meant?"), ("token dog", "token: nothing can be done with dog."),
    ("render --base nowhere.ckpt --prompt x --size 64", "nowhere.ckpt is to be used: there is no such file"),
    ("render --base BASE --prompt x --seed -1 --count 0 --render-steps 0", "for 3 reasons"),
    ("render --base BASE --prompt x --size 65", "--size: must be a multiple of 8"),
    ("render --base BASE --prompt x --out a-file/below", "a file stands where a folder is to be"),
    ("merge-lora BASE l.safetensors merged.ckpt --weight nan", "--weight: nan is not a finite number"),
    ("presets mine", "there is no preset named mine\nChoose one of: subject, style"),
    ("import nowhere.json", "nowhere.json cannot be read (No such file"),
    ("token --base nowhere.ckpt --token rxz --resolution 64", "nowhere.ckpt is to be used: No such file"),
    ("token --base BASE --token rxz --resolution abc", "--resolution: 'abc' is not a whole number"),
    ("token --base BASE --token rxz --count 0", "--count: 0 is less than 1"),
    ("estimate --resolution abc --train-batch-size 0", "for 2 reasons"),
    *((f"{command} {'x' * 300}", "File name too long") for command in (
        "audit", "captions", "prepare --out out", "render --prompt x --base", "estimate --base",
        "token --token rxz --base", "queue", "import")),
    *((f"{command} ~nobody-of-this-name/x", "a user whom this computer does not know") for command in (
        "audit", "captions", "prepare pictures --out", "render --prompt x --base", "convert BASE", "merge-lora BASE BASE",
        "show", "runs --runs-dir", "models --models-dir", "queue", "import", "check --config")),
])
def test_what_cannot_be_is_told_by_every_command(command, said, base, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a-file").touch()
    try:
        code = run(command.replace("BASE", str(base)).split())
    except SystemExit as ended:  # argparse's
        code = ended.code
    assert code == BAD_INPUT and said in capsys.readouterr().err
    assert [path.name for path in tmp_path.rglob("*") if path.suffix == ".png"] == []


@pytest.mark.parametrize("command", ["train --setps 4 --json", "trian --json", "token rxz --json", "show --json",
                                     "ask rex jump --json", "train --num-class-images --json"])
def test_what_no_command_knows_is_an_object_as_well_for_a_program(command, capsys):
    assert run(command.split()) == BAD_INPUT
    told = capsys.readouterr()
    answer = json.loads(told.out)
    assert answer["error"].strip() == told.err.strip() and len(answer["faults"]) == 1 and "Traceback" not in told.err
    assert run(command.replace(" --json", "").split()) == BAD_INPUT and capsys.readouterr().out == ""


def test_a_program_is_told_of_a_stop_as_well(arguments, monkeypatch, capsys):
    from dreambooth_ext import recipe

    def stopped(config, host, progress):
        progress.start("training", 3)
        raise Cancelled

    monkeypatch.setattr(recipe, "train", stopped)
    assert run(["train", *flat(arguments), "--json"]) == INTERRUPTED
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert last.keys() == {"stopped"} and "resume rxz_dog" in last["stopped"]


def test_a_setting_with_a_typo_in_it_is_named_with_what_may_be_meant(arguments, tmp_path, capsys):
    (tmp_path / "run.json").write_text('{"learning-rate": 1e-4, "learning_rat": 1e-4, "zzz": 1}')
    assert run(["check", "--config", str(tmp_path / "run.json"), *flat(arguments)]) == BAD_INPUT
    told = capsys.readouterr().err
    assert told.count("there is no such setting. Is learning_rate meant?") == 2 and "zzz: there is no such setting\n" in told


def write_nan(path, base):
    from safetensors.torch import load_file, save_file

    state = load_file(base)
    name = "model.diffusion_model.input_blocks.1.0.in_layers.2.weight"
    state[name] = state[name].clone()
    state[name].view(-1)[5] = float("nan")
    save_file(state, path)


def write_missing(path, base):
    from safetensors.torch import load_file, save_file

    state = load_file(base)
    del state["model.diffusion_model.middle_block.0.in_layers.2.weight"]
    save_file(state, path)


def write_other_family(path, base):
    from safetensors.torch import save_file

    save_file({"model.diffusion_model.joint_blocks.0.x_block.attn.qkv.weight": torch.zeros(6, 2),
               "model.diffusion_model.x_embedder.proj.weight": torch.zeros(2, 16, 2, 2)}, path)


BAD_BASES = {
    "text": lambda path, base: path.write_text("this is no checkpoint"), "empty": lambda path, base: path.write_bytes(b""),
    "cut off": lambda path, base: path.write_bytes(base.read_bytes()[:100_000]), "nan": write_nan, "missing": write_missing,
    "other family": write_other_family,
}


@pytest.mark.parametrize("write", BAD_BASES.values(), ids=BAD_BASES.keys())
def test_a_base_that_cannot_be_trained_is_refused(write, base, arguments, tmp_path, capsys):
    path = tmp_path / "bad.safetensors"
    write(path, base)
    (tmp_path / "bad.yaml").write_bytes(base.with_suffix(".yaml").read_bytes())
    arguments["--base"] = path
    assert run(["train", *flat(arguments)]) == BAD_INPUT
    error = capsys.readouterr().err
    assert "bad.safetensors" in error and "Traceback" not in error
    assert not (tmp_path / "runs" / "rxz_dog").exists()


@pytest.mark.parametrize("command", [["audit", "--json"], ["runs", "--json", "--runs-dir"], ["audit"]])
def test_a_reader_that_goes_away_breaks_nothing(command, pictures, tmp_path):
    """... | head -1"""
    name, *flags = command
    process = subprocess.Popen([sys.executable, "-m", "dreambooth_ext", name, *flags, str(pictures)], stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, text=True)
    process.stdout.close()
    assert process.stderr.read().count("Traceback") == 0 and process.wait(300) == DONE


def test_a_common_word_as_token_is_a_warning(arguments, capsys):
    arguments["--token"] = "dog"
    assert run(["train", *flat(arguments)]) == DONE
    assert "word that the model knows" in capsys.readouterr().err


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder(arguments, tmp_path, capsys):
    (tmp_path / "models").mkdir(mode=0o555)
    assert run(["train", *flat(arguments)]) == BAD_INPUT
    assert "may not be written" in capsys.readouterr().err


def test_a_full_disk_is_told_and_leaves_nothing_half_written(arguments, tmp_path, capsys, monkeypatch):
    from dreambooth_ext import files

    real = os.fsync

    def full(handle):
        if ".ckpt" in os.readlink(f"/proc/self/fd/{handle}") or os.fstat(handle).st_size > 10_000_000:
            raise OSError(28, "No space left on device")
        real(handle)

    monkeypatch.setattr(files.os, "fsync", full)
    assert run(["train", *flat(arguments), "--storage-wait-min", "0"]) == FAILED
    error = capsys.readouterr().err
    assert "disk is full" in error and "resume rxz_dog" in error
    assert not list((tmp_path / "models").glob("rxz_dog*"))
    monkeypatch.undo()
    assert run(["resume", "rxz_dog", "--runs-dir", str(tmp_path / "runs")]) == DONE


@pytest.mark.skipif(sys.platform != "linux", reason="the file behind a handle is found through /proc")
@pytest.mark.parametrize("part", ["snapshot", "model", "prepared picture"])
def test_a_run_waits_for_room_and_goes_on(part, arguments, tmp_path, capsys, monkeypatch):
    from dreambooth_ext import files, patience

    real, refused = os.fsync, []
    where = {"snapshot": "/checkpoints/.", "model": "/models/", "prepared picture": "/dataset/"}[part]

    def full_at_first(handle):
        name = os.readlink(f"/proc/self/fd/{handle}")
        if where in name and os.path.isfile(name) and len(refused) < 3:
            refused.append(name)
            raise OSError(28, "No space left on device")
        real(handle)

    monkeypatch.setattr(files.os, "fsync", full_at_first)
    monkeypatch.setattr(patience, "LOOK_AGAIN_S", 0.05)
    assert run(["train", *flat(arguments)]) == DONE
    told = capsys.readouterr().err
    assert len(refused) == 3 and "Paused" in told and "disk is full" in told and "The run goes on." in told
    assert (tmp_path / "models" / "rxz_dog.ckpt").is_file()
    assert not list(tmp_path.rglob("*.partial"))


@pytest.mark.parametrize("change", ["picture", "base"])
def test_a_resume_with_other_inputs_is_refused(change, arguments, base, pictures, tmp_path, capsys):
    copy = tmp_path / "copy.safetensors"
    copy.write_bytes(base.read_bytes())
    copy.with_suffix(".yaml").write_bytes(base.with_suffix(".yaml").read_bytes())
    arguments["--base"] = copy
    assert run(["train", *flat(arguments)]) == DONE
    folder = RunFolder(tmp_path / "runs" / "rxz_dog")
    folder.write_state(type(folder.state())(state="interrupted", step=1, steps=3))
    if change == "picture":
        Image.new("RGB", (80, 80), "red").save(pictures / "0.png")
    else:
        data = bytearray(copy.read_bytes())
        data[-2] ^= 1
        copy.write_bytes(data)
    assert run(["resume", "rxz_dog", "--runs-dir", str(tmp_path / "runs")]) == BAD_INPUT
    assert "changed" in capsys.readouterr().err


def test_ctrl_c_saves_and_says_how_to_go_on(arguments, tmp_path):
    arguments["--steps"] = 50_000  # goes on until it is stopped, however late that is heard
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([sys.executable, "-m", "dreambooth_ext", "train", *flat(arguments), "--json"], text=True,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment)
    deadline = time.monotonic() + 600
    for line in process.stdout:
        report = json.loads(line)
        if (report.get("phase") == "training" and report["done"] >= 3) or time.monotonic() > deadline:
            process.send_signal(signal.SIGINT)
            break
    rest, error = process.communicate(timeout=600)
    assert process.returncode == 130
    assert "resume rxz_dog" in error and "Traceback" not in error
    assert "resume rxz_dog" in json.loads(rest.splitlines()[-1])["stopped"]
    state = RunFolder(tmp_path / "runs" / "rxz_dog").state()
    assert state.state == "interrupted" and state.step >= 3


def test_the_real_photographs_go_through_the_corridor(photos, arguments, tmp_path):
    arguments["--instance-dir"] = photos / "backpack_dog"
    assert run(["train", *flat(arguments)]) == DONE
    assert (tmp_path / "models" / "rxz_dog.ckpt").is_file()


def test_a_launchers_copy_of_ctrl_c_ends_nothing_at_once(monkeypatch):
    from dreambooth_ext.signals import Interrupter

    progress = Progress()
    press = Interrupter(progress)
    monkeypatch.setenv("RANK", "1")
    press(signal.SIGINT, None)
    press(signal.SIGINT, None)  # what the launcher passes on
    assert progress.cancelled
    press._since_s -= press.ECHO_S
    with pytest.raises(KeyboardInterrupt):
        press(signal.SIGINT, None)
    monkeypatch.delenv("RANK")
    alone = Interrupter(Progress())
    alone(signal.SIGINT, None)
    with pytest.raises(KeyboardInterrupt):
        alone(signal.SIGINT, None)


PRINTS = """
import sys
from dreambooth_ext.progress import Progress
from dreambooth_ext.signals import Interrupter, heard
from dreambooth_ext.commands.terminal import listener
progress = Progress(listener(False))
with heard(Interrupter(progress)):
    print("begun", flush=True)
    while not progress.cancelled:
        progress.log("x" * 1000)
print("stopped", flush=True)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="a signal interrupts no write there")
def test_ctrl_c_is_heard_while_nobody_reads_what_is_printed():
    """As with `2>&1 | less`, which is full after a while: the signal comes in the middle of a print."""
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    process = subprocess.Popen([sys.executable, "-c", PRINTS], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=buffered)
    assert process.stdout.readline() == b"begun\n"
    time.sleep(1)  # the pipe is full by then; if it is not, the signal is heard all the same
    process.send_signal(signal.SIGINT)
    told, error = process.communicate(timeout=120)
    assert told == b"stopped\n" and process.returncode == 0 and b"Traceback" not in error


def test_a_second_ctrl_c_is_heard_while_the_page_waits_for_its_job(monkeypatch, capsys, tmp_path):
    """Windows hears none while a thread waits for an event, however long that takes: no wait there is without end."""
    from types import SimpleNamespace

    from dreambooth_ext.commands import webui
    from dreambooth_ext.ui import app

    waits = iter([False, True])
    job = SimpleNamespace(name="rex", done=SimpleNamespace(wait=lambda timeout: next(waits)))
    monkeypatch.setattr(webui, "load_libraries", lambda: None)
    monkeypatch.setattr(app, "launch", lambda host, **how: None)
    monkeypatch.setattr(webui.JOBS, "stop_all", lambda by: job)
    assert run(["ui", "--models-dir", str(tmp_path), "--runs-dir", str(tmp_path)]) == DONE
    assert "rex stops after this step" in capsys.readouterr().out and not list(waits)


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_what_ends_a_service_or_a_terminal_stops_the_work_as_ctrl_c_does(monkeypatch, capsys, name):
    """A rented computer is told by SIGTERM that it will be taken away; a connection that is lost sends SIGHUP."""
    from dreambooth_ext import cli

    number, heard = getattr(signal, name), []
    former = signal.signal(number, signal.SIG_DFL)  # what starts the tests may have it ignored, as nohup does

    def work(parsed, progress):
        os.kill(os.getpid(), number)
        heard.append(progress.cancelled)
        progress.check()

    monkeypatch.setitem(cli.COMMANDS, "runs", (work, "", lambda parser: None))
    try:
        assert run(["runs"]) == INTERRUPTED and heard == [True] and "Stopping after this step" in capsys.readouterr().err
        assert signal.getsignal(number) == signal.SIG_DFL
    finally:
        signal.signal(number, former)


def test_names_of_another_alphabet_go_through_a_pipe_that_has_one(tmp_path):
    """So are pipes on Windows; what cannot be written there is escaped."""
    (tmp_path / "собака").mkdir()
    Image.new("RGB", (64, 64)).save(tmp_path / "собака" / "日本.png")
    told = subprocess.run([sys.executable, "-m", "dreambooth_ext", "captions", str(tmp_path / "собака"), "--token", "rxz",
                           "--class-noun", "dog"], capture_output=True, env={**os.environ, "PYTHONIOENCODING": "cp1252"})
    assert told.returncode == DONE and b"\\u65e5\\u672c.png" in told.stdout and b"Traceback" not in told.stderr


def test_nohup_and_launchers_are_left_their_signals(monkeypatch):
    from dreambooth_ext import cli

    seen = {}

    def work(parsed, progress):
        seen.update({name: signal.getsignal(getattr(signal, name)) for name in ("SIGTERM", "SIGHUP")})

    monkeypatch.setitem(cli.COMMANDS, "runs", (work, "", lambda parser: None))
    former = signal.signal(signal.SIGHUP, signal.SIG_IGN), signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        assert run(["runs"]) == DONE and seen["SIGHUP"] == signal.SIG_IGN and callable(seen["SIGTERM"])
        monkeypatch.setenv("RANK", "0")
        assert run(["runs"]) == DONE and seen["SIGTERM"] == signal.SIG_DFL
    finally:
        for number, before in zip((signal.SIGHUP, signal.SIGTERM), former, strict=True):
            signal.signal(number, before)


def test_ctrl_c_ends_the_page_and_its_run_keeps_what_it_has_learnt(monkeypatch, tmp_path, capsys):
    from dreambooth_ext.commands import webui
    from dreambooth_ext.jobs import JOBS, Job
    from dreambooth_ext.ui import app

    begun = threading.Event()

    def train(progress):
        begun.set()
        while True:
            progress.check()
            time.sleep(0.01)

    jobs = [Job("rex", train), Job("rex-2", train)]

    def launch(*arguments, **named):
        for job in jobs:
            JOBS.start(job)
        assert begun.wait(120)
        try:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(60)
        except KeyboardInterrupt:  # as gradio does
            print("closing server")

    monkeypatch.setattr(app, "launch", launch)
    monkeypatch.setattr(webui, "load_libraries", lambda: None)
    assert run(["ui", "--models-dir", str(tmp_path), "--runs-dir", str(tmp_path)]) == DONE
    told = capsys.readouterr()
    assert "closing server" in told.out and "rex stops after this step" in told.out and "Stopping" not in told.err
    assert [job.state for job in jobs] == ["cancelled", "cancelled"]
