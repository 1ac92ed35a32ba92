"""What a case needs of memory and network, before anything starts."""
