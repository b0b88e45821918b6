"""ImageNet, and other large sets of images, as people have them on disk: found, read in place, checked."""
