"""A run under Python's own audit, as a process of its own: what it called on the network, and what it wrote of its inputs."""

import json
import os
import sys

NETWORK = ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto")
CHANGES = ("os.remove", "os.rename", "os.truncate", "os.chmod", "os.utime", "os.link", "os.symlink", "shutil.rmtree")
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


def main(given):
    """JOURNAL GUARDED ARGUMENTS: the command line with its network cut; `guarded` paths are separated as in PATH."""
    journal, guarded, *arguments = given
    heard = {"network": [], "written": [], "read": 0}

    def is_guarded(path):
        return isinstance(path, str) and os.path.realpath(path).startswith(tuple(guarded.split(os.pathsep)))

    def hear(event, facts):
        if event in NETWORK:
            heard["network"].append([event, str(facts[-1])])
            raise OSError(101, "Network is unreachable")
        if event == "open" and is_guarded(facts[0]):
            if (facts[2] or 0) & WRITES:
                heard["written"].append("open " + facts[0])
            else:
                heard["read"] += 1
        if event in CHANGES:
            heard["written"] += [event + " " + str(fact) for fact in facts if is_guarded(str(fact))]

    sys.addaudithook(hear)
    from dreambooth_ext.cli import run

    code = run(arguments)
    with open(journal, "w") as stream:
        json.dump(heard, stream)
    return code
