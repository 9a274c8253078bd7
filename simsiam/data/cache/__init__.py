"""The index of a cache of decoded images: the text in its file, and the arrays in memory."""
