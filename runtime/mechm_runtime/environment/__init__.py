"""Inspects this machine: its hardware, its packages and the providers of onnxruntime."""
