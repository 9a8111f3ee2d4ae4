"""Annotated corpora as `LabelledConversation`s, and the batches that training reads."""
