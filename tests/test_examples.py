"""What --help shows to be typed can be typed."""

import shlex

import pytest

from dreambooth_ext import cli
from dreambooth_ext.commands import COMMANDS
from dreambooth_ext.commands.examples import EXAMPLES, PROGRAM


def test_each_command_has_an_example():
    assert set(EXAMPLES) == set(COMMANDS) and all(EXAMPLES.values())


@pytest.mark.parametrize(("command", "line"), [(command, line) for command, lines in EXAMPLES.items() for line in lines])
def test_an_example_is_understood_and_shown_whole(command, line, capsys):
    words = shlex.split(line.partition(" > ")[0])  # what follows is for the shell
    assert cli._parsed([command, *words]).command is COMMANDS[command][0]
    with pytest.raises(SystemExit) as ended:
        cli._parsed([command, "--help"])
    assert ended.value.code == 0 and f"  {PROGRAM} {command} {line}".rstrip() in capsys.readouterr().out.splitlines()
