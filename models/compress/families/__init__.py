"""Several sub-models of one network, measured beside each other."""
