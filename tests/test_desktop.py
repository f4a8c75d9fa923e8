"""The computer's own file manager, which may refuse."""

import os
import subprocess
import sys

import pytest

from dreambooth_ext import desktop
from dreambooth_ext.errors import StorageError


@pytest.mark.parametrize("platform", ["win32", "darwin"])
def test_a_file_manager_that_refuses_is_told_in_a_sentence(tmp_path, monkeypatch, platform):
    def refuses(*arguments, **more):
        raise OSError(1155, "no application is associated with it")

    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(os, "startfile", refuses, raising=False)
    monkeypatch.setattr(subprocess, "Popen", refuses)
    monkeypatch.setattr(desktop.shutil, "which", lambda name: name)
    with pytest.raises(StorageError, match="no application is associated with it") as told:
        desktop.open_folder(tmp_path)
    assert str(tmp_path) in told.value.instead
