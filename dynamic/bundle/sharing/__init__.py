"""What goes with a bundle to others: a smaller bundle for one device, the model card, and the Hugging Face Hub."""
