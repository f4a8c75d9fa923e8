"""A power cut, simulated: whatever a process wrote and did not fsync may be gone, whole or in part.

`main(JOURNAL N SEED ROOT ARGUMENTS)`, in a process of its own, runs the command line and cuts the power at the
N-th moment at which something reaches the disk (fsync, rename), just before or just after it. N of 0 counts the moments.
`lose(journal, seed)` then does to ROOT what a disk may do:

- a file that was never fsynced is cut off anywhere, or empty, or full of zeros;
- a file that grew since its fsync keeps what was synced and any part of the rest;
- a rename whose folder was not fsynced may not have happened, and neither may a file or folder made in such a folder.

Deleting is not undone: a file that comes back under a hidden name hurts nobody, and none of ours comes back under another.
"""

import json
import os
import random
import shutil
from pathlib import Path

CUT = 137


class Disk:
    """What is safe so far. Inodes are files, since names change."""

    def __init__(self, root, journal, cut_at, seed):
        self.root, self.journal, self.cut_at = Path(root).resolve(), Path(journal), cut_at
        self.draws = random.Random(seed)
        self.moments = 0
        self.known = {str(path.lstat().st_ino): self._mark(path) for path in self.root.rglob("*")}
        self.renames = []  # not yet safe: source, destination, copy of what stood there
        self.safe_entries = {str(path) for path in [self.root, *self.root.rglob("*")]}
        self.snapshots = []  # promised: their folder was renamed and synced
        self._fsync, self._replace = os.fsync, os.replace
        os.fsync, os.replace = self.fsync, self.replace

    @staticmethod
    def _mark(path):
        facts = path.lstat()
        return [facts.st_size, facts.st_mtime_ns]

    def _inside(self, path):
        return self.root in Path(path).parents or Path(path) == self.root

    def moment(self, act):
        self.moments += 1
        if self.moments == self.cut_at and self.draws.random() < 0.5:
            self.cut()
        result = act()
        if self.moments == self.cut_at:
            self.cut()
        return result

    def fsync(self, handle):
        path = Path(os.readlink(f"/proc/self/fd/{handle}"))
        if not self._inside(path):
            return self._fsync(handle)
        return self.moment(lambda: self._synced(handle, path))

    def _synced(self, handle, path):
        self._fsync(handle)
        if path.is_dir():
            self.renames = [entry for entry in self.renames if Path(entry["destination"]).parent != path]
            self.safe_entries.update(str(child) for child in path.iterdir())
            if path.name == "checkpoints":
                self.snapshots = sorted(child.name for child in path.iterdir() if child.name.startswith("step-"))
        else:
            self.known[str(os.fstat(handle).st_ino)] = [os.fstat(handle).st_size, os.fstat(handle).st_mtime_ns]

    def replace(self, source, destination):
        source, destination = Path(source).absolute(), Path(destination).absolute()
        if not self._inside(destination):
            return self._replace(source, destination)
        return self.moment(lambda: self._replaced(source, destination))

    def _replaced(self, source, destination):
        former = None
        if destination.is_file():
            former = str(self.journal.parent / f"former-{self.moments}")
            os.link(destination, former)
        was_safe = str(destination) in self.safe_entries and former is not None
        self._replace(source, destination)
        self.renames.append({"source": str(source), "destination": str(destination), "former": former})
        if not was_safe:
            self.safe_entries.discard(str(destination))
        moved = [entry for entry in self.safe_entries if Path(source) in Path(entry).parents]
        self.safe_entries.update(str(destination / Path(entry).relative_to(source)) for entry in moved)

    def cut(self):
        self.journal.write_text(json.dumps({"root": str(self.root), "known": self.known, "renames": self.renames,
                                            "safe": sorted(self.safe_entries), "snapshots": self.snapshots}))
        os._exit(CUT)


def lose(journal, seed):
    """Do to the folder what the disk may do; returns the names of snapshots that were promised before the cut."""
    facts, draws = json.loads(Path(journal).read_text()), random.Random(seed)
    root, known = Path(facts["root"]), facts["known"]
    for entry in reversed(facts["renames"]):
        source, destination = Path(entry["source"]), Path(entry["destination"])
        if destination.exists() and draws.random() < 0.5:
            if source.parent.is_dir() and not source.exists():
                os.replace(destination, source)
            if entry["former"]:
                os.replace(entry["former"], destination)
    safe = set(facts["safe"]) | {entry["source"] for entry in facts["renames"]}
    for path in sorted(root.rglob("*")):
        if not path.exists() or path.is_symlink():
            continue
        if str(path) not in safe and str(path) not in {entry["destination"] for entry in facts["renames"]} and draws.random() < 0.5:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        elif path.is_file():
            _lose_content(path, known.get(str(path.lstat().st_ino)), draws)
    return facts["snapshots"]


def _lose_content(path, mark, draws):
    now = path.stat()
    if mark == [now.st_size, now.st_mtime_ns]:
        return
    synced = min(mark[0], now.st_size) if mark else 0
    kind = draws.choice(("cut", "zeros", "whole"))
    if kind == "whole":
        return
    with path.open("rb+") as stream:
        kept = draws.randint(synced, now.st_size)
        stream.truncate(kept)
        if kind == "zeros":
            stream.truncate(now.st_size)


def main(given):
    journal, cut_at, seed, root, *arguments = given
    disk = Disk(root, journal, int(cut_at), int(seed))
    from dreambooth_ext.cli import run

    code = run(arguments)
    if int(cut_at) == 0:
        Path(journal).write_text(json.dumps({"moments": disk.moments}))
    return code


def write_one(given):
    """A file written carelessly or with care, and the power cut right after."""
    root, journal, kind = given
    disk = Disk(root, journal, 0, 0)
    if kind == "careless":
        Path(root, "t").write_bytes(b"x" * 100_000)
        os.replace(Path(root, "t"), Path(root, "f"))
    else:
        from dreambooth_ext.files import write_atomically

        with write_atomically(Path(root, "f")) as stream:
            stream.write(b"x" * 100_000)
    disk.cut()
