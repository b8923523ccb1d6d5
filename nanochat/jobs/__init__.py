"""A stage program and the machine around it: its launcher, who holds the stage, the wall, SLURM, the jail without network."""
