"""Pictures, texts and arrays, from files to the input of a network."""

from dynamic.data.image_steps import RGB, CenterCrop, Gray
from dynamic.data.labelled_images import ImageSet, digits, load_images, stratified_halves
from dynamic.data.number_steps import Normalize, Scale
from dynamic.data.preprocessing import Preprocess
from dynamic.data.resize_step import Resize
from dynamic.data.text.text_preprocessing import TextPreprocess

Preprocessing = Preprocess | TextPreprocess  # what a bundle may hold: each makes the arrays of a network

__all__ = [
    "RGB",
    "CenterCrop",
    "Gray",
    "ImageSet",
    "Normalize",
    "Preprocess",
    "Preprocessing",
    "Resize",
    "Scale",
    "TextPreprocess",
    "digits",
    "load_images",
    "stratified_halves",
]
