"""Before anything is submitted: what a run will cost, whether it can work, and whether all that it reads is there."""
