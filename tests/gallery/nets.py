"""All architectures of the gallery, by name."""

from gallery import frameworks, loops
from gallery.entry import ENTRIES, Entry

__all__ = ["ENTRIES", "Entry", "frameworks", "loops"]
