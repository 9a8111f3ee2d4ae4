"""MkDocs hooks: scripts without a CDN, files from outside `docs/`, and the reference of the commands.

Pages link files of the repository by their relative path (`../benchmarks/table.py`), which works where the pages are
read as Markdown. In the site, `PUBLISHED` files are copied beside the pages and other ones become links into the
repository.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import click
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.plugins import event_priority
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

sys.path.insert(0, str(Path(__file__).resolve().parent))

from commands import reference

DOCS = Path(__file__).resolve().parent.parent
REPOSITORY = DOCS.parent

PUBLISHED = ("runtime/mechm_runtime/bundle/bundle.schema.json", "benchmarks/results/*.svg")
"""Files outside `docs/` that the site carries: the bundle's schema beside the pages, pictures in `assets/`."""

COMMANDS = "<!-- the commands -->"
"""Where a page has this line, the reference of the commands stands."""

OUTSIDE = re.compile(r"\]\((\.\./[^)#\s]+)(#[^)\s]*)?\)")


@event_priority(-100)
def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Replace scripts that Material would load from a CDN by those in `docs/vendor`, or do without them."""
    worker, mermaid = DOCS / "vendor" / "iframe-worker.js", DOCS / "vendor" / "mermaid.min.js"
    config.extra["polyfills"] = ["vendor/iframe-worker.js"] if worker.is_file() else []
    if mermaid.is_file():
        config.extra_javascript.append("vendor/mermaid.min.js")
    else:
        config.mdx_configs["pymdownx.superfences"]["custom_fences"] = []
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the published files."""
    for path in published():
        files.append(File.generated(config, site_path(path), abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Rewrite links that leave `docs/`, and insert the reference of the commands."""
    if COMMANDS in markdown:
        from mechm.cli import cli

        lines = reference(cli, click.Context(cli, info_name="mechm"))
        markdown = markdown.replace(COMMANDS, "\n".join(lines))
    inside = {path: site_path(path) for path in published()}

    def link(match: re.Match[str]) -> str:
        path = (DOCS / match[1]).resolve()
        relative = path.relative_to(REPOSITORY).as_posix()
        kind = "tree" if path.is_dir() else "blob"
        target = inside.get(path) or f"{config.extra['repository']}/{kind}/main/{relative}"
        return f"]({target}{match[2] or ''})"

    return OUTSIDE.sub(link, markdown)


def published() -> list[Path]:
    """The files outside `docs/` that the site carries."""
    return [path for pattern in PUBLISHED for path in sorted(REPOSITORY.glob(pattern))]


def site_path(path: Path) -> str:
    """The place of a published file in the site."""
    return path.name if path.suffix == ".json" else f"assets/{path.name}"
