"""The promises of README.md, CONTRIBUTING.md, SECURITY.md, CHANGELOG.md and the pages of `docs/`.

Python blocks run, commands and their options exist, data blocks parse, links and named files are there, and the schema
of bundle.json describes what is written and read. CONTRIBUTING.md says how a block says that it needs something.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import json
import os
import re
import shlex
import sys
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import MISSING, fields, is_dataclass
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple, get_args, get_type_hints

import click
import jsonschema
import pytest
import yaml

from mechm.cli import cli

REPOSITORY = Path(__file__).parent.parent
PAGES = [
    *(REPOSITORY / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md")),
    *sorted((REPOSITORY / "docs").glob("*.md")),
]
LANGUAGES = {"python", "bash", "console", "json", "toml", "yaml", "mermaid", "text", "make"}
TOP_FOLDERS = ("mechm/", "export/", "runtime/", "benchmarks/", "docs/", "examples/", "sample/", "tests/", "rivals/")

Manifest = dict[str, Any]


class Block(NamedTuple):
    """A fenced code block; needs: what it needs beyond a bundle and the sample, empty where nothing."""

    page: Path
    line: int
    language: str
    code: str
    needs: str


def blocks_of(page: Path) -> list[Block]:
    found, lines = [], page.read_text(encoding="utf-8").splitlines()
    opened: int | None = None
    for number, line in enumerate(lines):
        if line.lstrip().startswith("```"):
            if opened is None:
                opened = number
                continue
            above = re.fullmatch(r"<!-- needs: (.+) -->", lines[opened - 1]) if opened else None
            language = lines[opened].strip().removeprefix("```").partition(" ")[0]
            code = "\n".join(lines[opened + 1 : number]) + "\n"
            found.append(Block(page, opened + 1, language, code, above[1] if above else ""))
            opened = None
    assert opened is None, f"{page.name}: the block of line {opened} has no end"
    return found


BLOCKS = [block for page in PAGES for block in blocks_of(page)]


def of_language(*languages: str) -> list[Block]:
    return [block for block in BLOCKS if block.language in languages]


def where(block: Block) -> str:
    return f"{block.page.name}:{block.line}"


def page_id(page: Path) -> str:
    return page.relative_to(REPOSITORY).as_posix()


def prose_of(page: Path) -> str:
    """A page without its code blocks."""
    return re.sub(r"^ *```.*?^ *```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)


# Code blocks


def test_every_block_names_its_language() -> None:
    assert [where(block) for block in BLOCKS if block.language not in LANGUAGES] == []


def test_nothing_is_left_to_fill_in() -> None:
    assert [page.name for page in PAGES if re.search(r"@@|TODO|FIXME|XXX", page.read_text(encoding="utf-8"))] == []


PYTHON_PAGES = sorted({block.page for block in of_language("python")} - {REPOSITORY / "README.md"})


@pytest.mark.parametrize("page", PYTHON_PAGES, ids=page_id)
def test_the_python_of_a_page_runs(
    page: Path, repository: Path, tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one namespace and in this process, which has loaded what they import."""
    (tmp_path / "sample").symlink_to(repository / "sample")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MECHM_BUNDLE", str(tiny_bundle))
    module = ModuleType("page")  # where dataclasses and annotations of a block look for their module
    monkeypatch.setitem(sys.modules, "page", module)
    for block in of_language("python"):
        if block.page == page and not block.needs:
            padding = "\n" * block.line  # so that a traceback names the page's line
            exec(compile(padding + block.code, str(page), "exec"), vars(module))  # noqa: S102 - the project's own pages


