"""What is made for downloads does not pile up."""

import subprocess
import sys
from pathlib import Path

from dreambooth_ext.outbox import Outbox


def test_only_the_newest_folders_stay():
    outbox = Outbox(kept=3)
    folders = [outbox.folder() for _ in range(5)]
    for folder in folders[2:]:
        (folder / "rex-failure.zip").write_bytes(b"x")
    assert [folder.is_dir() for folder in folders] == [False, False, True, True, True]
    newest = outbox.folder()
    assert not folders[2].exists() and (folders[3] / "rex-failure.zip").is_file() and newest.is_dir()


def test_none_is_left_when_the_process_has_ended():
    code = "from dreambooth_ext.outbox import OUTBOX; f = OUTBOX.folder(); (f / 'a.zip').write_bytes(b'x'); print(f)"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout.strip() and not Path(told.stdout.strip()).exists() and told.stderr == ""
