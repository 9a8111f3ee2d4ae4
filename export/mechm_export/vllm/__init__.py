"""The Llama in the layout that vLLM loads (`served`), and files for deploying a server (`deployment_files`)."""
