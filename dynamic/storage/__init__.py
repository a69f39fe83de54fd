"""Files and folders that appear whole, are replaced in one step, and are read without trust."""
