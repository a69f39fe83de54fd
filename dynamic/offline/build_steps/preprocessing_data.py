"""Preprocessing as data that travels in a bundle. torchvision is imported for its transforms alone."""

from typing import Any

from dynamic.data.preprocessing import Preprocess
from dynamic.data.sound.sound_preprocess import SoundPreprocess
from dynamic.data.text.text_preprocessing import TextPreprocess


def as_data(preprocess: Any) -> Preprocess | SoundPreprocess | TextPreprocess | None:
    """The same preprocessing as data. Raises InputError where it cannot travel (see `from_transforms`)."""
    if preprocess is None or isinstance(preprocess, (Preprocess, SoundPreprocess, TextPreprocess)):
        return preprocess
    from dynamic.offline.torchvision_transforms import from_transforms

    return from_transforms(preprocess)
