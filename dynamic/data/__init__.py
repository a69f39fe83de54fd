"""Pictures and arrays, from files to the input of a network."""

from dynamic.data.image_steps import RGB, CenterCrop, Gray
from dynamic.data.labelled_images import ImageSet, digits, load_images, stratified_halves
from dynamic.data.number_steps import Normalize, Scale
from dynamic.data.preprocessing import Preprocess
from dynamic.data.resize_step import Resize

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
