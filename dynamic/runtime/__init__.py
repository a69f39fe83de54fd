"""The path of one request, from the input to the result."""
