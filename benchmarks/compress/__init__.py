"""What each way to a smaller network gains and costs."""
