"""What a run is trained on: the order of the images, where they come from, and how they are prepared."""
