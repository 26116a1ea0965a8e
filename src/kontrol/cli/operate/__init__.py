"""The commands that look at the ensemble through a master, and steer it."""
