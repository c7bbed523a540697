"""Model and images in, evidence out: why the model decided, and what excites its units."""