@pytest.mark.parametrize("block", [b for b in of_language("python") if b.needs], ids=where)
def test_python_that_needs_more_imports_what_exists(block: Block) -> None:
    for node in ast.walk(ast.parse(block.code, str(block.page))):
        if isinstance(node, ast.ImportFrom) and node.module and (node.module.split(".")[0]).startswith("mechm"):
            module = importlib.import_module(node.module)
            for alias in node.names:
                assert hasattr(module, alias.name), f"{where(block)}: {node.module} has no {alias.name}"
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names = [node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            for name in names:
                assert name is not None
                assert importlib.util.find_spec(name.partition(".")[0]) is not None, f"{where(block)}: {name}"


@pytest.mark.parametrize("block", of_language("json", "toml", "yaml"), ids=where)
def test_data_blocks_parse(block: Block) -> None:
    {"json": json.loads, "toml": tomllib.loads, "yaml": yaml.safe_load}[block.language](block.code)


@pytest.mark.parametrize("block", of_language("mermaid"), ids=where)
def test_diagrams_have_a_kind_and_closed_brackets(block: Block) -> None:
    assert re.match(r"(flowchart|sequenceDiagram|classDiagram|stateDiagram-v2|graph)\b", block.code)
    text = re.sub(r'"[^"]*"', '""', block.code)
    for opening, closing in ("()", "[]", "{}"):
        assert text.count(opening) == text.count(closing), where(block)
    assert len(re.findall(r"^\s*subgraph\b", text, re.M)) == len(re.findall(r"^\s*end\b", text, re.M))


# Shell commands


def shell_commands() -> Iterator[tuple[str, list[str]]]:
    """Every simple command of the shell blocks, with where it stands."""
    for block in of_language("bash", "console"):
        lines = block.code.replace("\\\n", " ").splitlines()
        if block.language == "console":
            lines = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
        for line in lines:
            lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
            lexer.whitespace_split = True
            words: list[str] = []
            for word in [*lexer, ";"]:
                if word in (";", "&&", "||", "|", "&"):
                    if words:
                        yield where(block), words
                    words = []
                else:
                    words.append(word)


COMMANDS = [(place, words) for place, words in shell_commands()]


def mechm_commands() -> list[tuple[str, list[str]]]:
    """Those of `mechm`, also behind torchrun, without the word itself."""
    return [(place, words[words.index("mechm") + 1 :]) for place, words in COMMANDS if "mechm" in words]


def checked(place: str, words: list[str]) -> None:
    """Fail where a `mechm` command, an option or the value of a choice does not exist."""
    command: click.Command = cli
    context = click.Context(cli, info_name="mechm")
    rest = list(words)
    while isinstance(command, click.Group) and rest and not rest[0].startswith("-"):
        name = rest.pop(0)
        found = command.get_command(context, name)
        assert found is not None, f"{place}: mechm has no {' '.join(words)}"
        command, context = found, click.Context(found, info_name=name, parent=context)
    if rest == ["..."]:
        return
    options = {name: p for p in command.params if isinstance(p, click.Option) for name in (*p.opts, *p.secondary_opts)}
    unknown = {word for word in rest if re.match(r"--?[A-Za-z]", word)} - options.keys() - {"--help", "-h"}
    assert not unknown, f"{place}: mechm {' '.join(words)}"
    for option, value in pairwise(rest):
        kind = options[option].type if option in options else None
        if isinstance(kind, click.Choice):
            assert value in kind.choices, f"{place}: {option} {value}"


def test_commands_exist_and_take_what_is_shown() -> None:
    shown = mechm_commands()
    assert len(shown) > 40
    assert sum(place.startswith("README.md") for place, _ in shown) >= 2
    for place, words in shown:
        checked(place, words)


@pytest.mark.parametrize(
    "words", [["analyse", "x"], ["analyze", "x", "--speed", "2"], ["analyze", "x", "--llm", "gpt"], ["bundle", "zip"]]
)
def test_a_command_that_does_not_exist_is_noticed(words: list[str]) -> None:
    with pytest.raises(AssertionError):
        checked("here", words)


def test_commands_in_the_prose_exist() -> None:
    for page in PAGES:
        for text in re.findall(r"`(mechm [a-z][^`]*)`", prose_of(page)):
            words = [w for w in text.split()[1:] if not re.fullmatch(r"[A-Z_]+|\.\.\.", w)]
            checked(page.name, words if " ..." not in text else [*words, "..."])


def test_targets_of_make_exist(repository: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (repository / "Makefile").read_text(encoding="utf-8"), re.M))
    shown = {
        word for _, words in COMMANDS if words[0] == "make" for word in words[1:] if re.fullmatch(r"[a-z-]+", word)
    }
    shown |= {name for page in PAGES for name in re.findall(r"`make ([a-z-]+)", prose_of(page))}
    assert shown >= {"demo", "test", "docs"}
    assert shown <= targets


