import logging
import runpy
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

import melora.cli.inspect as inspect_command
from melora import MeloraError

HEAVY = ("torch", "transformers", "peft", "melora", "rich")


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"], ["--version"], ["no-such-command"]])
def test_help_and_mistyped_commands_load_nothing_heavy(arguments: list[str]) -> None:
    code = (
        "import sys, melora_cli\n"
        f"try:\n    melora_cli.main({arguments!r})\nexcept SystemExit:\n    pass\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_a_warning_while_bitsandbytes_is_imported_is_not_shown() -> None:
    """On CPUs with AVX512-BF16 it has one for every command: PEFT imports it, long before the command's body runs."""
    code = (
        "import logging, sys, melora_cli\n"
        "class Warns:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name == 'bitsandbytes.backends':\n"
        "            print(name)\n"
        "            logging.getLogger(name).warning('no kernels')\n"
        "sys.meta_path.insert(0, Warns())\n"
        "melora_cli.main(['inspect', '/none'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "bitsandbytes.backends\n"
    assert done.stderr.startswith("error: /none: ")
    assert done.stderr.count("\n") == 1


def test_python_m_melora_is_the_same_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["melora", "inspect", "/none"])
    with pytest.raises(SystemExit) as stop:
        runpy.run_module("melora", run_name="__main__", alter_sys=True)
    assert stop.value.code == 2
    assert capsys.readouterr().err.startswith("error: /none: no adapter_config.json in it")


@pytest.mark.parametrize("command", ["train", "evaluate", "export", "inspect"])
def test_every_command_explains_itself(melora: Callable[..., Any], command: str) -> None:
    done = melora(command, "--help")
    assert done.code == 0
    assert "--debug" in done.out


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["trian"], "invalid choice"),
        ([], "COMMAND"),
        (["train", "r.yaml", "--overwrit"], "train: unknown argument '--overwrit'; `melora --help` shows"),
        (["inspect", "a", "b"], "unknown argument 'b'"),
        (["export", "a"], "--to"),
    ],
)
def test_bad_usage_is_code_2(melora: Callable[..., Any], arguments: list[str], told: str) -> None:
    done = melora(*arguments)
    assert done.code == 2
    assert told in done.err
    assert done.err.count("\n") == 1


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (MeloraError("what\nwhere"), 2, "error: what where\n"),
        (RuntimeError("out of luck"), 1, "error: RuntimeError: out of luck (--debug shows where)\n"),
        (
            ModuleNotFoundError("no", name="pandas"),
            1,
            "error: pandas is not installed; run `pip install 'melora[train]'`",
        ),
        (KeyboardInterrupt(), 130, "interrupted\n"),
    ],
)
def test_every_error_is_one_line_and_has_its_code(
    melora: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, line: str
) -> None:
    def fail(*_: object) -> int:
        raise error

    monkeypatch.setattr(inspect_command, "run", fail)
    done = melora("inspect", "x")
    assert done.code == code
    assert done.err.startswith(line)
    assert done.err.count("\n") == 1
    assert "Traceback" not in done.err
    if code != 130:
        assert "Traceback" in melora("inspect", "x", "--debug").err


def test_notes_go_to_stdout_and_warnings_to_stderr(melora: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def speak(*_: object) -> int:
        logging.getLogger("melora.x").info("a note")
        logging.getLogger("melora.x").warning("a warning")
        return 0

    monkeypatch.setattr(inspect_command, "run", speak)
    done = melora("inspect", "x")
    assert (done.out, done.err) == ("a note\n", "warning: a warning\n")
