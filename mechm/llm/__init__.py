"""The Llama: scoring questions on a conversation, training it with LoRA and merging the adapter."""
