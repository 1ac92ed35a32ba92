"""Records and rows, and what is drawn from them."""
