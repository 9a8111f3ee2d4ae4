"""TensorRT engines for a bundle's parts: shapes, memory, conversion, the gate, and what the manifest says of them."""
