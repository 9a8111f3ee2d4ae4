"""Options, inputs, outputs and progress of the commands."""
