"""The network: weights and tensor maths."""
