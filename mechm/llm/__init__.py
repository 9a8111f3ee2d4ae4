"""The Llama: scores answers about a conversation; reads, writes and merges adapters and projectors on disk."""
