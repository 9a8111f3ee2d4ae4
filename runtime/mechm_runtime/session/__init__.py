"""Sessions: conversations that are analysed while they go on, utterance by utterance."""
