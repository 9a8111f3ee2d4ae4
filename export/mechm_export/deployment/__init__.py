"""What happens to a bundle between its export and its service. Nothing here needs torch or an inference engine."""
