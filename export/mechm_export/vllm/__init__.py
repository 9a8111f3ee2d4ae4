"""The Llama as vLLM loads it, and the files that deploy a server."""
