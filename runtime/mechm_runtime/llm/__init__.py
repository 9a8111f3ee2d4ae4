"""The Llama at inference: questions, scoring as an ONNX graph or on vLLM, rescoring of the fusion."""
