"""See what a convolutional network has learnt."""
