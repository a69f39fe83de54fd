"""What simulated requests cost, wait and get."""
