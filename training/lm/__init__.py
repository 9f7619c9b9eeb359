"""The language model: its shape and text, rows of training, and the training itself."""
