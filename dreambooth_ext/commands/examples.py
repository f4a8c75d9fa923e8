"""What to type: one or two command lines for each command, shown by its --help."""

from __future__ import annotations

PROGRAM = "python -m dreambooth_ext"
_SUBJECT = "--base model.safetensors --instance-dir photos --token rxz --class-noun dog"
_CLASS = "--base model.safetensors --instance-dir photos --class-noun dog"

EXAMPLES = {
    "train": (f"{_SUBJECT} --output-name my_dog", "--config run.json --memory-profile low --steps 800 --json"),
    "resume": ("my_dog", "my_dog --snapshot step-000400 --steps 1200", "my_dog --learning-rate 2.5e-6"),
    "publish": ("my_dog", "my_dog --snapshot step-000400 --name my_dog_400 --publish-format safetensors"),
    "runs": ("--json",),
    "demo": ("--quick",),
    "compare": ("my_dog", 'my_dog --prompts "rxz dog on a beach" "a dog" --count 8'),
    "show": ("my_dog --json",),
    "ask": ("my_dog preview", "my_dog stop"),
    "settings": ("my_dog > run.json",),
    "report": ("my_dog",),
    "explain": ("my_dog --out failure.zip",),
    "open": ("my_dog",),
    "delete": ("my_dog --yes",),
    "queue": ("first.json second.json",),
    "check": (f"{_SUBJECT} --output-name my_dog",),
    "models": ("--json",),
    "presets": ("", "subject"),
    "save-preset": ("quick --steps 400 --memory-profile low",),
    "delete-preset": ("quick",),
    "import": ("db_config.json --out run.json",),
    "audit": ("photos --html audit.html", "photos --choices choices.json"),
    "prepare": ("photos --out prepared", "photos --out prepared --choices choices.json"),
    "captions": ("photos --token rxz --class-noun dog", 'photos --set 01.jpg "rxz dog on a sofa"'),
    "class-images": (f"{_CLASS} --plan", f"{_CLASS} --sheet class_images.html"),
    "token": ("--token rxz --class-noun dog", "--token rxz --class-noun dog --base model.safetensors"),
    "render": ('--base my_dog.ckpt --prompt "rxz dog on a beach" --count 4',),
    "convert": ("model.ckpt model.safetensors", "model.safetensors diffusers_folder"),
    "extract-lora": ("model.safetensors my_dog.ckpt my_dog_lora.safetensors",),
    "merge-lora": ("model.safetensors my_dog_lora.safetensors my_dog.safetensors",),
    "estimate": ("--base model.safetensors --resolution 768 --json", "--gpu-gib 24 --family sdxl --no-train-text-encoder"),
    "ui": ("--open", "--models-dir models --runs-dir runs --port 7870"),
    "playground": ("--into models",),
}


def examples_of(command: str) -> str:
    """The examples of a command, each on a line of its own."""
    lines = [f"  {PROGRAM} {command} {rest}".rstrip() for rest in EXAMPLES[command]]
    return "\n".join(["example:" if len(lines) == 1 else "examples:", *lines])
