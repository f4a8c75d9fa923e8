"""Damaged and hostile files: our own refusal, or names, shapes, dtypes and finite numbers intact. Nothing else."""

import io
import json
import pickle
import random
import sys
import threading
import time
import tracemalloc
import zipfile

import pytest
import torch
from mutations import mutated

from dreambooth_ext.errors import CheckpointError
from dreambooth_ext.models.checkpoint_file import open_checkpoint
from dreambooth_ext.models.checkpoint_writer import output_of, write_ckpt, write_safetensors
from dreambooth_ext.models.diffusers_folder import read_json
from dreambooth_ext.models.family import SD1
from dreambooth_ext.models.sidecar import read_sidecar
from dreambooth_ext.models.specimen import SMALL, sidecar_text

try:
    import resource
except ImportError:  # Windows
    resource = None

MEMORY_BESIDE_THE_FILE = 64 * 2**20
SECONDS_AT_MOST = 120  # a hang, not a pace
TENSORS = {"model.weight": torch.arange(60.0).reshape(3, 4, 5), "half": torch.arange(9.0).half(), "index": torch.arange(77),
           "empty": torch.zeros(0), "number": torch.tensor(1.0), "brain": torch.ones(7, 2, dtype=torch.bfloat16)}


def seeds():
    """(suffix, valid content) of each kind of file that is read."""
    safetensors, ckpt, torchs = io.BytesIO(), io.BytesIO(), io.BytesIO()
    outputs = [output_of(name, tensor) for name, tensor in TENSORS.items()]
    write_safetensors(safetensors, outputs, {"modelspec.title": "x"})
    write_ckpt(ckpt, outputs, {"global_step": 5})
    torch.save({"state_dict": TENSORS, "epoch": 3}, torchs)
    config = json.dumps({"_class_name": "UNet2DConditionModel", "block_out_channels": [32, 64], "sample_size": 8}).encode()
    return [("safetensors", safetensors.getvalue()), ("ckpt", ckpt.getvalue()), ("ckpt", torchs.getvalue()),
            ("yaml", sidecar_text(SD1, SMALL["sd1"]).encode()), ("json", config)]


def read_everything(path):
    """Whatever the file is, the way that the program reads it."""
    if path.suffix == ".yaml":
        return read_sidecar(path.with_suffix(".ckpt"))
    if path.suffix == ".json":
        return read_json(path)
    with open_checkpoint(path) as file:
        for name, entry in file.entries.items():
            tensor = file.finite_tensor(name) if entry.is_float else file.tensor(name)
            assert tuple(tensor.shape) == entry.shape and tensor.is_contiguous()
            assert not tensor.is_floating_point() or bool(torch.isfinite(tensor).all())
            assert isinstance(name, str)
    return file


def peak_of(path):
    """Peak bytes of Python's and numpy's memory while reading; tensors are bounded by the entries' own sizes."""
    tracemalloc.start()
    try:
        read_everything(path)
    except CheckpointError:
        pass
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    return peak


def outcome_of(path, which):
    """"read", or the name of our own error."""
    started = time.monotonic()
    try:
        read_everything(path)
        outcome = "read"
    except CheckpointError as error:
        outcome = type(error).__name__
        assert str(error).strip() and "\n\n" not in str(error)
    assert time.monotonic() - started < SECONDS_AT_MOST, which
    return outcome


def campaign(folder, count, seed, score):
    """{(suffix, outcome): how often}. Fails on anything but our own errors, on execution, on a hang and on much memory."""
    dice = random.Random(seed)
    resident = peak_resident_bytes()
    kinds = seeds()
    outcomes = {}
    score.start("fuzzing: checkpoints and what lies beside them", f"{len(kinds)} kinds, seed {seed}")
    for number in range(count):
        suffix, content = kinds[number % len(kinds)]
        path = folder / f"f.{suffix}"
        path.write_bytes(mutated(content, suffix, dice))
        with score.trial():
            outcome = outcome_of(path, (seed, number, suffix))
            if number % 25 == 0:
                assert peak_of(path) < MEMORY_BESIDE_THE_FILE + 2 * path.stat().st_size, (seed, number, suffix)
        outcomes[suffix, outcome] = outcomes.get((suffix, outcome), 0) + 1
    assert peak_resident_bytes() - resident < MEMORY_BESIDE_THE_FILE  # the files themselves have some KiB
    return outcomes


def peak_resident_bytes():
    """Of this process so far, torch's memory included; 0 where the platform does not tell."""
    if resource is None:
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


# An audit hook cannot be taken off again: it is told when to listen, and to which thread: others may still be at work.
_FORBIDDEN = ("os.system", "os.exec", "os.posix_spawn", "subprocess.Popen", "import", "compile", "exec", "socket.connect",
              "pickle.find_class", "marshal.loads")
_listening = {"thread": None, "heard": []}


def _hear(event, arguments):
    if _listening["thread"] == threading.get_ident() and event in _FORBIDDEN:
        _listening["heard"].append((event, str(arguments)[:200]))


