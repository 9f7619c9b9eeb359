"""The voice APIs that people already use, in front of Triton servers that run stream-dia2. See the README."""

from .config import Config
from .errors import ApiError

__all__ = ["ApiError", "Config"]
