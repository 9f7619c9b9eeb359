"""A small Mimi codec: 24 kHz, frames of 1920 samples, and its training."""
