"""Break it on purpose, and count: kills, crashes at every system call, damaged files, hostile text. `make torture` runs all."""
