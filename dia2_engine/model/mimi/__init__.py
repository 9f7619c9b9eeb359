"""The Mimi codec's decoder, streaming."""

from .config import MimiConfig, load_mimi_config
from .decoder import MimiDecoder, MimiState, Snapshot

__all__ = ["MimiConfig", "MimiDecoder", "MimiState", "Snapshot", "load_mimi_config"]
