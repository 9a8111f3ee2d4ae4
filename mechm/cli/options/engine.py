"""The inference engine: the option of the commands that analyse."""

from __future__ import annotations

import click

engine_option = click.option(
    "--engine",
    type=click.Choice(["onnxruntime", "onnxruntime-gpu", "openvino", "tensorrt", "tensorrt-rtx"]),
    default="onnxruntime",
    show_default=True,
    help="Inference engine. onnxruntime: CPU. onnxruntime-gpu: NVIDIA GPU, 16 bits if the bundle was exported with "
    "--target onnxruntime-gpu, else fp32. openvino: Intel CPU, for bundles exported with --target openvino (closer to "
    "fp32 than onnxruntime in int8), others run in fp32. tensorrt, tensorrt-rtx: NVIDIA GPU, with the engines that "
    "mechm export engines has added to the bundle.",
)
