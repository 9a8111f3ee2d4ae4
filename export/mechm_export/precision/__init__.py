"""Graphs in precisions below fp32.

Dynamic int8 is for onnxruntime on CPU (`dynamic_int8`). 16 bits (`half`) and static int8 (`static_int8`) are in plain
ONNX (`lower`); `simulated` computes 16-bit graphs on a CPU as a GPU would.
"""
