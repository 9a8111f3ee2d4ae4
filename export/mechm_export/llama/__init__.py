"""The Llama of a bundle: as parts (`part`), as one ONNX graph (`graph`), and in 8 bits for servers (`compressed`)."""
