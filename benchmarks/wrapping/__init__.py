"""Which networks can be wrapped, and the peer library that wraps them too."""
