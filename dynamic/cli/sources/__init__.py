"""Networks and data by the names that commands take."""
