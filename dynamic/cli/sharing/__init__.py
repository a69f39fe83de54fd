"""Commands that make other bundles of a bundle."""
