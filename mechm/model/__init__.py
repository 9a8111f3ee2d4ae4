"""The network: one module per part, assembled in `build`; its inputs are in `inputs`."""
