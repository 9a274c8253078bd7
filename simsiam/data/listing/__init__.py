"""Which image files belong to a data set, and their labels: from a folder, a .txt or a .csv."""
