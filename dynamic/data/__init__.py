"""Pictures and arrays, from files to what a network takes."""

from dynamic.data.labelled_images import ImageSet, digits, load_images, stratified_halves
from dynamic.data.preprocessing import RGB, CenterCrop, Gray, Normalize, Preprocess, Resize, Scale

__all__ = [
    "RGB",
    "CenterCrop",
    "Gray",
    "ImageSet",
    "Normalize",
    "Preprocess",
    "Resize",
    "Scale",
    "digits",
    "load_images",
    "stratified_halves",
]