@pytest.fixture
def no_execution(tmp_path):
    """Fails if what runs in the test imports, compiles, executes or starts anything."""
    for suffix, content in seeds():  # what is imported on first use is imported now
        path = tmp_path / f"warm.{suffix}"
        path.write_bytes(content)
        read_everything(path)
        path.write_bytes(content[: len(content) // 2] + b"\x00")
        with pytest.raises(CheckpointError):
            read_everything(path)
        path.unlink()
    if not _listening.get("hooked"):
        sys.addaudithook(_hear)
        _listening["hooked"] = True
    _listening.update(thread=threading.get_ident(), heard=[])
    yield
    _listening["thread"] = None
    assert not [heard for heard in _listening["heard"] if heard[0] != "compile" or "<string>" in heard[1]]


def test_mutations_are_refused_or_harmless(tmp_path, no_execution, score):
    outcomes = campaign(tmp_path, 300, 1, score)
    assert sum(outcomes.values()) == 300
    assert {outcome for suffix, outcome in outcomes} >= {"read", "NotACheckpoint", "UnsafeCheckpoint"}


@pytest.mark.soak
def test_ten_thousand_mutations(tmp_path, no_execution, score):
    print(campaign(tmp_path, 10_000, 2, score))


@pytest.mark.parametrize("suffix, content", seeds()[:3], ids=["safetensors", "ckpt", "torch"])
def test_every_truncation_is_refused(tmp_path, suffix, content):
    """A file that lost its end never looks like a whole one, wherever it was cut."""
    path = tmp_path / f"f.{suffix}"
    for length in [*range(0, len(content), max(1, len(content) // 150)), len(content) - 1]:
        path.write_bytes(content[:length])
        with pytest.raises(CheckpointError):
            read_everything(path)


class Harmful:
    def __init__(self, call, arguments):
        self.call, self.arguments = call, arguments

    def __reduce__(self):
        return self.call, self.arguments


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("call, arguments", [(eval, ("open('{}', 'w')",)), (open, ("{}", "w")), (getattr, (str, "format")),
                                             (print, ("{}",)), (torch.load, ("{}",))],
                         ids=["eval", "open", "getattr", "print", "torch.load"])
def test_code_in_a_ckpt_is_named_and_never_run(tmp_path, call, arguments, protocol):
    target = tmp_path / "executed"
    harmful = Harmful(call, tuple(text.format(target) if isinstance(text, str) else text for text in arguments))
    path = tmp_path / "bad.ckpt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({"state_dict": {"a": harmful}}, protocol))
        archive.writestr("archive/version", "3\n")
    with pytest.raises(CheckpointError, match=r"asks for|opcode"):
        read_everything(path)
    assert not target.exists()


def test_zip_bombs_are_refused_with_little_memory(tmp_path):
    path = tmp_path / "bomb.ckpt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02" + b"}" * (50 * 2**20))
    assert peak_of(path) < MEMORY_BESIDE_THE_FILE
    with pytest.raises(CheckpointError, match="compressed"):
        read_everything(path)


def test_pickles_that_would_grow_are_refused(tmp_path):
    """One long text, memoised and copied over and over."""
    grow = b"\x80\x02]q\x00(X\xe8\x03\x00\x00" + b"a" * 1000 + b"q\x01" + b"h\x01" * 5000 + b"e"
    nest = b"\x80\x02)q\x00" + b"h\x00h\x00\x86q\x00" * 40  # 2**40 leaves, each shared
    for body in (grow, nest, b"\x80\x02" + b"(" * 200_000, b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b"."):
        path = tmp_path / "grow.ckpt"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data.pkl", body + b".")
            archive.writestr("archive/version", "3\n")
        with pytest.raises(CheckpointError):
            read_everything(path)
        assert peak_of(path) < MEMORY_BESIDE_THE_FILE + 2 * path.stat().st_size


@pytest.mark.parametrize("text", ["a: &a [x, x, x]\n" + "".join(
    f"{chr(98 + i)}: &{chr(98 + i)} [*{chr(97 + i)}, *{chr(97 + i)}, *{chr(97 + i)}]\n" for i in range(12)),
    "model: {params: {scale_factor: 1e999}}", "model: {params: {linear_start: .nan}}", "? [a]\n: b", "model: !!binary aGk=",
    "!!python/object/new:os.system [true]", "model: {params: {image_size: 99999999999999999999}}", "\x00", "\ufeff"])
def test_hostile_sidecars_are_refused(tmp_path, text):
    (tmp_path / "m.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(CheckpointError):
        read_sidecar(tmp_path / "m.ckpt")


@pytest.mark.parametrize("text", ["", "[]", "{", "[" * 100_000, "1", "{\"a\": NaN", "\x00", "{\"a\": " + "9" * 100_000 + "}"])
def test_hostile_json_is_refused(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(CheckpointError):
        read_json(tmp_path / "config.json")
