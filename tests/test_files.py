"""No half file under its final name; names that stay where they belong."""

import errno
import io
import json
import os
import re
import stat
import sys
from collections import Counter
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from dreambooth_ext import files
from dreambooth_ext.card import MADE_BY, write_cards
from dreambooth_ext.config import Concept, TrainConfig
from dreambooth_ext.dataset.prepare import prepare
from dreambooth_ext.errors import ConfigError, DiskFull, NotWritable, StorageError, UnsafePath
from dreambooth_ext.models.checkpoint_writer import output_of
from dreambooth_ext.models.publish import write_files
from dreambooth_ext.progress import Progress
from dreambooth_ext.run_folder import RunFolder


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no umask")
def test_what_is_written_has_the_usual_permissions_and_the_umask_is_left_alone(tmp_path, monkeypatch):
    """It is the whole process's, a WebUI's: two threads that set it to read it would leave it changed for good."""
    former = os.umask(0o027)
    try:
        with monkeypatch.context() as patch:
            patch.setattr(os, "umask", lambda mask: pytest.fail("the umask was set"))
            files.write_json(tmp_path / "a.json", {})
            files.replace_folder(tmp_path / "b", lambda folder: (folder / "c").write_text("1"))
    finally:
        os.umask(former)
    assert [path.stat().st_mode & 0o777 for path in (tmp_path / "a.json", tmp_path / "b", tmp_path / "b" / "c")] == [
        0o640, 0o750, 0o640]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows syncs no folder")
@pytest.mark.parametrize("number", [errno.EINVAL, errno.EIO])
def test_a_file_system_that_syncs_no_folders_is_written_to(tmp_path, monkeypatch, number):
    """VirtualBox's shared folders say EINVAL; what fails for another reason is told."""
    real = os.fsync

    def fsync(handle):
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(number, os.strerror(number))
        real(handle)

    monkeypatch.setattr(files.os, "fsync", fsync)
    with pytest.raises(StorageError) if number == errno.EIO else nullcontext():
        files.write_json(tmp_path / "new" / "a.json", {})
    assert (tmp_path / "new" / "a.json").exists() == (number == errno.EINVAL)


def test_a_failed_write_leaves_the_former_file(tmp_path):
    path = tmp_path / "model.ckpt"
    path.write_bytes(b"former")
    with pytest.raises(RuntimeError), files.write_atomically(path) as stream:
        stream.write(b"half")
        raise RuntimeError
    assert path.read_bytes() == b"former"
    assert os.listdir(tmp_path) == ["model.ckpt"]


def test_a_name_that_is_no_text_comes_back_from_what_is_written(tmp_path):
    files.write_json(tmp_path / "names.json", ["caf\udce9.png", "é\n"])
    assert json.loads((tmp_path / "names.json").read_text(encoding="utf-8")) == ["caf\udce9.png", "é\n"]


@pytest.mark.parametrize(("size", "told"), [(0, "0 MiB"), (20_000, "20 KiB"), (2**20, "1 MiB"), (3 * 2**30, "3.0 GiB")])
def test_what_is_there_is_never_told_as_nothing(size, told):
    assert files.gib(size) == told


