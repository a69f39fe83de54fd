"""Networks by the names that commands take."""
