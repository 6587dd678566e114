"""How good it is: metrics as sums that merge, and the runs that feed them."""
