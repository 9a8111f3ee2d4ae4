"""Model, data, training, evaluation and the `mechm` command.

Importing it has no effects and needs no torch; the parts that do import it themselves.
"""
