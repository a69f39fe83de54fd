"""The folder that is deployed, and what it says of itself."""
