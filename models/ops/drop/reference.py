"""Dropout by an explicit mask."""

from models.ops.masks.reference import apply as drop

__all__ = ["drop"]
