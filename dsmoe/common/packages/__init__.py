"""The packages that dsmoe needs: the list, what is here of it, another Python that has them."""
