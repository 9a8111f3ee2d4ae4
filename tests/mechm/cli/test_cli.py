"""The `mechm` command as a whole: help in a light install, usage errors, and how the library's errors look."""

from __future__ import annotations

import json
import sys
from types import ModuleType

import click
import pytest

from mechm.cli import COMMANDS, main
from mechm_runtime.errors import BundleError, MechmError, ProviderError

HEAVY = ("torch", "transformers", "peft", "onnx", "vllm", "accelerate", "h5py", "gguf", "huggingface_hub", "onnxscript")

WALK = """
import contextlib, io, json
import click
from mechm.cli import cli

def walk(command, path):
    page, error = io.StringIO(), ""
    try:
        with contextlib.redirect_stdout(page):
            cli.main([*path, "--help"], prog_name="mechm", standalone_mode=False)
    except BaseException as raised:
        error = repr(raised)
    yield {"path": path, "page": page.getvalue(), "error": error, "help": (command and command.help) or ""}
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            try:
                below = command.get_command(context, name)
            except ImportError:
                below = None
            yield from walk(below, [*path, name])

print(json.dumps(list(walk(cli, []))))
"""


def test_every_help_page_works_in_a_light_install(fresh_python):
    done = fresh_python(WALK, without=HEAVY)
    assert done.returncode == 0, done.stderr
    pages = json.loads(done.stdout)
    assert {page["path"][0]: page["error"] for page in pages if page["error"]} == {}
    assert {page["path"][0] for page in pages if page["path"]} == set(COMMANDS)
    for page in pages:
        assert page["page"].startswith(" ".join(["Usage: mechm", *page["path"]])), page
        assert page["help"].strip(), f"{page['path']} has no help text"


def test_the_light_install_of_these_tests_is_light(fresh_python):
    """The packages that the help pages must not need are here, and hiding them works: else the test proves nothing."""
    assert fresh_python("import h5py").returncode == 0
    done = fresh_python("import h5py", without=HEAVY)
    assert "No module named 'h5py'" in done.stderr


def test_help_of_the_whole_imports_no_command(fresh_python):
    done = fresh_python(
        "import sys\nfrom mechm.cli import cli\ncli.main(['--help'], standalone_mode=False)\n"
        "print(sorted(m for m in sys.modules if m.startswith(('mechm.cli.', 'mechm_export', 'numpy', 'rich'))))"
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"
    for name, (_, _, line) in COMMANDS.items():
        assert name in done.stdout
        assert line.split()[0] in done.stdout


def test_an_unknown_command_exits_with_2(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["analyse-everything"])
    assert ended.value.code == 2
    assert "No such command" in capsys.readouterr().err


def test_the_version_is_the_distributions(capsys):
    from importlib.metadata import version

    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out.split()[-1] == version("mechm")


@pytest.mark.parametrize(
    ("error", "code", "lines"),
    [
        (BundleError("bundle.json is missing", hint="mechm export bundle"), 2, 2),
        (ProviderError("CUDAExecutionProvider did not load"), 1, 1),
    ],
)
def test_errors_become_one_line_a_hint_and_an_exit_code(
    error: MechmError, code: int, lines: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    @click.command()
    def fail() -> None:
        raise error

    module = ModuleType("commands_of_this_test")
    module.fail = fail  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(COMMANDS, "fail", (module.__name__, "fail", "Fails."))
    with pytest.raises(SystemExit) as ended:
        main(["fail"])
    assert ended.value.code == code
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.splitlines() == [f"error: {error}", f"hint: {error.hint}"][:lines]
