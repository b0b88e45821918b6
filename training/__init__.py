"""Training: data, loops and what they write."""
