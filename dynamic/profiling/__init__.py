"""What each stage costs on this machine."""
