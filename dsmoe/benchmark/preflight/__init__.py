"""Is everything there that a run needs: on this machine, on every host."""
