"""Training data: scenes and point clouds become registered, curated chips in a store."""
