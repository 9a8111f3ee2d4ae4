"""The Llama as one graph that answers questions (`part`, `graph`), and as servers load it (`served`, `compressed`)."""
