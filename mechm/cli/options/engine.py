"""What runs the graphs: the option of the commands that analyse."""

from __future__ import annotations

import click

engine_option = click.option(
    "--engine",
    type=click.Choice(["onnxruntime", "onnxruntime-gpu", "openvino", "tensorrt", "tensorrt-rtx"]),
    default="onnxruntime",
    show_default=True,
    help="What runs the graphs. onnxruntime-gpu is onnxruntime on an NVIDIA GPU: 16 bits where the bundle was exported "
    "with --target onnxruntime-gpu, else fp32. openvino is for bundles exported with --target openvino, and answers "
    "closer to fp32 than onnxruntime in int8 does; it runs others in fp32. tensorrt and tensorrt-rtx run what mechm "
    "export engines has put into the bundle, on an NVIDIA GPU.",
)
