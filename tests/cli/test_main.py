from __future__ import annotations

import os
import signal
import subprocess
import sys
import types

import click
import pytest
from click.testing import CliRunner

import avssl
from avssl.cli.main import COMMANDS, LazyCommand, LazyGroup, main
from avssl.errors import ConfigError


@pytest.fixture
def group(monkeypatch):
    """A group whose only command calls `body`."""

    def make(body):
        module = types.ModuleType("avssl_test_command")
        module.work = click.command(name="work")(body)
        monkeypatch.setitem(sys.modules, "avssl_test_command", module)
        return LazyGroup(name="avssl", lazy={"work": LazyCommand("avssl_test_command:work", "Works.")})

    return make


def run(*arguments: str, **options) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, timeout=60, check=False, **options
    )


def test_help_lists_all_commands_with_examples():
    result = CliRunner().invoke(main, ["--help"])
    assert result.exit_code == 0
    for name, command in COMMANDS.items():
        assert f"  {name}" in result.stdout
        assert command.help in result.stdout
    assert "Examples:\n" in result.stdout
    assert CliRunner().invoke(main, ["-h"]).stdout == result.stdout


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_with_examples(name):
    result = CliRunner().invoke(main, [name, "-h"])
    assert result.exit_code == 0
    assert result.stdout.startswith(f"Usage: avssl {name} ")
    assert f"Examples:\n    avssl {name}" in result.stdout


def test_version_is_that_of_the_package():
    assert CliRunner().invoke(main, ["--version"]).stdout == f"avssl {avssl.__version__}\n"


def test_module_and_command_are_the_same_and_import_nothing_heavy():
    code = (
        "import sys, runpy; sys.argv = ['whatever', '--help']\n"
        "try: runpy.run_module('avssl', run_name='__main__')\n"
        "finally: print([m for m in ('torch', 'numpy', 'av', 'rich', 'pydantic') if m in sys.modules])"
    )
    result = run("-c", code)
    assert result.stdout.startswith("Usage: avssl [OPTIONS] COMMAND")
    assert result.stdout.endswith("[]\n")
    assert run("-m", "avssl", "--help").stdout + "[]\n" == result.stdout


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("docter", "Error: No such command 'docter'. Did you mean 'doctor'?"),
        ("train", "Error: No such command 'train'. Did you mean 'pretrain'?"),
        ("xyz", f"Error: No such command 'xyz'. Choose one of {', '.join(COMMANDS)}."),
    ],
)
def test_unknown_command_is_answered_with_the_nearest(name, answer):
    result = CliRunner().invoke(main, [name])
    assert result.exit_code == 2
    assert answer in result.stderr


def test_error_on_purpose_is_one_line_with_status_2(group):
    def body() -> None:
        raise ConfigError("x.yaml: lr: must be > 0; got -1")

    result = CliRunner().invoke(group(body), ["work"])
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == "avssl: error: x.yaml: lr: must be > 0; got -1\n"


def test_each_of_several_complaints_is_a_line(group):
    def body() -> None:
        raise ConfigError("a: wrong\nb: wrong")

    result = CliRunner().invoke(group(body), ["work"])
    assert result.stderr == "avssl: error: a: wrong\navssl: error: b: wrong\n"


def test_defect_keeps_its_traceback(group):
    def body() -> None:
        raise RuntimeError("a defect")

    result = CliRunner().invoke(group(body), ["work"])
    assert isinstance(result.exception, RuntimeError)


def test_interrupt_exits_130_with_a_short_message(group):
    def body() -> None:
        raise KeyboardInterrupt

    result = CliRunner().invoke(group(body), ["work"])
    assert result.exit_code == 130
    assert result.stderr.strip() == "avssl: interrupted"


def test_interrupt_of_a_process_leaves_no_traceback(tmp_path):
    code = (
        "import sys, types, time, click\n"
        "from avssl.cli.main import LazyCommand, LazyGroup\n"
        "@click.command()\n"
        "def work():\n"
        "    print('ready', flush=True)\n"
        "    time.sleep(60)\n"
        "sys.modules['m'] = types.SimpleNamespace(work=work)\n"
        "LazyGroup(lazy={'work': LazyCommand('m:work', '')})(['work'])"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert errors.strip() == "avssl: interrupted"


def test_closed_pipe_is_quiet():
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as closed:
        result = subprocess.run(
            [sys.executable, "-m", "avssl", "--help"],
            stdout=closed,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
            check=False,
        )
    assert result.returncode != 0
    assert result.stderr == ""
