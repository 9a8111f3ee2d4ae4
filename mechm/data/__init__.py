"""Reads annotated corpora as `LabelledConversation`s and makes training batches of them."""
