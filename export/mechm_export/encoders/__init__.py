"""Encoders of the Hugging Face layout, or ONNX graphs of them, to ONNX in several precisions, checked against torch.

`architectures` says which there are, `source` loads one, `modules` and `part` say what is exported, `check` compares
(16-bit graphs as `precision.rounded` computes them), `incoming` reads what others exported, `export` writes the folder.
"""
