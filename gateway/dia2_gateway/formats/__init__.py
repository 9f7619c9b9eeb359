"""Audio formats: what a caller may ask for, and the encoder that makes it while the audio still comes."""

from .audio_format import AudioFormat
from .encoder import Encoder

__all__ = ["AudioFormat", "Encoder"]
