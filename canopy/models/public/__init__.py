"""Models that others published: listed, fetched, converted and run."""
