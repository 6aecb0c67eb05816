"""The trained cascade at work: text to video, image to video, transitions and variations."""
