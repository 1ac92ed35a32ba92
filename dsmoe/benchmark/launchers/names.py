"""The names of the launchers, as the option ``--launcher`` has them."""

AUTO = "auto"
NAMES = (AUTO, "ssh", "slurm", "ray", "torchrun", "local")
