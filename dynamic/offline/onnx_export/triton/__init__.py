"""A cascade as a model in a repository of Triton's server."""
