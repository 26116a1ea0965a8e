"""What a master shows to its operators, and takes from them."""
