"""The steps of `certify`: settings, walks along a path of thresholds, and points as they are measured."""
