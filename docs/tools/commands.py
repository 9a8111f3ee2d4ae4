"""The reference of the `mechm` command as Markdown, made from its click commands.

Options are a definition list, which fits a phone, where a table of four columns does not. Preformatted paragraphs of a
help text and its epilog (`\\b` in click) become code blocks.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator

import click


def reference(command: click.Command, context: click.Context, depth: int = 2) -> Iterator[str]:
    """Markdown lines of a command and of all below it.

    depth: of the command's heading.
    """
    path = context.command_path
    yield from (f"{'#' * depth} {path} {{ #{slug(path)} data-toc-label='{context.info_name}' }}", "")
    yield from ("```text", f"{path} {' '.join(command.collect_usage_pieces(context))}", "```", "")
    texts = [inspect.cleandoc(text) for text in (command.help, command.epilog) if text]
    for paragraph in re.split(r"\n\s*\n", "\n\n".join(texts)):
        yield from (as_markdown(paragraph), "")
    for parameter in command.get_params(context):
        record = parameter.get_help_record(context)
        if isinstance(parameter, click.Option) and record is not None and "--help" not in parameter.opts:
            names, meaning = record
            yield from (f"`{names}`", f":   {escaped(meaning)}", "")
    if isinstance(command, click.Group):
        below = [(name, command.get_command(context, name)) for name in command.list_commands(context)]
        found = [(name, one) for name, one in below if one is not None and not one.hidden]
        for name, one in found:
            yield f"- [{path} {name}](#{slug(f'{path} {name}')}): {one.get_short_help_str(200)}"
        yield ""
        for name, one in found:
            yield from reference(one, click.Context(one, info_name=name, parent=context), min(depth + 1, 4))


def as_markdown(paragraph: str) -> str:
    r"""A paragraph of a help text; after `\b` it keeps its lines."""
    head, mark, body = paragraph.partition("\b")
    lines = [line for line in (head + body).splitlines() if line.strip()]
    if not mark:
        return escaped(" ".join(line.strip() for line in lines))
    if all(line.startswith(("- ", "  ")) for line in lines) and lines[0].startswith("- "):
        return "\n".join(map(escaped, lines))
    before = [lines.pop(0), ""] if lines[0].endswith(":") else []
    return "\n".join([*before, "```text", *inspect.cleandoc("\n" + "\n".join(lines)).splitlines(), "```"])


def escaped(text: str) -> str:
    """Plain text in Markdown, in which `code` stays code."""
    pieces = re.split(r"(`[^`]*`)", text)
    return "".join(one if one.startswith("`") else re.sub(r"([\\*_\[\]<>|#])", r"\\\1", one) for one in pieces)


def slug(path: str) -> str:
    """The anchor of a command."""
    return path.replace(" ", "-")
