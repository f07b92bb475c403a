"""Models that can be edited, by name or path."""

from editkit.models.base import EditableModel, Family, pick_device
from editkit.models.language import LanguageModel, load_lm
from editkit.models.vision import VisionModel, load_vit

__all__ = ["EditableModel", "Family", "LanguageModel", "VisionModel", "load_lm", "load_vit", "pick_device"]
