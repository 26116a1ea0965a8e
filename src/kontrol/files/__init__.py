"""Files that others write, and how their changes are noticed."""