def test_a_home_of_nobody_is_told(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert files.expanded("~/pictures") == tmp_path / "pictures"
    with pytest.raises(ConfigError, match="a user whom this computer does not know"):
        files.expanded("~nobody-of-this-name/pictures")


def test_the_file_is_synced_before_it_gets_its_name(tmp_path, monkeypatch):
    order = []
    monkeypatch.setattr(files.os, "fsync", lambda handle, real=os.fsync: (order.append("fsync"), real(handle)))
    monkeypatch.setattr(files.os, "replace", lambda a, b, real=os.replace: (order.append("rename"), real(a, b)))
    with files.write_atomically(tmp_path / "x") as stream:
        stream.write(b"x")
    assert order == ["fsync", "rename", "fsync"]  # the file, the name, the folder


@pytest.mark.parametrize(
    ("number", "error"),
    [(errno.ENOSPC, DiskFull), (errno.EDQUOT, DiskFull), (errno.EROFS, NotWritable), (errno.EACCES, NotWritable),
     (errno.EIO, StorageError)],
)
def test_what_the_system_says_becomes_a_plain_error(tmp_path, monkeypatch, number, error):
    def fail(handle):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(files.os, "fsync", fail)
    with pytest.raises(error) as caught, files.write_atomically(tmp_path / "x") as stream:
        stream.write(b"x")
    assert caught.value.instead
    assert os.listdir(tmp_path) == []


def test_a_folder_is_replaced_whole_or_not_at_all(tmp_path):
    folder = tmp_path / "snapshot"
    files.replace_folder(folder, lambda path: (path / "a").write_text("1"))

    def fails(path):
        (path / "b").write_text("2")
        raise RuntimeError

    with pytest.raises(RuntimeError):
        files.replace_folder(folder, fails)
    assert (folder / "a").read_text() == "1"
    files.replace_folder(folder, lambda path: (path / "b").write_text("3"))
    assert [path.name for path in folder.iterdir()] == ["b"]
    assert os.listdir(tmp_path) == ["snapshot"]


def test_room_is_set_aside_before_a_large_file_is_written(tmp_path):
    """Where the system can: a disk too small shows at once. What is written is no longer and no shorter for it."""
    for count in (0, 10, 100_000):
        with files.write_atomically(tmp_path / "file") as stream:
            files.reserve(stream, count)
            stream.write(b"x" * max(count, 20))
        assert (tmp_path / "file").read_bytes() == b"x" * max(count, 20)
    files.reserve(io.BytesIO(), 10)  # no file at all: nothing to set aside
    if sys.platform == "linux":
        with pytest.raises(DiskFull), files.write_atomically(tmp_path / "file") as stream:
            files.reserve(stream, 2**43)
        assert os.listdir(tmp_path) == ["file"] and (tmp_path / "file").stat().st_size == 100_000


def test_too_little_room_is_foreseen(tmp_path):
    with pytest.raises(DiskFull, match="The model is to be written") as full:
        files.require_space(tmp_path / "not" / "yet", 2**60, "The model")
    assert re.fullmatch(r"it needs \d+\.\d GiB, and only \d+\.\d [GM]iB are free", full.value.why)  # the page tells no more
    files.require_space(tmp_path, 10, "A note")


@given(st.text(max_size=30))
def test_a_safe_name_names_one_file_in_its_folder(name):
    try:
        files.require_safe_name(name, "the name")
    except UnsafePath:
        return
    assert os.path.basename(name) == name and name not in (".", "..") and not name.startswith(".")


def test_paths_stay_inside(tmp_path):
    inside, outside = tmp_path / "in", tmp_path / "out"
    inside.mkdir()
    outside.mkdir()
    (inside / "link").symlink_to(outside)
    assert files.require_inside(inside / "a", [inside])
    for path in (outside, inside / ".." / "out", inside / "link" / "x"):
        with pytest.raises(UnsafePath):
            files.require_inside(path, [inside])


def test_windows_refusal_to_replace_an_open_file_is_told(tmp_path, monkeypatch):
    def refuse(source, destination):
        raise PermissionError(errno.EACCES, "in use")

    monkeypatch.setattr(files.os, "replace", refuse)
    monkeypatch.setattr(files.sys, "platform", "win32")
    monkeypatch.setattr(files, "_WAITS_S", (0.0, 0.0))
    with pytest.raises(NotWritable, match="another program"), files.write_atomically(tmp_path / "x") as stream:
        stream.write(b"x")


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_windows_virus_scanner_looks_at_what_was_just_written(tmp_path, monkeypatch, kind):
    """It is in the way of the first two attempts at each move."""
    tries, move = Counter(), os.replace

    def scanned(source, destination):
        tries[source] += 1
        if tries[source] <= 2:
            raise PermissionError(errno.EACCES, "in use")
        move(source, destination)

    def write(text):
        if kind == "folder":
            return files.replace_folder(tmp_path / "x", lambda folder: (folder / "a").write_text(text))
        return files.write_json(tmp_path / "x", text)

    write("one")
    monkeypatch.setattr(files.os, "replace", scanned)
    monkeypatch.setattr(files.sys, "platform", "win32")
    monkeypatch.setattr(files.time, "sleep", lambda seconds: None)
    write("two")
    assert "two" in (tmp_path / "x" / "a" if kind == "folder" else tmp_path / "x").read_text()
    if kind == "folder":
        files.remove_folder(tmp_path / "x")
    assert [path.name for path in tmp_path.iterdir()] == ([] if kind == "folder" else ["x"])
    assert min(tries.values()) == 3


def moves_a_snapshot_back(folder):
    (folder / ".x.former").mkdir()
    files.sweep(folder)
    return (folder / "x").is_dir()


def removes_a_sidecar(folder):
    (folder / "x.yaml").touch()
    write_files([folder / "x.safetensors"], [output_of("a", torch.zeros(1))], {}, None, 1, Progress())
    return not (folder / "x.yaml").exists()


def removes_a_preview(folder):
    config = TrainConfig(base="base.ckpt", output_name="x", concepts=(Concept(token="rxz"),))
    info = PngImagePlugin.PngInfo()
    info.add_text("parameters", MADE_BY)
    Image.new("RGB", (8, 8)).save(folder / "x.preview.png", pnginfo=info)
    write_cards([folder / "x.ckpt"], config, RunFolder(folder / "run"), {})
    return not (folder / "x.preview.png").exists()


def removes_a_prepared_picture(folder):
    (folder / "pictures").mkdir()
    Image.new("RGB", (64, 64)).save(folder / "pictures" / "a.png")
    Image.new("RGB", (64, 64)).save(folder / "x.png")
    prepare(folder / "pictures", folder, resolution=64, crop="center")
    return not (folder / "x.png").exists()


@pytest.mark.parametrize("act", [moves_a_snapshot_back, removes_a_sidecar, removes_a_preview, removes_a_prepared_picture])
def test_windows_virus_scanner_looks_at_what_a_resume_or_a_publication_removes(tmp_path, monkeypatch, act):
    """It is in the way of the first two attempts."""
    refused = Counter()

    def scanned(do):
        def attempt(path, *more, **how):
            if Path(path).name.removeprefix(".").partition(".")[0] == "x" and refused[do] < 2 and "partial" not in str(path):
                refused[do] += 1
                raise PermissionError(errno.EACCES, "in use")
            return do(path, *more, **how)
        return attempt

    monkeypatch.setattr(files.os, "replace", scanned(os.replace))
    monkeypatch.setattr(Path, "unlink", scanned(Path.unlink))
    monkeypatch.setattr(files.sys, "platform", "win32")
    monkeypatch.setattr(files.time, "sleep", lambda seconds: None)
    assert act(tmp_path) and 2 in refused.values()


def test_what_a_killed_process_left_is_swept_and_nothing_else(tmp_path):
    left = [".a.ckpt.x1.partial", ".step-1.former", "deep/.b.x2.partial", ".c.former"]
    kept = ["a.ckpt", "step-1", "deep/b", ".hidden", "d.partial"]
    for name in [*left, *kept]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    files.sweep(tmp_path, "a.ckpt")
    assert not (tmp_path / left[0]).exists() and all((tmp_path / name).exists() for name in left[1:])
    files.sweep(tmp_path)
    found = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert found == {*kept, "c"}  # which was moved aside, and had no successor yet
    assert (tmp_path / "c").read_text() == ".c.former"


def test_a_folder_is_never_seen_half_removed(tmp_path, monkeypatch):
    folder = tmp_path / "step-1"
    folder.mkdir()
    (folder / "weights").write_text("1")
    monkeypatch.setattr(files.shutil, "rmtree", lambda path, **more: None)  # the process dies here
    files.remove_folder(folder)
    assert not folder.exists()
    monkeypatch.undo()
    files.sweep(tmp_path / "other")
    folder.mkdir()
    files.sweep(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["step-1"]


def test_a_folder_whose_removal_was_killed_does_not_come_back(tmp_path, monkeypatch):
    """Half of it would be gone, and a run would go on from a snapshot that was taken back."""
    (tmp_path / "step-1").mkdir()
    monkeypatch.setattr(files.shutil, "rmtree", lambda path, **more: None)  # the process dies here
    files.remove_folder(tmp_path / "step-1")
    monkeypatch.undo()
    files.sweep(tmp_path)
    assert not list(tmp_path.iterdir())
