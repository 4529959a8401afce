"""What all runbooks share, tried with one that does nothing but what a test asks."""
