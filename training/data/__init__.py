"""Sentences, and their synthesis into clips of several speakers."""
