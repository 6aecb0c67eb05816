"""Generation with the trained cascade: text to video, image to video, transitions and variations."""
