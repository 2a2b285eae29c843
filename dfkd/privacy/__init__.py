"""An audit of dreams: whether they are nearer to the images that the teacher learned from than to others."""
