"""What a run leaves for people: the result, its table and pictures, and the way to read a folder of runs."""
