"""The Llama at inference: its questions, scoring by an ONNX graph or by vLLM, and rescoring of the fusion's answers."""