def test_scripts_exist_and_take_the_options_that_are_shown(repository: Path) -> None:
    scripts = [(place, words[1:]) for place, words in COMMANDS if words[0] == "python" and words[1].endswith(".py")]
    assert scripts
    for place, (name, *arguments) in scripts:
        source = (repository / name).read_text(encoding="utf-8")
        unknown = [word for word in arguments if word.startswith("--") and f'"{word}"' not in source]
        assert not unknown, f"{place}: {name} {unknown}"


def test_extras_exist(repository: Path) -> None:
    project = tomllib.loads((repository / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    shown = [
        extra
        for page in PAGES
        for extras in re.findall(r"mechm\[([a-z,-]+)\]", page.read_text(encoding="utf-8"))
        for extra in extras.split(",")
    ]
    assert shown
    assert set(shown) <= set(project["optional-dependencies"])


# Links and files


def anchors_of(page: Path) -> set[str]:
    """Anchors of headings, as GitHub and MkDocs make them, and those of the API and command pages."""
    titles = re.findall(r"^#{1,6} (.+)$", prose_of(page), re.M)
    anchors = {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}
    return anchors | set(re.findall(r"^::: (\S+)", page.read_text(encoding="utf-8"), re.M))


def links() -> Iterator[tuple[Path, str]]:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)\s]+)\)", prose_of(page)):
            yield page, target


def test_links_lead_somewhere() -> None:
    for page, target in links():
        if re.match(r"https?:", target):
            continue
        name, _, anchor = target.partition("#")
        path = (page.parent / name).resolve() if name else page
        assert path.exists(), f"{page.name}: {target}"
        assert path.is_relative_to(REPOSITORY), f"{page.name}: {target}"
        if anchor:
            assert anchor in anchors_of(path), f"{page.name}: {target}"


def test_files_named_in_the_text_exist(repository: Path) -> None:
    for page in PAGES:
        for name in re.findall(r"`([A-Za-z_.]+/[A-Za-z0-9_./-]*)`", prose_of(page)):
            top = name.startswith(TOP_FOLDERS) and not name.startswith("rivals/")
            if top and "<" not in name:
                assert (repository / name).exists(), f"{page.name}: {name}"


def test_modules_named_in_the_text_exist() -> None:
    for page in PAGES:
        for name in re.findall(r"`((?:mechm|mechm_runtime|mechm_export)(?:\.[A-Za-z_]+)+)`", prose_of(page)):
            parts = name.split(".")
            for end in range(len(parts), 0, -1):
                try:
                    spec = importlib.util.find_spec(".".join(parts[:end]))
                except ModuleNotFoundError:
                    continue
                if spec is not None:
                    break
            if end < len(parts):
                module: Any = importlib.import_module(".".join(parts[:end]))
                for attribute in parts[end:]:
                    assert hasattr(module, attribute), f"{page.name}: {name}"
                    module = getattr(module, attribute)


def test_the_file_map_names_what_is_there(repository: Path) -> None:
    (listing,) = [block.code for block in BLOCKS if block.code.startswith("mechm/  ")]
    named = [line.split()[0] for line in listing.splitlines()]
    for name in named:
        assert (repository / name).is_dir(), name
    assert len(named) == 8


@pytest.mark.parametrize(
    ("package", "folder"),
    [("mechm_runtime", "runtime/mechm_runtime"), ("mechm", "mechm"), ("mechm_export", "export/mechm_export")],
)
def test_the_architecture_names_every_folder(package: str, folder: str, repository: Path) -> None:
    text = (repository / "docs" / "architecture.md").read_text(encoding="utf-8")
    section = text.split(f"### {package}\n")[1].split("\n## ")[0].split("\n### ")[0]
    named = {name for row in re.findall(r"^\| (`.+?) \|", section, re.M) for name in re.findall(r"`([a-z_]+)/?`", row)}
    there = {
        path.stem
        for path in (repository / folder).iterdir()
        if (path.is_dir() and (path / "__init__.py").is_file()) or (path.suffix == ".py" and path.stem != "__init__")
    }
    assert named == there


