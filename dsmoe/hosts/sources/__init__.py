"""Where hosts come from: Ray, Slurm, a list, this machine."""
