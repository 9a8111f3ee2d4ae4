"""The Llama on vLLM: prompts, an HTTP client, an in-process backend and the launch of a server."""
