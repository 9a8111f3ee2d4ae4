"""`mechm train`: the fusion, the Llama, the projector and their combination."""
