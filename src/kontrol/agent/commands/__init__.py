"""Commands that others have run on this pod."""
