"""What writers and readers of result objects share: whose they are, where they lie, how they look, their second readers."""
