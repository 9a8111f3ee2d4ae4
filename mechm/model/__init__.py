"""The network: one file a part, assembled in `build`."""
