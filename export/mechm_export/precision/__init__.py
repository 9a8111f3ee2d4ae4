"""Graphs in fewer bits: int8 for CPUs (`quantize`), 16 bits and static int8 for what reads plain ONNX (`lowering`)."""
