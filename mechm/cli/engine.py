"""What runs the graphs: the option of the commands that analyse."""

from __future__ import annotations

import click

engine_option = click.option(
    "--engine",
    type=click.Choice(["onnxruntime", "openvino"]),
    default="onnxruntime",
    show_default=True,
    help="What runs the graphs. openvino is faster with the Llama, where the bundle was exported with "
    "--target openvino.",
)
