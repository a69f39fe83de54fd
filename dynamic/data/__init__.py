"""Pictures, sounds, texts and arrays, from files to the input of a network."""

from dynamic.data.image_steps import RGB, CenterCrop, Gray
from dynamic.data.labelled_images import ImageSet, digits, load_images, stratified_halves
from dynamic.data.number_steps import Normalize, Scale
from dynamic.data.preprocessing import Preprocess
from dynamic.data.resize_step import Resize
from dynamic.data.sound.log_mel import LogMel
from dynamic.data.sound.sound_files import load_sound
from dynamic.data.sound.sound_preprocess import SoundPreprocess
from dynamic.data.sound.stream_windows import windows
from dynamic.data.sound.waveform import Sound
from dynamic.data.text.text_preprocessing import TextPreprocess

__all__ = [
    "RGB",
    "CenterCrop",
    "Gray",
    "ImageSet",
    "LogMel",
    "Normalize",
    "Preprocess",
    "Resize",
    "Scale",
    "Sound",
    "SoundPreprocess",
    "TextPreprocess",
    "digits",
    "load_images",
    "load_sound",
    "stratified_halves",
    "windows",
]
