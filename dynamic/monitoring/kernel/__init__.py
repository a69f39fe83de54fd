"""Files of the Linux kernel, and how sensors read them."""
