"""What a person who is woken at night needs of a host: what it looks like, what does not serve, and whom to tell."""
