"""ONNX graphs of torch modules: what is exported (`part`), tracing (`trace`), attention for onnxruntime (`attention`),
comparing a file's inputs and outputs with the part (`signature`), editing (`nodes`) and graph files (`files`)."""
