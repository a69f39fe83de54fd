"""Networks in int8, and weights in 2 to 8 bits."""
