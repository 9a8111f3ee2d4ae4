"""Encoders of the Hugging Face layout, or ONNX graphs of them, to ONNX in several precisions, checked against torch.

`architectures` says which there are, `source` loads one, `modules` and `part` say what is exported, `halves` lowers a
graph to fp16 or bf16, `check` compares, `incoming` reads what others exported, `export` writes the folder.
"""
