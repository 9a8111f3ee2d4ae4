"""The commands of `mechm export`, a module each, imported only when they run; `mechm bundle` is `deployment`."""

from __future__ import annotations

import click

from mechm.cli import LazyGroup

COMMANDS: dict[str, tuple[str, str, str]] = {
    "bundle": ("mechm_export.cli.bundle", "bundle", "Export a preset to a bundle, checked against torch."),
    "check": ("mechm_export.cli.check", "check", "Repeat every check of the export on a bundle."),
    "diagnose": ("mechm_export.cli.diagnose", "diagnose", "Find the layers that make a lower precision fail."),
    "encoder": ("mechm_export.cli.encoder", "encoder", "Export one encoder to ONNX, checked against torch."),
    "engines": ("mechm_export.cli.engines", "engines", "Add TensorRT engines to a bundle."),
    "llm": ("mechm_export.cli.llm", "llm", "Add the merged Llama to a bundle, for vLLM."),
}
"""Name -> module, attribute of the click command there, and one line of help."""


@click.command(cls=LazyGroup, table=COMMANDS, renamed={"verify": "check"})
def export() -> None:
    """Turn weights into a verified bundle that the runtime serves."""
