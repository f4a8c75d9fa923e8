"""Files whose tables promise what is not there, each made by hand: refused for the very reason, where fuzzing asks for any."""

import copy
import json
import struct
import zipfile

import pytest
import torch

from dreambooth_ext.errors import NotACheckpoint
from dreambooth_ext.models import checkpoint_file
from dreambooth_ext.models.checkpoint_file import open_checkpoint
from dreambooth_ext.models.sidecar import AT_MOST_BYTES, read_sidecar


def safetensors(header, data):
    text = header if isinstance(header, str) else json.dumps(header)
    return struct.pack("<Q", len(text)) + text.encode() + data


def row(begin, end):
    return {"dtype": "U8", "shape": [end - begin], "data_offsets": [begin, end]}


TABLES = {
    "it has 80 bytes, and its header promises 76": safetensors({"a": row(0, 8)}, bytes(12)),
    "the data of a is not where it should be": safetensors({"a": row(4, 12)}, bytes(12)),
    "the data of b is not where it should be": safetensors({"a": row(0, 8), "b": row(4, 12)}, bytes(12)),
    "a name that comes twice": safetensors(json.dumps({"a": row(0, 4), "b": row(4, 8)}).replace('"b"', '"a"'), bytes(8)),
    "a number too long": safetensors(json.dumps({"a": row(0, 8)}).replace("[8]", f"[{10**40}]"), bytes(8)),
    "a has another size than its shape": safetensors({"a": {**row(0, 8), "dtype": "F32"}}, bytes(8)),
    "it is cut off or damaged": safetensors({"a" * 3000: row(0, 8)}, bytes(8)),
}


@pytest.mark.parametrize("why", TABLES)
def test_a_table_that_is_wrong_is_refused_for_that(tmp_path, monkeypatch, why):
    monkeypatch.setattr(checkpoint_file, "HEADER_AT_MOST", 2000)
    (tmp_path / "a.safetensors").write_bytes(TABLES[why])
    with pytest.raises(NotACheckpoint, match=why):
        open_checkpoint(tmp_path / "a.safetensors")


ONES = torch.ones(4000)


@pytest.mark.parametrize(("state", "why"), [
    ({str(number): ONES for number in range(5)}, "its tensors are more than the file can hold"),
    ({"a": ONES[:1].expand(10_000)}, "a reaches beyond its own numbers"),
    ({"a": torch.ones([1] * 17)}, "the numbers of a are missing"),
])
def test_tensors_that_are_more_than_their_numbers_are_refused(tmp_path, state, why):
    torch.save(state, tmp_path / "a.ckpt")
    with pytest.raises(NotACheckpoint, match=why):
        open_checkpoint(tmp_path / "a.ckpt")


def test_parts_of_an_archive_that_overlap_or_are_cut_off_are_refused(tmp_path):
    torch.save({"a": torch.ones(4000)}, tmp_path / "a.ckpt")
    whole = (tmp_path / "a.ckpt").read_bytes()
    with zipfile.ZipFile(tmp_path / "a.ckpt", "a") as archive:
        again = copy.copy(next(member for member in archive.filelist if member.filename.endswith("data/0")))
        again.filename = again.orig_filename = again.filename[:-1] + "1"  # the same numbers as another part
        archive.filelist.append(again)
        archive.writestr("archive/more", b"")  # so that the table is written
    with pytest.raises(NotACheckpoint, match="its parts overlap"):
        open_checkpoint(tmp_path / "a.ckpt")
    header = whole.index(b"data/0") - whole[: whole.index(b"data/0")][::-1].index(b"PK\x03\x04"[::-1]) - 4
    (tmp_path / "b.ckpt").write_bytes(whole[: header + 28] + b"\xff\xff" + whole[header + 30 :])
    with pytest.raises(NotACheckpoint, match="it is cut off"):
        open_checkpoint(tmp_path / "b.ckpt")


def test_a_pickle_that_has_one_text_copied_again_and_again_is_refused(tmp_path):
    body = b"\x80\x02c_codecs\nencode\nq\x000X\xe8\x03\x00\x00" + b"a" * 1000 + b"q\x010](" + b"h\x00h\x01\x85R" * 5000 + b"e."
    with zipfile.ZipFile(tmp_path / "a.ckpt", "w") as archive:
        archive.writestr("archive/data.pkl", body)
    with pytest.raises(NotACheckpoint, match="the same data over and over"):
        open_checkpoint(tmp_path / "a.ckpt")


def test_a_sidecar_that_is_far_too_large_is_not_parsed(tmp_path):
    (tmp_path / "a.yaml").write_text("model: {}\n" + "#" * AT_MOST_BYTES)
    with pytest.raises(NotACheckpoint, match="too large for a model's configuration"):
        read_sidecar(tmp_path / "a.ckpt")