def test_every_page_is_in_the_navigation(repository: Path) -> None:
    text = (repository / "mkdocs.yml").read_text(encoding="utf-8")
    shown = set(re.findall(r"^ +- (?:.*: )?([a-z-]+\.md)$", text, re.M))
    assert shown == {page.name for page in (repository / "docs").glob("*.md")}


def test_the_api_page_has_the_public_list(repository: Path) -> None:
    import mechm_runtime

    text = (repository / "docs" / "python-api.md").read_text(encoding="utf-8")
    shown = re.findall(r"^::: mechm_runtime\.(\w+)$", text, re.M)
    assert len(shown) == len(set(shown))
    assert set(shown) == set(mechm_runtime.__all__)


def test_the_page_of_engines_has_every_engine(repository: Path) -> None:
    import mechm_runtime

    text = (repository / "docs" / "engines.md").read_text(encoding="utf-8")
    shown = re.findall(r"^\| `([a-z-]+)` \|", text, re.M)
    assert set(shown) == set(get_args(mechm_runtime.EngineName))


# What the site is built with


@pytest.fixture(scope="module")
def tools() -> Callable[[str], Any]:
    """`tools(name)`: a module of docs/tools."""

    def load(name: str) -> Any:
        spec = importlib.util.spec_from_file_location(f"docs_{name}", REPOSITORY / "docs" / "tools" / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load


def test_the_reference_has_every_command_and_option(tools: Callable[[str], Any]) -> None:
    text = "\n".join(tools("commands").reference(cli, click.Context(cli, info_name="mechm")))

    def visit(command: click.Command, context: click.Context) -> int:
        assert f" {context.command_path} {{ #" in text
        options = [p for p in command.params if isinstance(p, click.Option) and not p.hidden]
        for option in options:
            assert re.search(rf"^`.*{re.escape(option.opts[0])}\b.*`$", text, re.M), option.opts
        below = command.list_commands(context) if isinstance(command, click.Group) else []
        assert isinstance(command, click.Group) or not below
        found = [(name, command.get_command(context, name)) for name in below] if below else []  # type: ignore[attr-defined]
        return 1 + sum(visit(c, click.Context(c, info_name=name, parent=context)) for name, c in found if c)

    assert visit(cli, click.Context(cli, info_name="mechm")) > 40
    assert "\b" not in text


def test_help_texts_keep_their_lines_where_they_are_preformatted(tools: Callable[[str], Any]) -> None:
    as_markdown = tools("commands").as_markdown
    assert as_markdown("one\ntwo") == "one two"
    assert as_markdown("\b\nmechm a\nmechm b") == "```text\nmechm a\nmechm b\n```"
    assert as_markdown("\b\nExamples:\n  mechm a") == "Examples:\n\n```text\nmechm a\n```"
    assert as_markdown("\b\n- one;\n  more\n- two") == "- one;\n  more\n- two"
    assert as_markdown("a <b> `<c>`") == "a \\<b\\> `<c>`"


def test_fields_of_docstrings_become_lists(tools: Callable[[str], Any]) -> None:
    pytest.importorskip("griffe")
    with_lists = tools("griffe_fields").with_lists
    text = "Do it.\n\na, b: what they\n    are. c: another.\nother: words.\nRaises: E."
    assert with_lists(text, {"a", "b", "c"}).splitlines() == [
        "Do it.",
        "",
        "",
        "- `a`, `b`: what they",
        "  are.",
        "- `c`: another.",
        "  other: words.",
        "- **Raises**: E.",
    ]


# The schema of bundle.json


@pytest.fixture(scope="module")
def schema(repository: Path) -> Manifest:
    path = repository / "runtime" / "mechm_runtime" / "bundle" / "bundle.schema.json"
    found: Manifest = json.loads(path.read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator.check_schema(found)
    return found


def wrong(schema: Manifest, manifest: Manifest) -> list[str]:
    return [error.json_path for error in jsonschema.Draft202012Validator(schema).iter_errors(manifest)]


@pytest.fixture
def manifest(tiny_bundle: Path) -> Manifest:
    found: Manifest = json.loads((tiny_bundle / "bundle.json").read_text(encoding="utf-8"))
    return found


def test_the_schema_describes_a_real_manifest(schema: Manifest, manifest: Manifest) -> None:
    assert wrong(schema, manifest) == []
    assert set(manifest) <= set(schema["properties"])


def test_the_schema_describes_the_default_bundle(schema: Manifest) -> None:
    """The one with a Llama, where MECHM_BUNDLE names it or `make demo` built it."""
    from mechm_runtime.bundle.manifest import MANIFEST
    from mechm_runtime.system.cache_dir import cache_dir

    folder = Path(os.environ.get("MECHM_BUNDLE", cache_dir() / "bundles" / "small"))
    if not (folder / MANIFEST).is_file():
        pytest.skip("no default bundle: make bundle")
    assert wrong(schema, json.loads((folder / MANIFEST).read_text(encoding="utf-8"))) == []


def set_at(manifest: Manifest, path: str, value: Any) -> None:
    *keys, last = path.split(".")
    place: Any = manifest
    for key in keys:
        place = place[key]
    if value is MISSING:
        del place[last]
    else:
        place[last] = value


@pytest.mark.parametrize(
    ("path", "value", "at"),
    [
        ("labels", ["joy"], "$.labels"),
        ("schema_version", 2, "$.schema_version"),
        ("id", "tiny", "$.id"),
        ("files", MISSING, "$"),
        ("decision.pair_threshold", "high", "$.decision.pair_threshold"),
        ("decision.pair_threshold", MISSING, "$.decision"),
        ("decision.another", 1.0, "$.decision"),
        ("preprocessing.log_mel.n_mels", 80.5, "$.preprocessing.log_mel.n_mels"),
        ("preprocessing.scene.mean", [0.5], "$.preprocessing.scene.mean"),
        ("parts.fusion", MISSING, "$.parts"),
        ("parts.detector", MISSING, "$.parts"),
        ("parts.text.files", {"fp32": "../text.onnx"}, "$.parts.text.files.fp32"),
        ("parts.text.files", {"fp32": "/text.onnx"}, "$.parts.text.files.fp32"),
        ("parts.text.default", "int4", "$.parts.text.default"),
        ("files", {"a": {"sha256": "0" * 63, "size_bytes": 1}}, "$.files.a.sha256"),
        ("llama", {"tokenizer": "llm/tokenizer.json"}, "$.llama"),
        ("engines", [{"part": "text"}], "$.engines[0]"),
        ("card", {"learned": ["smell"]}, "$.card.learned[0]"),
    ],
)
def test_a_wrong_manifest_does_not_fit_the_schema(
    path: str, value: Any, at: str, schema: Manifest, manifest: Manifest
) -> None:
    set_at(manifest, path, value)
    assert at in wrong(schema, manifest)


def test_the_schema_has_the_fields_that_the_runtime_reads(schema: Manifest) -> None:
    """All configurations of a bundle, found from the annotations of `Bundle`; the reader wants exactly their fields."""
    from mechm_runtime.bundle.manifest import Bundle

    seen: set[str] = set()

    def visit(hint: Any) -> None:
        for inner in get_args(hint):
            visit(inner)
        if not (isinstance(hint, type) and is_dataclass(hint)) or hint.__name__ in seen:
            return
        for inner in get_type_hints(hint).values():
            visit(inner)
        if hint.__name__ not in schema["$defs"]:
            return
        seen.add(hint.__name__)
        described = set(schema["$defs"][hint.__name__]["properties"])
        own = {field.name for field in fields(hint)}
        assert own <= described, hint
        assert described - own <= {"card", "scores", "projector_card"}, hint

    visit(Bundle)
    for hint in get_type_hints(Bundle).values():
        visit(hint)
    kinds = {name for name in schema["$defs"] if name not in ("Path", "Sha256", "Tensor", "Part", "File")}
    assert seen - {"Tensor"} == kinds
