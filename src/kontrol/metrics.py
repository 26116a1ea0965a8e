"""The numbers that tell an operator how it goes, and how monitoring systems want them."""
