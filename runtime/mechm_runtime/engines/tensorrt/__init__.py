"""TensorRT and TensorRT-RTX: engines are built, kept and run here. What is built, and how well, is decided elsewhere.

Both libraries have nearly the same Python interface. Neither is imported before an engine is asked for.
"""
