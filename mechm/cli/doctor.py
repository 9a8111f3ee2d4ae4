"""`mechm doctor`: prints the findings of `mechm_runtime.doctor`. It decides nothing itself and changes nothing."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from mechm_runtime.doctor import Report


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of tables.")
def doctor(as_json: bool) -> None:
    """Show what is installed, what works here and what to install.

    Each execution provider of onnxruntime runs a small test in a process of its own, since a listed provider may still
    not work. Exit code: 0 if the light runtime can run here, else 1.
    """
    from mechm_runtime.doctor import examine

    report = examine()
    if as_json:
        click.echo(report.to_json(indent=2))
    else:
        from rich.console import Console

        show(report, Console())
    sys.exit(0 if report.ok else 1)


def show(report: Report, console: Console) -> None:
    """Print the report as tables, with the verdict last, where it is seen when the command is done."""
    for table in (
        _machine(report),
        _extras(report),
        _providers(report),
        _decoders(report),
        _files(report),
    ):
        if table.row_count:
            console.print(table)
    for notice in report.notices:
        console.print(f"note: {_literal(notice)}")
    if report.ok:
        console.print("[bold green]The light runtime can run here.[/]")
    for problem in report.problems:
        console.print(f"[bold red]problem:[/] {_literal(problem.text)}")
        console.print(f"    fix: {_literal(problem.fix)}", soft_wrap=True)


def _literal(text: str) -> str:
    """Escape text from outside, so that rich prints its square brackets and does not read them as styles."""
    from rich.markup import escape

    return escape(text)


def _table(title: str, *columns: str) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, show_header=bool(columns))
    for column in columns or ("", ""):
        table.add_column(column, overflow="fold")
    return table


def _yes(yes: bool) -> str:
    return "[green]yes[/]" if yes else "[yellow]no[/]"


def _machine(report: Report) -> Table:
    machine = report.machine
    table = _table(f"mechm {report.mechm}")
    memory = f"{machine.memory_bytes / 2**30:.1f} GiB" if machine.memory_bytes else "unknown"
    for name, value in (
        ("Python", machine.python),
        ("system", f"{machine.system}, {machine.architecture}"),
        ("CPU", machine.cpu),
        ("CPU features", ", ".join(machine.cpu_features) or "none known"),
        ("cores", f"{machine.n_cores}, usable {machine.n_usable_cores:g}"),
        ("memory", memory),
        ("GPU", "; ".join(machine.gpus) or "no NVIDIA GPU found"),
        *report.tools.items(),
    ):
        table.add_row(name, _literal(value))
    return table


def _extras(report: Report) -> Table:
    table = _table("Packages", "extra", "installed", "missing and how to install it")
    for extra in report.extras:
        lacking = ""
        if extra.missing:
            lacking = f"[yellow]{_literal(', '.join(extra.missing))}[/]\n{_literal(extra.command or extra.note)}"
        installed = ", ".join(f"{name} {version}" for name, version in extra.installed.items())
        table.add_row(extra.name or "(base)", installed, lacking)
    return table


def _providers(report: Report) -> Table:
    table = _table("Execution providers of onnxruntime", "provider", "works", "details")
    for provider in report.providers:
        why = _literal(provider.reason) + (f"\n{_literal(provider.fix)}" if provider.fix else "")
        opened = f"session opened in {provider.setup_ms:.0f} ms" if provider.setup_ms is not None else ""
        table.add_row(provider.name, _yes(provider.works), why or opened)
    return table


def _decoders(report: Report) -> Table:
    table = _table("Media decoders", "works", "decoders")
    for works in (True, False):
        names = [name for name, known in report.decoders.items() if known is works]
        if names:
            table.add_row(_yes(works), ", ".join(names))
    return table


def _files(report: Report) -> Table:
    table = _table("Weights and bundle", "files", "present", "location or how to get it")
    for files in report.files:
        where = files.command
        if files.present:
            where = f"{files.size_bytes / 2**20:.0f} MiB in {files.path}" + (
                f": {', '.join(files.parts)}" if files.parts else ""
            )
        table.add_row(files.name, _yes(files.present), _literal(where))
    return table
