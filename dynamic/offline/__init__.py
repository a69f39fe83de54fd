"""Where the network was trained: wrapping, fitting, calibrating, exporting, building. Needs the extra `build`."""
