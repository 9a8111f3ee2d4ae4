"""The fusion network at inference: inputs, windows, decision, and combination with the Llama."""
