"""A cascade over two deployments: where it is cut, and how rows get from one to the other."""
