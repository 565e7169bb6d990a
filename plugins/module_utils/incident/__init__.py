"""What a person on call needs about a host: its state, what does not serve, and whom to notify."""
