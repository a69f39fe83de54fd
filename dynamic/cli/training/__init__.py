"""Commands that train networks and make smaller ones."""
