"""Texts: intents of CLINC150 and Banking77, from a bag of tokens to MiniLM-L6."""
