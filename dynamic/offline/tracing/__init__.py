"""A network as a graph, the places of its exits, and the stages between them."""
