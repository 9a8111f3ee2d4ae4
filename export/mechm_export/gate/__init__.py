"""The quality gate: which precisions of a bundle are good enough.

`check_set` has the conversations, `comparison` compares values and answers with torch, `run` decides which precisions
pass, and `fp32_reference` compares with a bundle's own fp32 answers.
"""
