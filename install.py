"""Adds the libraries that this WebUI lacks, and changes none that it has.

The WebUI runs this at each of its starts. With nothing to do it says nothing and asks nobody.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from dreambooth_ext import needs

PIP_LIMIT_S = 900
# Versions that pip can read. Of others (0.23ubuntu1, say, of a system's own packages) a single one would keep it from everything.
READABLE = re.compile(
    r"v?(\d+!)?\d+(\.\d+)*([-_.]?(a|b|c|rc|alpha|beta|pre|preview)[-_.]?\d*)?(-\d+|[-_.]?(post|rev|r)[-_.]?\d*)?"
    r"([-_.]?dev[-_.]?\d*)?(\+[a-z0-9]+([-_.][a-z0-9]+)*)?", re.IGNORECASE)


def main() -> None:
    lacking = needs.missing()
    if not lacking:
        return
    names = ", ".join(need.name for need in lacking)
    try:
        added = install(needs.requested(lacking))
    except (OSError, subprocess.SubprocessError) as error:
        print(f"Dreambooth: {names} could not be installed ({_last_line(error)}). "
              f"When the network is there, run: {needs.command(lacking)}")
        return
    print(f"Dreambooth: installed {', '.join(added) or names}; no installed package was changed.")


def install(requirements: list[str]) -> list[str]:
    """Install with every installed version as a constraint; returns what was added, as name==version."""
    before = _installed()
    with tempfile.TemporaryDirectory() as folder:
        constraints = Path(folder) / "constraints.txt"
        constraints.write_text("\n".join(f"{name}=={version}" for name, version in before.items()
                                         if READABLE.fullmatch(version)), encoding="utf-8")
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input",
                   "--retries", "1", "--timeout", "15", "--prefer-binary", "--constraint", str(constraints)]
        index = os.environ.get("INDEX_URL")  # as the WebUI's own installer reads it
        subprocess.run([*command, *(["--index-url", index] if index else []), *requirements],
                       check=True, capture_output=True, text=True, timeout=PIP_LIMIT_S)
    after = _installed()
    return sorted(f"{name}=={version}" for name, version in after.items() if name not in before)


def _installed() -> dict[str, str]:
    found = {}
    for distribution in metadata.distributions():
        name, version = distribution.metadata["Name"], distribution.version
        if name and version:
            found.setdefault(name, version)  # the first on the path is the one that is imported
    return found


def _last_line(error: Exception) -> str:
    output = (getattr(error, "stderr", None) or "").strip()
    return output.splitlines()[-1] if output else type(error).__name__


if __name__ == "__main__":
    main()
