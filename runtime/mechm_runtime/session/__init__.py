"""Conversations that are still going on: an utterance in, what it changes out."""
