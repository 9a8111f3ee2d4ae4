"""ONNX graphs of parts: tracing, attention operators and graph files."""
