"""What exists in the mesh and how to reach it."""
