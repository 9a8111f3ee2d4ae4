"""The Llama behind a server: prompts for vLLM, a client that asks it, and what starts one from a bundle."""
