"""Sound: wav files, windows of a stream, and the features that networks take."""
